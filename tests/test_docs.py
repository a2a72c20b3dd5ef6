"""README and docs: what they name exists, and their Python runs."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cae_jax"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FIRST_COMMANDS = "pip install -e . && python scripts/train.py", 'pip install -e ".[test]" && pytest'

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```|^    .*?$", "", page.read_text("utf-8"), flags=re.M | re.S)


@cache
def code(page: Path) -> str:
    """The indented and inline code of a page, long command lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    return "\n".join(re.findall(r"^    (.*)$", text, re.M) + re.findall(r"`([^`\n]+)`", text))


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "\n".join(f"    {command}" for command in FIRST_COMMANDS) in text.split("\n## ")[0]


@pages
def test_links_point_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not fragment or fragment in anchors(target), link


@pages
def test_tests_that_are_named_exist(page):
    file, missing = "", []
    pattern = r"\b(test_\w+\.py)(?:::(test_\w+))?|`::(test_\w+)"
    for name, *tests in re.findall(pattern, page.read_text("utf-8")):
        file = name or file  # `::test` is in the file named before
        path = next((ROOT / "tests").rglob(file), ROOT / "tests" / file)
        test = "".join(tests)
        if not path.is_file() or (test and test not in functions(path)):
            missing.append(f"{file}::{test}")
    assert not missing


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pages
def test_commands_that_are_named_exist(page):
    text = code(page)
    for command in re.findall(r"\bcae-jax ([a-z]\w*)", text):
        file = "import_.py" if command == "import" else f"{command}.py"
        assert (PACKAGE / "cli" / file).is_file(), command
    for script in re.findall(r"\bpython (scripts/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"\bpython -m (benchmarks[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    for config in re.findall(r"\bcae-jax [^\n]*--config (\w+)", text):
        assert (ROOT / "configs" / f"{config}.py").is_file(), config


@pytest.mark.parametrize(
    ("page", "files", "form"),
    [
        ("commands.md", "configs/[a-z]*.py", "`{0.stem}`"),
        ("README.md", "docs/[a-z]*.md", "({0.name})"),
    ],
)
def test_all_configs_and_pages_are_named(page, files, form):
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert [path for path in ROOT.glob(files) if form.format(path) not in text] == []


@pytest.mark.parametrize(
    ("page", "cheaper"),
    [
        ("docs/reading.md", False),
        ("README.md", True),  # compiles in a tenth of the time
        pytest.param("README.md", False, marks=pytest.mark.slow),
    ],
)
def test_python_runs_as_it_is_shown(page, cheaper, tmp_path, monkeypatch):
    """With an image and a folder of images of the names that the pages use."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ["picture.png", *(f"photos/{i}.png" for i in range(150))]:
        image = Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8))
        image.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", "data")
    monkeypatch.setenv("CAE_JAX_NATIVE", "0")  # a kernel for this size takes long to compile
    (block,) = blocks
    if cheaper:
        assert "image_size=64, epochs=5" in block
        block = block.replace("image_size=64", "image_size=8, model='simple', optimizer='adam'")
        block = block.replace("epochs=5", "epochs=2")
    names = {}
    exec(block, names)
    comments = re.findall(r"^(\w+) = .*# \[([\d, ]+)\]", block, re.M)
    assert comments
    for name, shape in comments:
        assert str(list(names[name].shape)) == f"[{shape}]"
    if "result" in names:
        assert len(names["result"].history) == names["config"].epochs
        assert names["result"].autoencoder.encode("photos/0.png", resize=True).shape[0] == 1


@pytest.mark.slow
def test_the_commands_on_codes_run_as_they_are_shown(command, tmp_path):
    text = (ROOT / "docs" / "codes.md").read_text("utf-8")
    lines = re.findall(r"^    cae-jax (.*)$", text, re.M)
    assert len(lines) >= 4
    assert command("benchmarks.samples", "samples").returncode == 0
    for line in lines:
        process = command(*shlex.split(line))
        assert process.returncode == 0, (line, process.stderr)


def pictured() -> set[str]:
    """The paths in the picture of docs/architecture.md; folders end with a slash."""
    block = ARCHITECTURE.read_text("utf-8").split("    cae_jax/\n", 1)[1].split("\n\n")[0]
    branch, paths = [(4, "cae_jax/")], {"cae_jax/"}
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        branch = [(depth, folder) for depth, folder in branch if depth < indent]
        parent = branch[-1][1] if branch else ""
        branch.append((indent, parent + line.split()[0]))
        paths.add(branch[-1][1])
    return paths


def test_the_picture_names_paths_that_exist():
    paths = pictured()
    assert len(paths) > 50
    for path in paths:
        found = ROOT / path
        assert found.is_dir() if path.endswith("/") else found.is_file(), path


def test_every_module_is_in_the_picture():
    paths = pictured()
    leaves = {
        path
        for path in paths
        if not any(other > path and other.startswith(path) for other in paths)
    }
    leaves.add("cae_jax/cli/")  # one file per command
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if path.stat().st_size and path.name not in ("__init__.py", "__main__.py"):
            assert any(
                name == leaf or (leaf.endswith("/") and name.startswith(leaf)) for leaf in leaves
            ), name


def test_files_to_edit_exist():
    table = ARCHITECTURE.read_text("utf-8").split("| to add |")[1]
    rows = [line.split("|") for line in table.splitlines()[2:] if line.startswith("| ")]
    assert len(rows) >= 7
    for row in rows:
        for path in re.findall(r"`([^`]+)`", row[2]):
            assert any((base / path).exists() for base in (PACKAGE, ROOT)), path
