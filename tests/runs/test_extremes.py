"""Numbers beyond float32 and int32, networks beyond the memory, files in the wrong place."""

import dataclasses
import shutil

import pytest

import cae_jax
import cae_jax.data
from cae_jax.cli.configs import load_config
from cae_jax.models import topology
from cae_jax.ops.backend import choose
from cae_jax.report import collect
from cae_jax.runs import history
from cae_jax.training import programs
from tests.conftest import DENSE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e39),
        ("learning_rate", 10**400),
        ("learning_rate", 1e-46),
        ("eps", 1e-50),
        ("momentum", -(10**400)),
        ("weight_decay", 1e300),
        ("clip_norm", 4e38),
        ("noise_level", 10**400),
    ],
)
def test_numbers_that_float32_does_not_hold_are_refused(name, value):
    with pytest.raises(cae_jax.UserError, match=rf"`{name}` is .*; it takes a ") as error:
        cae_jax.TrainConfig(noise="gaussian", **{name: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["epochs", "batch_size", "warmup_steps", "max_skips", "seed"])
@pytest.mark.parametrize("value", [2**32, 10**400, -(10**400)])
def test_whole_numbers_beyond_32_bits_are_refused(name, value):
    with pytest.raises(cae_jax.UserError, match=rf"`{name}` is .*; it takes ") as error:
        cae_jax.TrainConfig(**{name: value})
    assert len(str(error.value)) < 200


def test_more_steps_than_int32_counts_are_refused(data_dir, tmp_path):
    config = dataclasses.replace(DENSE, epochs=2**30)
    with pytest.raises(cae_jax.UserError, match=r"`epochs` is 1073741824; it takes at most 26843"):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)


def test_a_network_beyond_the_memory_is_refused_before_it_is_allocated(data_dir, tmp_path):
    config = dataclasses.replace(DENSE, model="conv", features=(1_000_000, 1_000_000, 8))
    # conv2 alone: 9 x 10^6 x 10^6 numbers of 4 bytes, five times
    with pytest.raises(cae_jax.UserError, match=r"needs at least (3[6-9]\d|4\d\d),\d\d\d\.\d GB"):
        cae_jax.fit(config, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_a_program_beyond_the_memory_is_refused_before_it_runs(data_dir, tmp_path, monkeypatch):
    # A chunk of DENSE keeps 2 to 200 kB.
    monkeypatch.setattr(programs, "device_memory", lambda: 1000)
    with pytest.raises(cae_jax.UserError, match=r"training needs .* GB for the layers.*lower"):
        cae_jax.fit(DENSE, tmp_path / "run", data_dir=data_dir)


def test_auto_leaves_a_kernel_beyond_the_memory():
    config = cae_jax.TrainConfig(image_shape=(20_000, 20_000, 3))
    chosen = choose(topology.from_config(config))
    # By hand, of a thread of 16 images at least the image and its target: 154 GB.
    assert chosen.name == "matmul"
    assert "it would take" in chosen.reason
    assert topology.from_config(config).native_bytes > 4 * 2 * 20_000 * 20_000 * 3


def test_the_estimate_by_hand():
    network = topology.dense((28, 28, 1), "simple")
    # 784 and 32 inputs, biases; the outputs of input, code and reconstruction
    parameters = 784 * 32 + 32 + 32 * 784 + 784
    assert network.training_bytes(10) == 4 * (5 * parameters + 2 * 10 * (784 + 32 + 784))


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("text", [DEEP, '{"format": 1, "seed": ' + "9" * 5000 + "}", "\0", "{"])
def test_a_config_that_is_no_config_is_refused(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(cae_jax.UserError, match=r"config\.json cannot be used"):
        cae_jax.load(copied)


def test_a_result_nested_too_deep_is_refused(copied, data_dir):
    (copied / "result.json").write_text(DEEP)
    with pytest.raises(cae_jax.UserError, match=r"result\.json cannot be read"):
        collect.collect([copied], data_dir=data_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "history.csv", "environment.json", "result.json", "summary.txt"),
        *("history.png", "checkpoints", "tensorboard", "damaged", "checkpoints/16"),
        "checkpoints/16/manifest.json",
    ],
)
def test_a_folder_in_place_of_a_file_and_the_other_way_round(copied, data_dir, name):
    """One line, or the run goes on; never a traceback, and the other checkpoint stays."""
    path = copied / name
    if name == "damaged":
        (copied / "checkpoints" / "16" / "manifest.json").write_text("x")
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink(missing_ok=True)
        path.write_text("a file") if name == "damaged" else path.mkdir()
    more = dataclasses.replace(DENSE, epochs=3)
    errors = []
    for call in (
        lambda: cae_jax.load(copied),
        lambda: history.of_run(copied),
        lambda: cae_jax.fit(DENSE, copied, data_dir=data_dir),
        lambda: cae_jax.fit(more, copied, data_dir=data_dir),
    ):
        try:
            call()
        except cae_jax.UserError as error:
            errors.append(str(error))
    assert all(str(copied) in error and "\n" not in error for error in errors)
    if name != "checkpoints":
        assert (copied / "checkpoints" / "8" / "manifest.json").exists()


def test_a_config_imports_what_lies_beside_it(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common_part.py").write_text(f"SEED = {seed}\n")
        (tmp_path / folder / "config.py").write_text(
            "import cae_jax\nfrom common_part import SEED\n\n\n"
            "def get_config():\n    return cae_jax.TrainConfig(seed=SEED)\n"
        )
    assert [load_config(tmp_path / name / "config.py").seed for name in "ab"] == [1, 2]
