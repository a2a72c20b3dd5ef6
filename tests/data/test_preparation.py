"""Preparing in several processes: the same bytes for any number, memory, disk, and after a kill."""

import contextlib
import gzip
import hashlib
import io
import operator
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tqdm
from PIL import Image
from pyarrow import parquet

from cae_jax import TrainConfig, UserError, atomic, data
from cae_jax.data import preparation, sources, workers
from cae_jax.data.sources import arrays, folder, idx
from cae_jax.data.workers import ShortageError, Workers
from tests.helpers import ROOT

_slow = partial(pytest.param, marks=pytest.mark.slow)
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 12, 10, 3), np.uint8)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 28 PNG files in two classes."""
    path = tmp_path / "photos"
    for i, pixels in enumerate(PIXELS):
        file = path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return path


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared" / "cae_images"


@pytest.fixture
def at_once(monkeypatch):
    """Starts processes after the first image, and saves after each how far it came."""
    monkeypatch.setattr(workers, "_PATIENCE", 0)
    monkeypatch.setattr(workers, "_MOST", 3)
    monkeypatch.setattr(preparation, "_SECONDS", -1)
    monkeypatch.setattr(atomic, "sync", lambda *_, **__: None)  # which takes a while


def config(path, **fields) -> TrainConfig:
    return TrainConfig(**{"data": str(path), "batch_size": 4, "split": 0.6, **fields})


def files(root):
    """The content of the prepared files, by their names."""
    return {path.name: path.read_bytes() for path in root.glob("*/*") if path.is_file()}


def prepare(root, *arguments, **options):
    """The prepared files, which are removed."""
    data.load(*arguments, **options)
    found = files(root)
    shutil.rmtree(root)
    return found


def test_the_bytes_are_those_of_the_images_for_any_number_of_processes(photos, root, at_once):
    found = [prepare(root, config(photos), workers=count) for count in (1, 2)]
    assert found[0] == found[1]
    for split in ("train", "test"):
        keys = [
            key
            for key in sources.mixed(f"{'ab'[i % 2]}/{i}.png" for i in range(28))
            if sources.split_of(key, 0.6) == split
        ]
        expected = np.stack([PIXELS[int(Path(key).stem)] for key in keys])
        classes = np.array(["ab".index(key[0]) for key in keys], np.int32)
        for name, array in (("images", expected), ("labels", classes)):
            np.save(root.parent / "expected.npy", array)
            content = (root.parent / "expected.npy").read_bytes()
            assert found[0][f"{split}_{name}.npy"] == content


def _gray(path):
    for file in path.rglob("*.png"):  # of which one in the middle keeps its colors
        if file.name != "7.png":
            Image.open(file).convert("L").save(file)


def _damage(path):
    (path / "b" / "5.png").write_bytes(b"not an image")


def _larger(path):
    Image.new("RGB", (12, 12)).save(path / "b" / "5.png")


def _depth(path):
    for file in path.rglob("*.png"):
        values = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(values * np.uint16(3)).save(file)


def _table(path):
    names = sorted(path.rglob("*.png"))
    rows = {"image": [{"bytes": file.read_bytes()} for file in names], "label": [0, 1] * 14}
    for name in names:
        name.unlink()
    parquet.write_table(pa.table(rows), path / "all.parquet")


def _sides(path):
    for i in range(0, 28, 2):
        (path / "b" / f"{i + 1}.png").rename(path / "b" / f"{i}.png")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (_table, {}),
        (_sides, {"pairs": ("a", "b"), "channels": 1}),
        (_gray, {}),
        (_damage, {}),
        _slow(_damage, {"skip_unreadable": True}),
        _slow(_larger, {}),
        _slow(_larger, {"image_size": 8}),
        _slow(_depth, {"white": "auto"}),
    ],
)
def test_processes_change_nothing(photos, root, at_once, caplog, change, fields):
    change(photos)

    def outcome(count):
        caplog.clear()
        try:
            found = prepare(root, config(photos, **fields), workers=count)
        except UserError as error:
            return str(error), [path.name for path in root.iterdir()]
        return found, caplog.messages

    assert outcome(2) == outcome(1)


class _Stop(BaseException):
    """As a signal."""


def _stopping(patch, after=None):
    """Stops when that many images have been opened; returns the names of those."""
    opened, original = [], folder.open_image

    def stop(path, name):
        opened.append(name)
        if len(opened) == after:
            raise _Stop
        return original(path, name)

    patch.setattr(folder, "open_image", stop)
    return opened


def _split(path):
    for i, name in enumerate(("train", "test")):
        (path / "ab"[i]).rename(path / name)


@pytest.mark.parametrize(
    ("change", "fields"),
    [(_gray, {}), (_damage, {"skip_unreadable": True}), (_depth, {"white": "auto"}), (_split, {})],
)
@pytest.mark.parametrize("after", [13, _slow(2), _slow(26)])
def test_what_is_prepared_is_continued(photos, root, at_once, monkeypatch, change, fields, after):
    change(photos)
    with monkeypatch.context() as patch:
        opened = _stopping(patch)
        expected = prepare(root, config(photos, **fields), workers=1)
    _interrupted(photos, monkeypatch, after, **fields)
    with monkeypatch.context() as patch:
        rest = _stopping(patch)
        assert prepare(root, config(photos, **fields), workers=1) == expected
    assert len(rest) == len(opened) + 1 - after


def _interrupted(photos, monkeypatch, after=20, **fields):
    with monkeypatch.context() as patch:
        _stopping(patch, after)
        with pytest.raises(_Stop):
            data.load(config(photos, **fields), workers=1)


def test_what_is_left_of_others_stays_and_of_earlier_files_goes(
    photos, root, at_once, monkeypatch, caplog
):
    _interrupted(photos, monkeypatch)
    (before,) = root.glob("incomplete.*")
    _interrupted(photos, monkeypatch, image_size=8)
    assert before.is_dir()
    Image.fromarray(PIXELS[0]).save(photos / "a" / "new.png")
    data.load(config(photos), workers=1)
    assert not before.exists()
    (other,) = root.glob("incomplete.*")
    assert f"Earlier states are in {other}, which may be removed" in caplog.text
    assert "Continuing" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        lambda path: path.unlink(),
        lambda path: path.with_name("progress.json").write_text("{}"),
        lambda path: path.with_name("progress.json").write_text('{"counts": {"train": 1}}'),
    ],
)
def test_what_is_damaged_is_not_continued(photos, root, at_once, monkeypatch, caplog, damage):
    expected = prepare(root, config(photos), workers=1)
    _interrupted(photos, monkeypatch)
    (left,) = root.glob("incomplete.*")
    damage(max(left.glob("*_images.npy"), key=lambda path: path.stat().st_mtime_ns))
    assert prepare(root, config(photos), workers=1) == expected
    assert "Continuing" not in caplog.text


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(photos, root, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2_000_000))
    message = (
        r"photos takes 3\.0 MB of disk in .*cae_images, where 2\.0 MB are free; free space, or "
        "pass another `data_dir` or a smaller `image_size`, or `decode='each-epoch'`$"
    )
    with pytest.raises(UserError, match=message):  # 28 x 189 x 189 x 3 bytes
        data.load(config(photos, image_size=189), workers=1)
    assert [path.name for path in root.iterdir()] == [".lock"]


def test_the_disk_is_named_before_the_images_are_prepared(photos, caplog):
    data.load(config(photos, image_size=189), workers=1)
    assert caplog.messages[1].startswith("The images take 3.0 MB of disk, of which ")


def test_a_bar_counts_the_images(photos, monkeypatch):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    data.load(config(photos), workers=1)
    assert [(bar.n, bar.total) for bar in bars] == [(28, 28)]


def test_no_processes_are_refused(photos):
    with pytest.raises(UserError, match="`workers` is 0; it takes a whole number of at least 1"):
        data.load(config(photos), workers=0)


# --- Processes ---


def test_outcomes_come_in_order_and_few_items_are_read_ahead(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0)
    monkeypatch.setattr(workers, "_MOST", 2)
    read, values = [], []

    def items():
        for i in range(40):
            read.append(i)
            yield partial(time.sleep, 0.02) if i % 7 == 3 else partial(pow, i, 2)

    with Workers(2) as pool:
        for _, outcome in pool.map(operator.call, items()):
            values.append(outcome.result())
            assert len(read) - len(values) < 2 * 2 * 2  # messages of two items
    assert values == [None if i % 7 == 3 else i**2 for i in range(40)]


@pytest.mark.parametrize(
    ("end", "how"),
    [(partial(os._exit, 3), "with exit code 3"), (partial(signal.raise_signal, 9), "by SIGKILL")],
)
def test_a_process_that_is_killed_is_a_line(monkeypatch, end, how):
    monkeypatch.setattr(workers, "_PATIENCE", 0)
    with Workers(2) as pool, pytest.raises(ShortageError, match=f"ended {how}; .*`workers=1`$"):
        list(pool.map(operator.call, [int, end, int]))


def test_a_script_without_a_guard_is_run_once(photos, root, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, cae_jax.data.workers\n"
        "cae_jax.data.workers._PATIENCE = 0\n"
        "print('once')\n"
        f"config = cae_jax.TrainConfig(data={str(photos)!r}, batch_size=4)\n"
        "cae_jax.data.load(config, workers=2)\n"
        "assert 'jax' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, "once\n"), ended.stderr
    assert files(root)


# --- Memory ---


def _idx(path, images):
    header = struct.pack(">4I", 0x0803, *images.shape[:3])
    path.write_bytes(gzip.compress(header + images.tobytes(), 1))
    return partial(idx._blocks, path, idx.IMAGE_MAGIC)


def _npz(path, images):
    np.savez_compressed(path, images=images)
    return partial(arrays.blocks, path, "images")


@pytest.mark.parametrize(("name", "write"), [("a.npz", _npz), ("a-idx3-ubyte.gz", _idx)])
def test_arrays_are_not_read_whole(tmp_path, name, write):
    images = np.zeros((500, 200, 200), np.uint8)  # 20 MB
    images[::7] = 3
    read = write(tmp_path / name, images)
    digest = hashlib.sha256()
    tracemalloc.start()
    for block in read():
        digest.update(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest.digest() == hashlib.sha256(images).digest()
    assert peak < 15e6  # three blocks of 4 MB


# --- A kill ---


def _children(process):
    """The numbers of the processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # of a process that has ended
            if f"\nPPid:\t{process.pid}\n" in status.read_text():
                found.append(status.parent)
    return found


def _until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "count"),
    [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 4), (signal.SIGINT, 2)],
)
def test_a_kill_leaves_no_processes_and_is_continued(photos, root, caplog, number, count):
    expected = prepare(root, config(photos), workers=1)
    code = (
        "import signal, sys, time, cae_jax\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from cae_jax.data import preparation, workers\n"
        "workers._PATIENCE, workers._MOST, preparation._SECONDS = 0, 2, -1\n"
        "add = preparation.Statistics.add\n"
        "preparation.Statistics.add = lambda *given: time.sleep(0.3) or add(*given)\n"
        "config = cae_jax.TrainConfig(data=sys.argv[1], batch_size=4, split=0.6)\n"
        "cae_jax.data.load(config, workers=int(sys.argv[2]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, photos, str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    with process:
        some = '"items": 9'
        _until(lambda: some in "".join(map(Path.read_text, root.glob("*/*.json"))), process)
        _until(lambda: count == 1 or len(_children(process)) == count, process)
        children = _children(process)
        process.send_signal(number)
        process.wait(60)
    assert process.returncode != 0
    _until(lambda: not any(child.exists() for child in children), process)
    caplog.clear()
    assert prepare(root, config(photos), workers=count) == expected
    assert re.search(r"Continuing after \d+ of 28 images", caplog.text)
