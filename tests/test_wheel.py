"""The package as pip installs it: a wheel in an environment of its own, outside the repository."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT


def run(*command, cwd, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | variables,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy: setuptools would leave its build folder in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("cae_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    output = run(sys.executable, "-c", code, folder, cwd=folder)
    return folder / output.splitlines()[-1]


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {f"cae_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    for path in (ROOT / "cae_jax").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            files.add(str(path.relative_to(ROOT)))
    assert files - set(zipfile.ZipFile(wheel).namelist()) == set()


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The bin folder of a new environment with the wheel and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    run(folder / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=folder)
    # A path in a .pth file is searched for modules; the .pth files in it, such as that of an
    # editable install of this repository, are not read.
    places = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(places) + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_the_command_of_the_wheel(environment, data_dir, test_images, tmp_path):
    place = {"cwd": tmp_path, "TFDS_DATA_DIR": str(data_dir)}
    code = "import cae_jax, sys; print(cae_jax.__file__)"
    file = run(environment / "python", "-c", code, **place).strip()
    assert file.startswith(str(environment.parent))

    command = environment / "cae-jax"
    assert "\n  benchmark " in run(command, **place)
    small = ("--train-examples", 256, "--test-examples", 100, "--epochs", 1)
    output = run(command, "train", "--config", "denoise", *small, **place)
    assert "Epoch 1/1" in output
    table = run(command, "evaluate", "runs/denoise", **place)
    assert {"noisy image", "denoise"} <= {
        line.split("|")[1].strip() for line in table.splitlines() if line
    }
    Image.fromarray(test_images[0, :, :, 0]).save(tmp_path / "boot.png")
    run(command, "reconstruct", "runs/denoise", "boot.png", "--out", "out", **place)
    with Image.open(tmp_path / "out" / "boot.png") as image:
        assert np.asarray(image).shape == (28, 28)
