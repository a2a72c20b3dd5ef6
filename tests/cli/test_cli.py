"""Each command as a user gives it: in this process, and once in a process of its own."""

import collections
import io
import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax import cli
from cae_jax.cli import common, evaluate, reconstruct, train
from cae_jax.errors import UserError
from cae_jax.runs import history
from tests.conftest import ROOT
from tests.helpers import assert_fails_in_one_line, in_process

HEADS = ["BCE", "MSE", "PSNR (dB)", "SSIM"]
# With Adam, because SOAP takes three times as long to compile.
QUICK = ("--train-examples", 256, "--test-examples", 100, "--epochs", 2, "--optimizer", "adam")


@pytest.fixture
def output(command):
    """What a command that has to succeed prints on stdout; it prints nothing on stderr."""

    def call(*arguments: object) -> str:
        process = command(*arguments)
        assert (process.returncode, process.stderr) == (0, "")
        return process.stdout

    return call


class Terminal(io.StringIO):
    def isatty(self):
        return True


def psnr_of(run, images):
    """The PSNR of each reconstruction by NumPy."""
    error = cae_jax.load(run).reconstruct(images) - images / 255
    return -10 * np.log10((error**2).mean(axis=(1, 2, 3)))


def test_train_resume_and_refusal(output, refuse, tmp_path, monkeypatch):
    arguments = ("train", "--config", "simple", *QUICK)
    lines = output(*arguments).splitlines()  # no bar where the output is no terminal
    assert lines[0] == "Backend matmul: every layer of the model simple is a matmul"
    assert lines[1].startswith("Compiled in ")
    row = history.read(tmp_path / "runs" / "simple" / "history.csv")[-1]
    assert lines[-1] == (
        f"Epoch 2/2 - {row.epoch_seconds:.1f}s - {row.images_per_second:.0f} images/s - "
        f"loss: {row.loss:.4f} - val_loss: {row.val_loss:.4f} - val_psnr: {row.val_psnr:.2f}"
    )
    assert "finished after 2 epochs" in output(*arguments)
    assert_fails_in_one_line(refuse(*arguments, "--seed", 3), "seed (0 there, 3 now)")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    output(*arguments, "--overwrite")
    assert "Epoch 1/2: " in terminal.getvalue()
    assert "step/s]" in terminal.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epoch", 3), "--epoch"),
        (("--epochs", "many"), "--epochs"),
        (("--epochs", 0), "epochs is 0; it takes a whole number of at least 1"),
        (("--optimizer", "lion"), "adadelta"),
        (("--learning-rate", "nan"), "--learning-rate is nan"),
        (("--config", "nowhere.py"), "nowhere.py is not a file"),
        (("--config",), "--config"),
        (("--features", *[8] * 7), "features is 8 8 8 8 8 8 8; it takes 1 to 6"),
    ],
)
def test_bad_flags(refuse, tmp_path, arguments, message):
    assert_fails_in_one_line(refuse("train", *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_flag_is_told_in_ascii_too(script, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = script("train", "--optimizer", "lion")
    assert_fails_in_one_line(process, "cae-jax train: error: invalid choice 'lion'")
    assert "adadelta" in process.stderr


def test_help_shows_every_field_in_a_group(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    groups = re.findall(r"(\w+) options", text)
    assert groups == ["run", "data", "network", "noise", "optimizer"]
    assert len(text.splitlines()) <= 100  # a terminal's frames take fewer
    for name, hint in typing.get_type_hints(cae_jax.TrainConfig).items():
        flag = rf"--{name.replace('_', '-')} "
        assert (flag in text) == (name not in ("image_shape", "levels", "restarts"))
        if typing.get_origin(hint) is Literal:
            assert all(str(choice) in text for choice in typing.get_args(hint))
    assert re.search(r"--warmup-steps N +Linear warm-up, at most half of all steps. \[1000\]", text)


def test_a_config_keeps_the_fields_that_are_not_flags(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "import cae_jax\n"
        "def get_config():\n"
        "    return cae_jax.TrainConfig(restarts=(2,), image_shape=(28, 28, 1), epochs=3)\n"
    )
    config = common.parse(train.Flags, ["--config", str(path), "--epochs", "4"]).train
    assert (config.restarts, config.image_shape, config.epochs) == ((2,), (28, 28, 1), 4)
    with pytest.raises(UserError, match="--restarts"):
        common.parse(train.Flags, ["--restarts", "2"])


def test_summary(output, refuse, capsys, monkeypatch):
    lines = output("summary")
    assert "Total params: 4,385" in lines
    assert "Features 16 8 8, the default for a short code of images of 28 pixels" in lines
    photographs = ("--data", "photos", "--image-size", 64, "--channels", 3)
    assert "32 64 64, the default for denoising" in output(
        "summary", *photographs, "--noise", "mix"
    )
    assert "the default" not in output("summary", *photographs, "--features", 8)
    assert_fails_in_one_line(refuse("summary", "--config", "x.py"), "x.py is not a file")
    monkeypatch.setattr(sys, "argv", ["cae-jax", "summary", "--config", f"{ROOT}/configs/deep.py"])
    cli.main()
    assert "Total params: 222,384" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ("--config", "simple", *QUICK)),
        ("evaluate", ("RUN",)),
        ("reconstruct", ("RUN", "one.png", "--out", "out")),
        ("encode", ("RUN", "two.npy", "--out", "codes.npz")),
        ("summary", ()),
        ("curves", ("RUN",)),
        ("report", ("RUN", "--out", "page.html")),
        ("export", ("RUN", "--format", "onnx")),
        ("benchmark", ("--config", "simple", *QUICK[:4], "--timed", 1, "--discard", 0)),
        ("compile", ("--help",)),
    ],
)
def test_a_process_of_each_command(script, dense_run, tmp_path, name, arguments):
    Image.new("L", (28, 28)).save(tmp_path / "one.png")
    np.save(tmp_path / "two.npy", np.eye(28)[[0, 5]].repeat(28).reshape(2, 28, 28))
    process = script(name, *(dense_run if word == "RUN" else word for word in arguments))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


def test_evaluate(output, dense_run, tmp_path, test_images):
    table = output("evaluate", dense_run, "--json", "table.json", "--figure", "figure.png")
    tables = json.loads((tmp_path / "table.json").read_text())
    linear, row = tables["rows"]
    assert linear["label"] == "PCA, 32 values"
    assert (linear["parameters"], linear["code"]) == (784 * 33, 32)
    (difference,) = tables["differences"]
    assert difference["label"] == f"PCA, 32 values - {row['label']}"
    assert difference["psnr"][0] == pytest.approx(linear["psnr"][0] - row["psnr"][0])
    heads, _, _, cells = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.split("\n\n")[0].splitlines()
    )
    assert heads == ["", "model", "runs", "parameters", "code", "seconds", *HEADS]
    assert cells[:5] == ["dense", "simple", "1", "50,992", "32"]
    assert cells[8] == "{:.2f} [{:.2f}, {:.2f}]".format(*row["psnr"])
    psnr = psnr_of(dense_run, test_images)
    assert row["mse"][0] == pytest.approx((10 ** (psnr / -10)).mean(), rel=1e-4)
    assert row["psnr"][0] == pytest.approx(psnr.mean(), rel=1e-4)
    assert row["psnr"][2] - row["psnr"][1] == pytest.approx(2 * 1.96 * psnr.std() / 100, rel=0.1)
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 800


@pytest.mark.slow
def test_evaluate_with_noise(output, dense_run, tmp_path):
    files = ("--figure", "rows.png", "--worst", "worst.png", "--robustness", "curve.png")
    table = output("evaluate", dense_run, "--noise", "occlusion", *files)
    lines = [line.split("|")[1].strip() for line in table.splitlines() if line]
    names = ["noisy image", "PCA, 32 values", "dense"]
    expected = [*names, "noisy image - dense", "PCA, 32 values - dense"]
    assert [line for line in lines if line.strip("-")] == expected
    for name in files[1::2]:
        with Image.open(tmp_path / name) as figure:
            assert np.asarray(figure.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "RUNS"),
        (("nowhere",), "nowhere is not a run directory: config.json is missing"),
        (("RUN", "--noise", "fog"), "--noise"),
        (("RUN", "--noise", "masking", "--noise-level", 2), "from 0 to 1: fraction of the pixels"),
        (("RUN", "--noise-level", 2), "noise none takes none"),
        (("RUN", "--robustness", "x.png"), "no level for --robustness; give --noise, one of"),
        (("RUN", "--figure", "nowhere/x.png"), "give a file in a folder that exists"),
        (("RUN", "--noise-seed", -1), "--noise-seed is -1"),
        (("RUN", "RUN"), "are the same config with the same seed; give one"),
    ],
)
def test_evaluate_refuses(refuse, dense_run, arguments, message):
    arguments = [dense_run if argument == "RUN" else argument for argument in arguments]
    assert_fails_in_one_line(refuse("evaluate", *arguments), message)


def test_evaluate_takes_runs_with_the_same_noise_only(refuse, dense_run, copied):
    config = json.loads((copied / "config.json").read_text()) | {"noise": "mix"}
    (copied / "config.json").write_text(json.dumps(config))
    message = "trained with noise mix and none; give equal ones, or --noise"
    assert_fails_in_one_line(refuse("evaluate", dense_run, copied), message)


@pytest.mark.slow
def test_compare(script, tmp_path, monkeypatch):
    # Twenty networks, whose speed does not matter here.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    small = ("--epochs", 1, "--train-examples", 256, "--test-examples", 500, "--seeds", 1)
    command = ("benchmarks.study", *small, "--no-baselines", "--page", "page.md")
    process = script(*command)
    assert process.returncode == 0, process.stderr
    text = (tmp_path / "page.md").read_text()
    figures = re.findall(r"\]\((page_\w+\.png)\)", text)
    assert len(figures) == 5
    assert all((tmp_path / figure).exists() for figure in figures)
    again = script(*command)
    assert again.returncode == 0
    assert "Training seed=0 (1 of 1)" in process.stdout
    assert "Training seed" not in again.stdout
    assert_fails_in_one_line(
        script("benchmarks.study", "--seeds", 0), "seeds is 0; it takes a whole"
    )
    assert (tmp_path / "page.md").read_text() == text


def test_reconstruct(output, command, refuse, dense_run, tmp_path, test_images):
    Image.fromarray(test_images[0, :, :, 0]).save(tmp_path / "boot.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "colour.png")
    np.save(tmp_path / "two.npy", test_images[1:3])
    reconstruct = ("reconstruct", dense_run, "--out")
    lines = output(*reconstruct, "out", "boot.png", "two.npy").splitlines()  # no bar, no hint
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["boot.png", "two-0000.png", "two-0001.png"]
    psnr = psnr_of(dense_run, test_images[:3])
    expected = [f"{name}: {value:.2f} dB" for name, value in zip(names, psnr, strict=True)]
    assert lines == [*expected, "3 images in out"]
    with Image.open(tmp_path / "out" / "boot.png") as image:
        assert (image.mode, image.size) == ("L", (28, 28))
    for out, file, message in (
        (".", "boot.png", "boot.png is one of the images; give another --out"),
        ("new", "colour.png", "colour.png has 30 x 30 pixels (height x width) of mode RGB"),
    ):
        assert_fails_in_one_line(refuse(*reconstruct, out, "boot.png", file), message)
    assert not (tmp_path / "new").exists()
    command(*reconstruct, "new", "colour.png", "--resize")
    assert (tmp_path / "new" / "colour.png").exists()


def test_reconstruct_scales_each_file_by_its_type(output, dense_run, tmp_path, test_images):
    """Bytes next to floats, and either inverted."""
    np.save(tmp_path / "bytes.npy", test_images[:1])
    np.save(tmp_path / "floats.npy", (test_images[:1] / 255).astype(np.float32))
    np.save(tmp_path / "dark.npy", 255 - test_images[:1])
    reconstruct = ("reconstruct", dense_run, "--out", "out")
    text = output(*reconstruct, "bytes.npy", "floats.npy")
    text += output(*reconstruct, "dark.npy", "--invert")
    assert len(set(re.findall(r": (.*) dB", text))) == 1
    expected = cae_jax.load(dense_run).reconstruct(test_images[:1])[0, :, :, 0]
    for name in ("bytes", "floats", "dark"):
        with Image.open(tmp_path / "out" / f"{name}-0000.png") as image:
            np.testing.assert_allclose(np.asarray(image) / 255, expected, atol=0.51 / 255)


def test_reconstruct_a_folder_in_color(color_run, output, refuse, tmp_path):
    run, images = color_run
    names = ["b.png", "a.webp", "sub/c d.bmp", "sub/sub/e.TIFF", "sub/.hidden.png"]
    for name, image in zip(names, images, strict=False):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        lossless = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(image).save(tmp_path / "in" / name, **lossless)
    (tmp_path / "in/notes.txt").touch()
    np.save(tmp_path / "in/sub/array.npy", images[4:6])
    for _ in range(2):  # the second time the outputs lie in the folder
        *lines, last = output("reconstruct", run, "in", "--out", "in/out").splitlines()
        found = [line.split(".png: ")[0] for line in lines]
        assert found == ["a", "b", "sub/array-0000", "sub/array-0001", "sub/c d", "sub/sub/e"]
        assert last == "6 images in in/out"
    expected = cae_jax.load(run).reconstruct(images[[1, 0, 4, 5, 2, 3]])
    for name, image in zip(found, expected, strict=True):
        with Image.open(tmp_path / f"in/out/{name}.png") as written:
            assert written.mode == "RGB"
            np.testing.assert_allclose(np.asarray(written) / 255, image, atol=0.51 / 255)
    assert "6 images in" in output("reconstruct", run, "in", "--out", tmp_path / "in/out")
    (tmp_path / "in/loop").symlink_to("loop")
    output("reconstruct", run, "in", "--out", "in/out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.hidden.png").touch()
    Image.new("RGB", (70, 13), "red").save(tmp_path / "wide.png")
    for path, out, message in (
        ("in/out", "in/out", "--out in/out is the folder of the images; give another"),
        ("in/a.webp", "in/loop", "in/loop cannot be written"),
        ("wide.png", "/proc/x/new", "/proc/x/new cannot be written"),  # before it is read
        ("empty", "new", "empty holds no image; its files may end in .png,"),
        ("wide.png", "new", "13 x 70 pixels (height x width) of mode RGB; pass 13 x 10 pixels"),
    ):
        assert_fails_in_one_line(refuse("reconstruct", run, path, "--out", out), message)
    assert not (tmp_path / "new").exists()
    output("reconstruct", run, "wide.png", "--out", "new", "--resize")


def test_reconstruct_composes_over_the_background(output, dense_run, tmp_path, test_images):
    """Dark ink on white, inverted, is light ink on black."""
    shape = Image.fromarray(test_images[0, :, :, 0])
    for name, color in (("light", 255), ("dark", 0)):
        image = Image.new("L", shape.size, color)
        image.putalpha(shape)
        image.save(tmp_path / f"{name}.png")
    light, dark, black = (
        output("reconstruct", dense_run, "--out", "out", "--resize", *flags).split()[1]
        for flags in (
            ("light.png",),
            ("dark.png", "--invert"),
            ("dark.png", "--background", "black"),
        )
    )
    assert light == dark != black


class Trained:
    """Reconstructs light on dark with 20 dB, as a mean squared error of 0.01."""

    of_pixels = property(lambda self: self)

    def reconstruct(self, images):
        images = images / (255 if images.dtype == np.uint8 else 1)
        known = images.mean(axis=(1, 2, 3), keepdims=True) < 0.45
        return np.where(known, images + 0.1, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "flags", "psnr_input", "advice"),
    [
        ("dark", (), None, "give --invert, with which it is 20.0 dB"),
        ("light", ("--invert",), None, "omit --invert, with which it is 20.0 dB"),
        ("noise", (), None, "the images are unlike those of its training"),
        ("light", (), None, None),
        ("dark", ("--invert",), None, None),
        ("noise", (), 8.0, None),  # the run removes noise, which its inputs have
    ],
)
@pytest.mark.parametrize("block", [2**24, 2 * 784])
def test_reconstruct_hints_at_other_images(
    dense_run, command, tmp_path, test_images, monkeypatch, file, flags, psnr_input, advice, block
):
    monkeypatch.setattr(reconstruct, "_BLOCK", block)
    (row,) = history.read(dense_run / "history.csv")[-1:]
    row = row._replace(val_psnr=18.0, val_psnr_input=psnr_input)
    monkeypatch.setattr(history, "read", lambda path: [row])
    monkeypatch.setattr(cae_jax, "load", lambda path, **_: Trained())
    light = test_images[[2, 1, 3, 5]]
    noise = np.random.default_rng(0).integers(0, 256, light.shape, np.uint8)
    images = {"light": light, "dark": 255 - light, "noise": noise}[file]
    np.save(tmp_path / "images.npy", images)
    hint = command("reconstruct", dense_run, "images.npy", "--out", "out", *flags).stderr
    if advice is None:
        assert hint == ""
    else:
        begin = r"hint: the median PSNR is \d\.\d dB, far below the 18\.0 dB of"
        assert re.fullmatch(f"{begin} .*; {re.escape(advice)}\n", hint)


def test_reconstruct_in_blocks_with_a_bar(command, dense_run, tmp_path, test_images, monkeypatch):
    """The same numbers and bytes, and bars in a terminal."""
    np.save(tmp_path / "some.npy", test_images[:10])
    terminal, printed = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    for values in (2**24, 4 * test_images[0].size):
        monkeypatch.setattr(reconstruct, "_BLOCK", values)
        process = command("reconstruct", dense_run, "some.npy", "--out", f"out{values}")
        printed.append(process.stdout.splitlines()[:10])
    assert printed[0] == printed[1]
    whole, blocks = (sorted(folder.iterdir()) for folder in sorted(tmp_path.glob("out*")))
    assert len(whole) == 10
    assert [file.read_bytes() for file in whole] == [file.read_bytes() for file in blocks]
    assert "Reading: " in terminal.getvalue()
    assert "Writing: " in terminal.getvalue()


def test_reconstruct_is_linear_in_the_files(output, dense_run, tmp_path, test_images, monkeypatch):
    """Each file and each output is looked at a fixed number of times."""
    calls = collections.Counter()
    monkeypatch.setattr(cae_jax, "load", lambda path, **_: Trained())
    for name in ("resolve", "stat", "open"):
        method = getattr(Path, name)

        def counted(self, *args, _name=name, _method=method, **options):
            calls[_name] += 1
            return _method(self, *args, **options)

        monkeypatch.setattr(Path, name, counted)
    files = [f"{i}.png" for i in range(60)]
    for image, file in zip(test_images, files, strict=False):
        Image.fromarray(image[:, :, 0]).save(tmp_path / file)
    counts = []
    for number in (20, 40, 60):
        calls.clear()
        output("reconstruct", dense_run, *files[:number], "--out", f"out{number}")
        counts.append(sum(calls.values()))
    assert counts[2] - counts[1] == counts[1] - counts[0] < 20 * 10


@pytest.mark.slow
def test_tensorflow_is_never_imported(data_dir, tmp_path):
    code = """
import sys, cae_jax
from cae_jax import data
data.load_split(cae_jax.TrainConfig(), "test", data_dir=sys.argv[2])  # prepares and reads records
config = cae_jax.TrainConfig(train_examples=128, test_examples=10, epochs=1)
cae_jax.fit(config, sys.argv[3], data_dir=sys.argv[1])
assert "tensorflow" not in sys.modules
"""
    in_process(code, data_dir, tmp_path / "data", tmp_path / "run")


def test_curves(output, refuse, dense_run, tmp_path):
    log = ROOT / "docs" / "lab_log.csv"
    lines = output("curves", log, dense_run, "--figure", "curves.png").splitlines()
    first = history.read(dense_run / "history.csv")[0]
    assert lines[0] == "| epoch | lab_log | dense |"
    assert lines[2] == f"| 1 | 0.3205 / 0.3229 | {first.loss:.4f} / {first.val_loss:.4f} |"
    assert lines[-1] == "| 20 | 0.2893 / 0.2894 |  |"
    with Image.open(tmp_path / "curves.png") as figure:
        assert figure.width > 500
    (tmp_path / "bad.csv").write_text("epoch,loss\n1,x\n")
    assert_fails_in_one_line(refuse("curves", "bad.csv"), "bad.csv lacks the numeric columns")
    assert_fails_in_one_line(refuse("curves", "nowhere"), "nowhere cannot be read")


def test_curves_of_runs_with_similar_paths(output, tmp_path):
    paths = ["lr0.01", "lr0.02", "a/trial", "b/trial", "log.csv", "lr0.02.csv"]
    for i, path in enumerate(paths):
        file = tmp_path / (path if path.endswith(".csv") else f"{path}/history.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"epoch,loss,val_loss\n1,{i},{i}\n")
    cells = [f"{i}.0000 / {i}.0000" for i in range(6)]
    # The last one is a file next to the run of its name.
    for count, names in ((5, ["log"]), (6, ["log.csv", "lr0.02.csv"])):
        head, _, row = output("curves", *paths[:count]).splitlines()
        assert head == f"| epoch | lr0.01 | lr0.02 | a/trial | b/trial | {' | '.join(names)} |"
        assert row == f"| 1 | {' | '.join(cells[:count])} |"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_commands_are_listed_with_one_line_each(arguments, capsys):
    cli.main(arguments)
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    listed = {row[0]: row[1] for row in rows if row and row[0] in cli.COMMANDS}
    assert list(listed) == list(cli.COMMANDS)
    assert (
        listed["train"]
        == "Train an autoencoder, or many at once; repeated with the same --workdir, it resumes."
    )
    assert all(text.endswith(".") for text in listed.values())
    modules = {path.stem.strip("_") for path in (ROOT / "cae_jax" / "cli").glob("*.py")}
    assert modules == {*cli.COMMANDS, "common", "configs", "init", "outputs", "process"}


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian"])
    assert capsys.readouterr().err.startswith(
        "cae-jax: error: trian is not a command; give one of train, evaluate, "
    )


def test_help_and_refusals_do_not_import_jax(tmp_path):
    code = """
import contextlib, sys
from cae_jax.cli import COMMANDS, main
calls = [[], ["train", "--epoch", "3"], ["evaluate"], ["reconstruct", "run", "--out", "x"]]
for call in [*calls, *([each, "--help"] for each in COMMANDS), ["--tyro-print-completion", "bash"]]:
    with contextlib.suppress(SystemExit):
        main(call)
    assert "jax" not in sys.modules, call
"""
    in_process(code, cwd=tmp_path)


def test_the_shell_completes_commands_flags_and_choices(output, tmp_path):
    (tmp_path / "completion").write_text(output("--tyro-print-completion", "bash"))
    words = ["cae-jax tra", "cae-jax train --learn", "cae-jax export run --format sta"]
    code = "source completion; f=$(complete -p cae-jax | sed 's/.*-F //; s/ .*//')\n"
    for line in words:
        code += f"COMP_WORDS=({line}); COMP_CWORD={line.count(' ')}; COMPREPLY=(); $f\n"
        code += "echo ${COMPREPLY[@]}\n"
    completed = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert completed.stdout.split() == ["train", "--learning-rate", "stablehlo"], completed.stderr


def test_a_config_is_found_by_name_or_by_path(output, refuse, tmp_path):
    process = refuse("summary", "--config", "denoisee")
    assert_fails_in_one_line(process, "config 'denoisee' is not known; give one of")
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert f"{', '.join(names)} or a path to a Python file" in process.stderr
    (tmp_path / "my.py").write_text(
        "from cae_jax import TrainConfig\ndef get_config(): return TrainConfig(features=(6, 4, 2))"
    )
    for flags, total in (
        (("--config", "my.py"), "745"),
        (("--config=deep",), "222,384"),
        (("--config", "wide", "--model", "simple"), "50,992"),
    ):
        assert f"Total params: {total}\n" in output("summary", *flags)
    words = map(str, ("--config", "denoise", *QUICK, "--seed", 7))
    config = common.parse(train.Flags, list(words)).train
    assert (config.noise, config.train_examples, config.seed) == ("gaussian", 256, 7)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("pass `overwrite=True` to replace it", "pass --overwrite to replace it"),
        ("`noise_level` is 2", "--noise-level is 2"),
        ("or `on_nan='skip'`, or", "or --on-nan skip, or"),
        ("`best=False`", "--no-best"),
        ("`features=(4, 4, 2)`", "--features 4 4 2"),
        ("`workdir=runs/a b`", "--workdir runs/a b"),
        ("`runs` is empty", "RUNS is empty"),
        ("`restarts` is (2,)", "restarts is (2,)"),
        ("a directory written by `cae-jax train`", "a directory written by `cae-jax train`"),
        ("noise_level is 2", "noise_level is 2"),
    ],
)
def test_parameters_in_messages_become_flags(message, text):
    assert common.as_flags(message, evaluate.Flags) == text


def test_a_signal_ends_a_command_with_the_command_that_continues():
    code = """
import signal
from cae_jax.cli import common
from cae_jax.runs.interruption import Interruption
with common.interruptible(["cae-jax", "train", "--workdir", "a b", "--overwrite"]):
    with Interruption():
        signal.raise_signal(signal.SIGTERM)
"""
    line = "SIGTERM: to continue, run cae-jax train --workdir 'a b' --overwrite\n"
    assert in_process(code, returncode=128 + 15).stdout == line


def test_a_script_is_its_command(script):
    paths = list((ROOT / "scripts").glob("*.py"))
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) <= 5
        assert lines[-1] == f'main(["{path.stem}", *sys.argv[1:]])'
    assert {path.stem for path in paths} <= set(cli.COMMANDS)
    assert script("train.py", "--help").stdout.startswith("usage: cae-jax train ")


def test_benchmark(output, refuse, tmp_path):
    small = ("--train-examples", 256, "--test-examples", 100, "--config", "simple")
    flags = ("--timed", 2, "--discard", 0, "--json", "times.json")
    text = output("benchmark", *small, *flags)
    times = json.loads((tmp_path / "times.json").read_text())
    assert list(times["startup_seconds"]) == ["import", "device", "data", "build_and_compile"]
    epoch = times["epoch_seconds"]
    assert epoch["n"] == 2
    assert 0 < epoch["min"] <= epoch["median"] <= epoch["max"]
    assert times["train_images_per_second"] == pytest.approx(256 / epoch["median"])
    for function in ("encode", "decode", "reconstruct"):
        assert times[f"{function}_images_per_second"] > 0
    assert 2**26 < times["peak_memory_bytes"]["host"] < 2**34
    assert times["versions"]["jax"] == jax.__version__
    assert 0.3 < times["val_loss"] < 0.8
    assert re.search(rf"^epoch seconds +median {epoch['median']:.4g}, min ", text, re.M)
    for flag, value, message in (
        ("--discard", -1, "error: --discard is -1; it"),
        ("--timed", 0, "error: --timed is 0; it takes"),
        ("--json", "no/x", "no/x cannot be written"),
        ("--json", "/proc/x", "/proc/x cannot be written"),  # not even by root
        ("--time-to", "nan", "error: --time-to is nan; it takes a positive number"),
        ("--time-to", "inf", "error: --time-to is inf; it takes a positive number"),
        ("--rho", 0.9, "--rho has no effect with optimizer soap; leave it out, or set --optimizer"),
    ):
        assert_fails_in_one_line(refuse("benchmark", flag, value), message)


@pytest.mark.slow
def test_benchmark_times_a_training_to_a_loss(output, refuse, tmp_path, data_dir):
    config = cae_jax.TrainConfig(train_examples=1000, test_examples=100, epochs=3)
    rows = cae_jax.fit(config, tmp_path / "run", data_dir=data_dir, backend="xla").history
    small = ("benchmark", "--train-examples", 1000, "--test-examples", 100, "--epochs", 3)
    small = (*small, "--backend", "xla", "--seeds", 1, "--time-to")
    # Reached in the epoch that is the first one with this loss at its end, or shortly before.
    assert "whole seconds" in output(*small, rows[1].val_loss, "--json", "times.json")
    times = json.loads((tmp_path / "times.json").read_text())
    assert 1 < times["epochs"]["median"] <= 2
    assert times["val_losses"][0] <= rows[1].val_loss
    assert 0 < times["seconds"]["median"] < times["whole_seconds"]["median"]
    assert times["seconds"]["n"] == 1
    message = "after 3 epochs; --time-to 0.1 takes a higher value"
    assert_fails_in_one_line(refuse(*small, 0.1), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--momentum", 0.5), "--momentum has no effect with optimizer soap; leave it out, or set"),
        (("--optimizer", "sgd", "--b2", 0.5), "set --optimizer to soap or adam or nadam or adamw"),
        (("--model", "deep", "--features", 8), "--features has no effect with model deep"),
        (("--max-skips", 3), "or set --on-nan to skip"),
        (("--sweep", "rho=0.9,0.8"), "--rho has no effect with optimizer soap"),
    ],
)
def test_a_flag_that_the_training_ignores_is_refused(refuse, tmp_path, flags, message):
    assert_fails_in_one_line(refuse("train", "--workdir", "new", *flags), message)
    assert not (tmp_path / "new").exists()


def test_a_config_may_have_fields_that_another_optimizer_would_use(command):
    # lab.py has adadelta with its rho, which --optimizer leaves in the config.
    done = command("train", "--config", "lab", "--optimizer", "adam", "--epochs", 0)
    assert_fails_in_one_line(done, "--epochs is 0; it takes")  # and nothing before


def test_a_run_may_have_what_its_training_ignores(command, copied):
    done = command("train", "--config", "simple", "--workdir", copied, "--rho", 0.5)
    assert "holds a run that differs in " in done.stderr
    assert "no effect" not in done.stderr


def test_a_config_file_runs_once(refuse, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from cae_jax import TrainConfig\n"
        "def get_config():\n"
        "    print('it runs')\n"
        "    return TrainConfig(optimizer='adam')\n"
    )
    result = refuse("train", "--config", tmp_path / "mine.py", "--rho", 0.5)
    assert result.stdout == "it runs\n"
    assert "--rho has no effect with optimizer adam" in result.stderr
