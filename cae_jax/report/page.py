"""The page of a report: frame, style, scripts and facts in one HTML file."""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from cae_jax import atomic
from cae_jax.errors import UserError

SCRIPTS = ("network.js", "noise.js", "elements.js", "curves.js", "page.js", "live.js")


def check(path: Path) -> None:
    """Refuses a file that cannot be written, before the work.

    Raises:
        UserError: it is something else than a file, or in no folder that exists.
    """
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UserError(f"--out {path} cannot be written; give a file in a folder that exists")


def write(path: Path, facts: dict[str, Any]) -> None:
    """Writes the page atomically.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        atomic.write_text(path, render(facts))
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error})") from error


def render(facts: dict[str, Any]) -> str:
    """The page with the facts of `facts.collect`, all of it ASCII.

    Its policy allows the style and the scripts in it, by their sums, and nothing else: no
    connection, and no script that came in with a name.
    """
    style, scripts = _read("page.css"), [_read(name) for name in SCRIPTS]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_sum(style)}; script-src {' '.join(map(_sum, scripts))}"
    )
    return Template(_read("page.html")).substitute(
        policy=policy,
        style=style,
        facts=_embed(facts),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _embed(facts: dict[str, Any]) -> str:
    """JSON that holds no tag: ``</script>`` in a name would end the element that it stands in."""
    return json.dumps(facts, allow_nan=False).replace("<", "\\u003c")


def _sum(content: str) -> str:
    """How a Content Security Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return resources.files("cae_jax.report").joinpath("web", name).read_text("ascii")
