"""Images that are streamed: the same bits as those of images that are all on the device."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cae_jax
from cae_jax.data.reader import Reader
from cae_jax.training import feed, rows, validation
from cae_jax.training.noise import build_corruption, has_rows
from cae_jax.training.step import make_keys
from tests.conftest import DENSE, SMALL, needs_native, signal_in_chunk
from tests.runs.test_reliability import assert_same_end

# Bytes of the images of DENSE and SMALL: 300 for validation, and two chunks of STEPS steps.
STEPS = 3
VALIDATION, STEP = 300 * 784, 128 * 784
BUDGET = VALIDATION + 2 * STEPS * STEP


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 * 1024**3),
        ("512 MB", 512_000_000),
        ("1.5kB", 1500),
        ("3mib", 3 * 1024**2),
        (7_000, 7_000),
    ],
)
def test_budgets(text, expected):
    assert feed.bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "2 G", "-1", "0", "1e9", "2GiB2", "..", "nan", "two", 0.5])
def test_unusable_budgets_are_refused(text):
    with pytest.raises(cae_jax.UserError, match=r"`device_budget` is .*; it takes .* such as 2GiB"):
        feed.bytes_of(text)


@pytest.mark.parametrize("kind", ["array", "map", "part of a map"])
def test_images_are_read_by_index(tmp_path, kind):
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 2), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.asarray(np.load(tmp_path / "images.npy", mmap_mode="r"))
    given = {"array": images, "map": mapped, "part of a map": mapped[7:][:40]}[kind]
    wanted, places = np.array([3, 39, 0, 3]), np.array([5, 0, 1, 2])
    found = Reader(given).read(wanted, places, 6)
    np.testing.assert_array_equal(found[places], given[wanted])
    assert found.shape == (6, 3, 5, 2)
    on_device = jax.device_put(found)
    assert on_device.unsafe_buffer_pointer() == found.ctypes.data  # not copied, on a CPU


def test_a_file_that_shrinks_is_one_line(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((9000, 28, 28, 1), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    reader, some = Reader(images[:8000]), np.array([7000, 1])
    reader.read(some, np.arange(2), 2)
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(6000 * 784)
    with pytest.raises(cae_jax.UserError, match=r"images.npy cannot be read any more .it is short"):
        reader.read(some, np.arange(2), 2)


@pytest.mark.parametrize(
    ("a", "b"), [(3, 5), (2**32 - 1, 2**32 - 1), (123456789, 987654321), (70_000, 12_288 * 65_537)]
)
def test_products_of_64_bits(a, b):
    high, low = rows._product(jnp.uint32(a), b)
    assert (int(high) << 32) + int(low) == a * b


def test_numbers_beyond_32_bits_are_those_of_their_index():
    """With the whole array's index as two words, as JAX documents Threefry's counter."""
    key, row, width = jax.random.key(3, impl="threefry2x32"), 500_000, 3 * 2**13
    found = jax.random.bits(rows.from_row(key, row), (2, width), jnp.uint32)
    index = [(row + r) * width + i for r in (0, 1) for i in (0, width - 1)]
    assert index[0] > 2**32
    words = [np.array([i >> s & 0xFFFFFFFF for i in index], np.uint32) for s in (32, 0)]
    k0, k1 = map(np.uint32, jax.random.key_data(key))
    one, other = jax.extend.random.threefry2x32_p.bind(
        jnp.full(4, k0), jnp.full(4, k1), *map(jnp.asarray, words)
    )
    np.testing.assert_array_equal(found[:, [0, -1]].ravel(), one ^ other)


NOISES = ["mix", *(noise for noise in cae_jax.config.NOISES if noise != "gaussian")]


@pytest.mark.parametrize(
    "noise", ["gaussian", *(pytest.param(each, marks=pytest.mark.slow) for each in NOISES)]
)
def test_the_noise_of_some_images_is_that_among_all(test_images, noise):
    images = test_images[:203].astype(np.float32) / 255
    key, corrupt = make_keys(5).test_noise, jax.jit(build_corruption(noise))
    assert has_rows(noise, None)
    whole = np.asarray(corrupt(key, images))
    some = np.asarray(corrupt(rows.from_row(key, 40), images[40:]))
    np.testing.assert_array_equal(some, whole[40:])


@pytest.mark.parametrize(
    ("examples", "most", "expected"),
    [
        (10, None, [(0, 10)]),
        (3999, 10, [(0, 3999)]),
        (4001, 10, [(0, 2000), (2000, 4001)]),
        (10_000, 8500, [(0, 4000), (4000, 10_000)]),
        (10_000, 10_000, [(0, 10_000)]),
    ],
)
def test_slices_of_the_validation_images(examples, most, expected):
    assert validation.slices(examples, most, 250) == expected


def test_a_plan_keeps_to_the_budget():
    images = np.zeros((1000, 28, 28, 1), np.uint8), np.zeros((300, 28, 28, 1), np.uint8)
    shared = {"free": 0, "images": images, "step": 128, "evaluated": 784, "least": 300}
    assert feed.make_plan(1300 * 784, **shared) is None
    found = feed.make_plan(BUDGET, **shared)
    assert found[:2] == (STEPS, 300)
    assert feed.make_plan(None, **shared)[:2] == (1, 300)
    least = VALIDATION + 2 * STEP
    assert feed.make_plan(least, **shared)[:2] == (1, 300)
    with pytest.raises(cae_jax.UserError) as error:
        feed.make_plan(least - 10_000, **shared)
    assert re.search(r"`device_budget` is 0.43 MB; .* take 0.44 MB; give more", str(error.value))


def test_a_streamed_run_ends_as_a_resident_one(dense_run, data_dir, tmp_path, caplog):
    """Killed in the middle of a chunk, and resumed with another budget."""
    folder, stop = tmp_path / "run", signal_in_chunk(2)
    stopped = cae_jax.fit(
        DENSE, folder, data_dir=data_dir, device_budget=BUDGET, chunk_steps=2, on_chunk=stop
    )
    assert stopped.steps == 4  # of the second chunk of three steps the first
    said = [each.message for each in caplog.records if "Streaming" in each.message]
    assert re.fullmatch(
        r"Streaming 1,000 images: all take 1.0 MB, and the device budget is 0.8 MB. It holds two "
        r"chunks of 3 steps, 0.6 MB, and 300 validation images",
        *said,
    )
    budget = VALIDATION + 2 * STEP
    cae_jax.fit(DENSE, folder, data_dir=data_dir, device_budget=f"{budget / 1000}kB")
    assert_same_end(folder, dense_run)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV])
def test_a_disk_that_is_gone_is_one_line(tmp_path, monkeypatch, number):
    np.save(tmp_path / "images.npy", np.zeros((10, 28, 28, 1), np.uint8))
    reader = Reader(np.load(tmp_path / "images.npy", mmap_mode="r"))
    monkeypatch.setattr(os, "preadv", _failing(number))
    with pytest.raises(cae_jax.UserError) as error:
        reader.read(np.arange(3), np.arange(3), 3)
    assert str(error.value) == (
        f"{tmp_path}/images.npy cannot be read any more ([Errno {number}] {os.strerror(number)}); "
        "restore it and start again: a training resumes after its last checkpoint"
    )


def test_a_file_that_is_removed_before_it_is_read_is_one_line(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((10, 28, 28, 1), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    (tmp_path / "images.npy").unlink()
    with pytest.raises(cae_jax.UserError, match=r"images.npy cannot be read any more .*Errno 2"):
        Reader(images)


def _failing(number):
    """As reading from a disk that has vanished."""

    def preadv(*_):
        raise OSError(number, os.strerror(number))

    return preadv


@pytest.mark.slow
@pytest.mark.parametrize("gone", [False, True])
def test_images_that_are_lost_end_a_run_that_keeps_its_checkpoint(
    gone, test_images, tmp_path, monkeypatch
):
    """The file shrinks, or its disk is gone."""
    np.save(tmp_path / "images.npy", test_images[:2000])
    config = dataclasses.replace(
        DENSE, data=str(tmp_path / "images.npy"), train_examples=None, test_examples=None, epochs=3
    )
    options = {"data_dir": tmp_path / "data", "device_budget": 784 * 1000, "chunk_steps": 1}

    def lose(steps):
        if steps == 14 and gone:  # of 15 in an epoch, with those of the last one read ahead
            monkeypatch.setattr(os, "preadv", _failing(errno.EIO))
        elif steps == 14:
            [file] = (tmp_path / "data").rglob("train_images.npy")
            os.truncate(file, 200_000)

    with pytest.raises(cae_jax.UserError, match=r"train_images.npy cannot be read any more .[i\[]"):
        cae_jax.fit(config, tmp_path / "run", on_chunk=lose, **options)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")] == ["15"]
    monkeypatch.undo()
    result = cae_jax.fit(config, tmp_path / "run", **options)  # prepares them again
    assert [row.epoch for row in result.history] == [1, 2, 3]


# Prints the megabytes of anonymous memory after each chunk of steps.
MEMORY = """
import json, sys
from pathlib import Path
import cae_jax

found = []
def measure(_):
    status = Path("/proc/self/status").read_text()
    found.append(int(status.split("RssAnon:")[1].split()[0]) / 1000)

config = cae_jax.TrainConfig(data=sys.argv[1], model="simple", optimizer="adam", epochs=3)
cae_jax.fit(
    config,
    sys.argv[2] + "/run",
    data_dir=sys.argv[2],
    device_budget="16MB",
    chunk_steps=20,
    on_chunk=measure,
)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_memory_is_flat_over_an_epoch(tmp_path):
    """200 MB of images through 16 MB, with validation and checkpoints.

    The end of the first epoch takes 10 MB once; a leak of the chunks would keep 200 MB.
    """
    images = np.random.default_rng(0).integers(0, 256, (255_000, 28, 28, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", MEMORY, tmp_path / "images.npy", tmp_path]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    per_epoch = len(found) // 3
    for k in range(3):
        epoch = found[k * per_epoch :][:per_epoch]
        assert max(epoch) - max(epoch[: per_epoch // 10]) < 16
    assert max(found) - max(found[: per_epoch // 10]) < 40


# Of SMALL, whose last batch is not full; noise takes more memory than images.
def budget_of(config, steps):
    """A budget for chunks of some steps: by hand, see `programs.evaluated_bytes`."""
    pairs = 2 if config.pairs else 1
    noise = 17 if config.noise not in ("none", "pairs") else 1
    return pairs * (noise * VALIDATION + 2 * steps * STEP)


@pytest.fixture(scope="module")
def pairs(test_images):
    """Images and what they are to become, for training and validation."""
    clean = test_images[:1000], test_images[1000:1300]
    return tuple(255 - each for each in clean), clean


OPTIMIZERS = {"none": "soap", "gaussian": "adam", "mix": "soap", "pairs": "adam"}
CASES = [
    *[("pairs", "xla"), ("mix", "matmul")],
    *[pytest.param(noise, "native", marks=needs_native) for noise in OPTIMIZERS],
]


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "backend"), CASES)
def test_streams_have_the_bits_of_residents(noise, backend, data_dir, pairs, tmp_path):
    given = {"data_dir": data_dir}
    config = named = dataclasses.replace(SMALL, optimizer=OPTIMIZERS[noise], epochs=2)
    if noise == "pairs":
        given = dict(zip(("images", "targets"), pairs, strict=True))
        named = dataclasses.replace(config, pairs=("images", "targets"))
    else:
        config = named = dataclasses.replace(config, noise=noise)
    cae_jax.fit(config, tmp_path / "resident", backend=backend, **given)
    stop = signal_in_chunk(2)
    for steps, options in ((3, {"chunk_steps": 2, "on_chunk": stop}), (2, {}), (8, {})):
        budget = budget_of(named, steps)
        cae_jax.fit(
            config, tmp_path / "run", backend=backend, device_budget=budget, **given, **options
        )
    assert_same_end(tmp_path / "run", tmp_path / "resident")


@pytest.mark.slow
@pytest.mark.parametrize(("together", "noise"), [(1, "none"), (2, "mix")])
def test_streamed_populations_end_as_resident_ones(together, noise, data_dir, tmp_path):
    members = [dataclasses.replace(DENSE, seed=seed, noise=noise) for seed in (0, 4, 5)]
    budget = budget_of(members[0], steps=3) * together
    for name, limit in (("resident", None), ("streamed", budget)):
        cae_jax.fit_population(
            members,
            tmp_path / name,
            data_dir=data_dir,
            members_per_program=together,
            device_budget=limit,
        )
    for seed in (0, 4, 5):
        assert_same_end(
            tmp_path / "streamed" / f"seed={seed}", tmp_path / "resident" / f"seed={seed}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "backend"),
    [("none", "xla"), ("gaussian", "matmul"), pytest.param("mix", "native", marks=needs_native)],
)
def test_validation_in_slices_has_the_bits_of_all_images(noise, backend, data_dir, tmp_path):
    """In slices of 2,000 images and one of 2,171, with the noise of each image."""
    config = dataclasses.replace(SMALL, epochs=1, test_examples=6171, noise=noise)
    ends = [tmp_path / "resident", tmp_path / "streamed"]
    for folder, budget in zip(
        ends, (None, 784 * (4000 * (17 if noise != "none" else 1) + 256)), strict=True
    ):
        cae_jax.fit(config, folder, data_dir=data_dir, backend=backend, device_budget=budget)
    assert_same_end(*ends)
