"""Prose in plain English: phrases and outdated terms that comments, messages and docs avoid."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHRASES = (
    *("anew", "be had", "so many", "is told", "one's own", "all that", "at hand", "as far as"),
    *("of it", "what was", "that there is"),
)
TERMS = {
    "the lab": "the Keras tutorial, or its log; the config is `lab`",
    "soak": "kill-and-resume stress test",
    "fused step": "native kernel",
    "native step": "native kernel",
    "phase form": "polyphase decomposition, or the matmul backend",
    "--method": "--backend",
    "--methods": "--backends",
    "CAE_JAX_FUSED": "CAE_JAX_NATIVE",
}
# The search ignores case, hence the lower case.
REPLACEMENTS = {
    phrase.lower(): replacement
    for phrase, replacement in (dict.fromkeys(PHRASES, "plain English") | TERMS).items()
}
_ALTERNATIVES = "|".join(phrase.replace(" ", r"\s+") for phrase in REPLACEMENTS)
FORBIDDEN = re.compile(rf"(?<![\w-])(?:{_ALTERNATIVES})(?!\w)", re.IGNORECASE)
TEXT_TOKENS = {"COMMENT", "STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"}
DELIMITERS = re.compile(r"[\"#]|^[bfruBFRU]{1,2}(?=[\"'])|^'|'$")
# Before Python 3.12 an f-string is one token, its fields among it.
FIELD = re.compile(r"(?<!\{)\{(?!\{)(?:[^{}]|\{[^{}]*\})*\}")
FOLDERS = ("benchmarks", "cae_jax", "configs", "docs", "scripts")
SUFFIXES = {".cc", ".cpp", ".css", ".h", ".html", ".js", ".md", ".py"}


def python_text(source: str) -> str:
    """Python source with everything but comments and strings masked, line by line.

    Quotes, comment signs and line breaks become white space, so that a phrase is also found where
    it continues on the next line of a comment or in the next of two adjacent strings.
    """
    lines = source.splitlines(keepends=True)
    masked = [re.sub(r"\S", "|", line) for line in lines]
    for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
        if tokenize.tok_name[token.type] not in TEXT_TOKENS:
            continue
        old_fstring = re.match(r"[rR]?[fF]", token.string) and token.type == tokenize.STRING
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1):
            left = start if row == first else 0
            right = end if row == last else len(lines[row - 1])
            piece = lines[row - 1][left:right]
            if old_fstring:
                piece = FIELD.sub(lambda field: "|" * len(field[0]), piece)
            text = DELIMITERS.sub(_blank, piece)
            masked[row - 1] = masked[row - 1][:left] + text + masked[row - 1][right:]
    return "".join(masked)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def findings(name: str, source: str) -> list[str]:
    """Each forbidden phrase as ``file:line: phrase (replacement)``."""
    if name.endswith(".py"):
        text = python_text(source)
    else:
        text = re.sub(r"^[ \t]*(//|\*|>)", _blank, source, flags=re.MULTILINE)
    found = []
    for match in FORBIDDEN.finditer(text):
        phrase = " ".join(match[0].split())
        line = text.count("\n", 0, match.start()) + 1
        found.append(f"{name}:{line}: {phrase} ({REPLACEMENTS[phrase.lower()]})")
    return found


def test_the_words():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files += set(ROOT.glob("*.md")) - {ROOT / "CHANGELOG.md"}  # which has the old names
    files = [path for path in files if path.suffix in SUFFIXES]
    assert len(files) > 80
    found = [
        line
        for path in sorted(files)
        for line in findings(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source", "lines"),
    [
        ("a.md", "The size\nof it, and so\nmany more", [2, 2]),
        ("a.md", "part of items, what wasn't, call that, soaked, the `lab`, lab_log, allthat", []),
        ("a.md", "See the Lab's log, `--method fused` and CAE_JAX_FUSED=0", [1, 1, 1]),
        ("a.py", "x = 1  # drawn as\n# far as 3\n", [1]),
        ("a.py", 'print("it is "\n      f"told {name} anew")\n', [1, 2]),
        ("a.py", "x = f'all {that:{soak}}, {{all that}} {soak!r}'\n", [1]),
        ("a.py", '"""One line.\n\nAll\nthat.\n"""\n', [3]),
        (
            "a.py",
            "raise E('the ' 'lab')\nat = 'hand'\nsoak(of, it)\nx = f'{soak} at' + 'hand'\n",
            [1],
        ),
        ("a.js", "// the rest of\n// it\nconst anew_ = 1;\n", [1]),
        ("a.cc", "/* what\n * was */ int so_many;\n", [1]),
    ],
)
def test_phrases_are_found_in_text_and_nowhere_else(name, source, lines):
    assert [int(line.split(":")[1]) for line in findings(name, source)] == lines
