"""Writes the page of a report: frame, style, scripts and report data in one HTML file."""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from cae_jax import atomic

# In order of execution; all share one scope.
SCRIPTS = ("data.js", "network.js", "noise.js", "elements.js", "curves.js", "page.js", "live.js")


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Writes the page, whole or not at all; an existing file is replaced.

    Args:
        path: the file.
        data: the report data of `cae_jax.report.collect.collect`.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic.output_file(path) as temporary:
        temporary.write_bytes(render(data).encode("ascii"))


def render(data: dict[str, Any]) -> str:
    """The page with the report data, in ASCII.

    Its Content Security Policy allows only the page's own style and scripts, by their hashes: no
    connections, and no script injected through the name of a run.
    """
    style, scripts = _read("page.css"), [_read(name) for name in SCRIPTS]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))}"
    )
    return Template(_read("page.html")).substitute(
        policy=policy,
        style=style,
        data=_embed(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _embed(data: dict[str, Any]) -> str:
    """JSON with tags escaped: ``</script>`` in a name would end the enclosing element."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _hash(content: str) -> str:
    """The name of an inline style or script in a Content Security Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return resources.files("cae_jax.report").joinpath("web", name).read_text("ascii")
