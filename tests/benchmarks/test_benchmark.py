"""The benchmark on few images, and its summaries of invented measurements."""

import dataclasses
import json
import math
import runpy
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cae_jax
from benchmarks.frameworks import adapter, case, expected, summary, sweep, tables, time_to, worker
from cae_jax import figures
from cae_jax.config import from_dict, peak_rate, to_dict
from cae_jax.models import autoencoders
from tests.conftest import ROOT
from tests.helpers import assert_fails_in_one_line


@pytest.mark.slow
def test_a_small_run(script, tmp_path):
    flags = ("--models", "simple", "--examples", 200, "--epochs", 2, "--discard", 0)
    files = ("--peak-gflops", 100, "--json", "table.json")
    process = script("benchmarks.frameworks", *flags, *files)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "table.json").read_text())
    (row,) = result["summaries"]
    (measurement,) = result["measurements"]
    (one,) = measurement["rounds"]
    assert (row["framework"], row["model"], row["examples"]) == ("auto", "simple", 200)
    assert len(one["epoch_seconds"]) == 2
    assert len(one["losses"]) == 3  # the first epoch's too
    assert row["epoch_seconds"] == pytest.approx(sum(one["epoch_seconds"]) / 2)
    assert row["step_ms"] == pytest.approx(500 * row["epoch_seconds"])  # 200 images: two steps
    # 784-32-784: 2 x 784 x 32 multiply-adds forward, twice that backward but for one matrix.
    flops = 2 * (2 + 2 + 1) * 784 * 32
    assert row["flop_utilisation"] == pytest.approx(row["images_per_second"] * flops / 100e9)
    for part in ("import", "data", "transfer", "compile", "first_step"):
        assert measurement["cold"]["seconds"][part] > 0
        assert one["seconds"][part] > 0
    assert set(one["calls"]) == {"encode", "reconstruct"}
    assert set(one["calls"]["encode"]) == {"1", "128", "4096"}
    assert one["matmul_precision"] == "default"
    assert result["environment"]["versions"]["jax"]
    assert f"{row['loss']:.4f}" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs is 0; it takes a whole number of at least 1"),
        (("--batch-sizes", 128, "--examples", 100), "--batch-sizes take whole numbers from 1"),
        (("--examples", 70000), "Fashion-MNIST has 60000 images"),
        (("--backends", "rocm"), "--backends"),
        (("--backends",), "--backends is empty"),
        (("--figure", "costs.png"), "--figure has nothing to draw"),
        (("--peak-gflops", -1), "--peak-gflops is -1.0"),
        (("--frameworks", "all", "--models", "deep"), "--models conv only"),
        (("--frameworks", "jax"), "--frameworks"),
        (("--end-to-end", "--frameworks", "all"), "omit --frameworks and --figure"),
        (("--json", "nowhere/x.json"), "give a file in a folder that exists"),
    ],
)
def test_bad_flags(refuse, arguments, message):
    assert_fails_in_one_line(refuse("benchmarks.frameworks", *arguments), message)


# For each layer: the positions at which its kernel is applied, and the size of the kernel.
LAYERS = {
    "conv": (
        (28 * 28, 9 * 1 * 16),
        (14 * 14, 9 * 16 * 8),
        (7 * 7, 9 * 8 * 8),
        (4 * 4, 9 * 8 * 8),
        (8 * 8, 9 * 8 * 8),
        (14 * 14, 9 * 8 * 16),
        (28 * 28, 9 * 16 * 1),
    ),
    "simple": ((1, 784 * 32), (1, 32 * 784)),
    "deep": (
        *((1, 784 * 128), (1, 128 * 64), (1, 64 * 32)),
        *((1, 32 * 64), (1, 64 * 128), (1, 128 * 784)),
    ),
}


@pytest.mark.parametrize("model", LAYERS)
def test_utilisation_counts_the_operations_of_all_layers(model):
    measurement = made_up("auto", 0.28, 1.0, model)
    forward = [2 * positions * weights for positions, weights in LAYERS[model]]
    flops = 3 * sum(forward) - forward[0]
    if model == "conv":
        assert flops == pytest.approx(4.284e6, rel=1e-4)
    # 60,000 images in 2 s
    utilisation = summary.summarise(measurement, 100)["flop_utilisation"]
    assert utilisation == pytest.approx(30000 * flops / 100e9, rel=1e-12)
    state = nnx.state(autoencoders.abstract(cae_jax.TrainConfig(model=model)), nnx.Param)
    kernels = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert sorted(kernels) == sorted(weights for _, weights in LAYERS[model])


def test_expected_ranges():
    # A run of scripts/train.py: 0.2772 after 10 epochs of 469 steps.
    assert expected.check_loss(0.2772, 4690) is None
    for wrong in (0.0, 0.23, 0.30, 0.69, math.nan, math.inf):
        assert "is outside [0.265, 0.295]" in expected.check_loss(wrong, 4690)
    assert expected.check_loss(0.69, 4) is None
    assert expected.check_loss(0.0, 4) is not None


def made_up(framework: str, loss: float, seconds: float, model: str = "conv") -> dict:
    """A measurement as `sweep.measure` returns it."""
    calls = {"reconstruct": {str(size): {"images_per_second": size} for size in (1, 128, 4096)}}
    for times in calls["reconstruct"].values():
        times |= dict.fromkeys(("median_seconds", "min_seconds", "max_seconds"), 1.0)
    one = {
        "epoch_seconds": [seconds, 2 * seconds, 3 * seconds],
        "losses": [loss] * 10,
        "loss": loss,
        "val_loss": loss,
        "first_epoch_seconds": 1.0,
        "start_seconds": 1.0,
        "seconds": {"import": 0.5},
        "evaluation_seconds": [seconds],
        "peak_memory_bytes": 1e6,
        "calls": calls,
    }
    metadata = {"framework": framework, "model": model, "batch_size": 128, "examples": 60000}
    config = to_dict(cae_jax.TrainConfig(model=model))
    return {**metadata, "config": config, "cold": one, "rounds": [one, one]}


def test_a_wrong_loss_fails(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "measure", lambda *_: [made_up("auto", 0.5, 1.0)])
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--peak-gflops", "100"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("benchmarks.frameworks", run_name="__main__")
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert "0.5000 OUT OF RANGE" in output.out
    assert "loss 0.5000 after 4690 steps is outside [0.265, 0.295]" in output.err


def test_a_crash_is_marked():
    measurement = made_up("torch", 0.28, 1.0)
    measurement["rounds"][1] = {"failed": "exit code 1: RuntimeError"}
    row = summary.summarise(measurement, 100)
    assert row["failed"] == "exit code 1: RuntimeError"
    assert "FAILED: exit code 1" in tables.training_table([row])


def test_who_wins():
    measurements = [made_up("auto", 0.28, 1.0), made_up("torch", 0.28, 3.0)]
    text = tables.winner_tables([summary.summarise(m, 100) for m in measurements], "auto")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[4:]]
    assert lines[0] == ["training, s/epoch", "2", "6", "cae-jax, 3.00 x"]
    measurements.append(made_up("flax", 0.28, 0.5))
    text = tables.winner_tables([summary.summarise(m, 100) for m in measurements], "auto")[0]
    assert "flax, 2.00 x" in text


def test_figure(tmp_path):
    measurements = [
        {**made_up("auto", 0.30, n * b), "examples": n * 10**4, "batch_size": b}
        for n in (1, 2, 4)
        for b in (128, 512)
    ]
    summaries = [summary.summarise(measurement, 100) for measurement in measurements]
    panels = summary.cost_lines(summaries)
    assert panels["batch size"]["auto, conv, 20000 images"] == [(128, 512), (512, 2048)]
    assert summary.growth_lines(summaries)[0].endswith(": an epoch costs images ** 1.00")
    figures.save_costs(tmp_path / "costs.png", panels)
    with Image.open(tmp_path / "costs.png") as figure:
        assert figure.width > 1000


def test_growth():
    # by hand: y = 3 x ** 1.5
    assert summary.growth([(x, 3 * x**1.5) for x in (1, 4, 9)]) == pytest.approx(1.5)


def test_a_missing_framework_is_skipped(monkeypatch, capsys):
    monkeypatch.setitem(case.FRAMEWORKS, "torch", ("no_such_module",))
    assert sweep.installed(["torch", "flax"]) == ["flax"]
    assert capsys.readouterr().err == (
        'Skipped: torch needs no_such_module; pip install -e ".[frameworks]" installs them all\n'
    )


def cases(*batch_sizes, examples=512):
    return sweep.build_cases(ROOT / "configs", ["conv"], ["auto"], batch_sizes, [examples], None)


def test_frameworks_share_everything_but_the_library():
    both = sweep.add_frameworks(cases(64, 128), ["flax", "torch"])
    assert [(s.framework, s.config["batch_size"]) for s in both] == [
        (framework, size) for size in (64, 128) for framework in ("auto", "flax", "torch")
    ]
    for one in both:
        config = cae_jax.TrainConfig(**one.config)
        assert (config.learning_rate, config.schedule, config.b2) == (1e-3, "constant", 0.999)
        assert config.warmup_steps == 0


def test_frameworks_share_the_images_of_a_file(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((100, 32, 32, 3), np.uint8))
    ours = cases(64, examples=60000)
    both = sweep.add_frameworks(sweep.on_images(ours, tmp_path / "images.npy"), ["torch"])
    assert {one.images for one in both} == {str(tmp_path / "images.npy")}
    for one in both:
        assert adapter.network_of(from_dict(one.config)) == ((32, 32, 3), (32, 32, 8))
        assert one.config["train_examples"] == 90
    np.save(tmp_path / "wide.npy", np.zeros((100, 32, 16, 3), np.uint8))
    for name, problem in (("wide.npy", "takes uint8"), ("none.npy", "is no .npy file")):
        with pytest.raises(cae_jax.UserError, match=problem):
            sweep.on_images(ours, tmp_path / name)


def test_frameworks_share_the_features():
    for one in sweep.add_frameworks(sweep.with_features(cases(64), (32, 16, 8)), ["torch"]):
        assert adapter.network_of(from_dict(one.config)) == ((28, 28, 1), (32, 16, 8))
    with pytest.raises(cae_jax.UserError, match="features"):
        sweep.with_features(cases(64), (0,))


def test_the_way_back_by_hand():
    # 28, 14, 7, 4 and back 4, 8, 16 -> 14, 28; 64, 32, 16, 8, 4 and back.
    assert adapter.way_back((28, 28, 1), (16, 8, 8)) == [(8, True), (16, False), (1, True)]
    layers = [(16, True), (16, True), (32, True), (3, True)]
    assert adapter.way_back((64, 64, 3), (32, 16, 16, 8)) == layers


def test_trainings_to_a_loss_take_the_best_peak_rate(monkeypatch):
    def run_case(one, cache):
        config = from_dict(one.config)
        if (one.framework, config.learning_rate) == ("torch", 6e-3):
            return {"failed": "loss 0.7 after 4 epochs"}
        seconds = 1.0 if one.framework == "auto" else 1000 * peak_rate(config)
        seconds += config.seed
        return {"seconds": seconds, "whole_seconds": seconds + 3, "epochs": 0.75}

    monkeypatch.setattr(time_to, "run_case", run_case)
    rows = time_to.measure(0.29, cae_jax.TrainConfig(), ["torch"], 3, None)
    assert [row["recipe"] for row in rows] == [
        "soap, 0.03, cosine",
        "adam, 0.001, constant",
        "adam, 0.003, cosine",
    ]
    assert rows[2]["seconds"] == [3, 4, 5]
    lines = tables.time_to_table(rows).splitlines()
    assert "| 4.0 (3.0 - 5.0)" in lines[-1]
    assert "| 0.75 (0.75 - 0.75)" in lines[-1]


@pytest.mark.slow
def test_a_worker_trains_until_the_loss_is_reached(data_dir):
    config = cae_jax.TrainConfig(train_examples=512, test_examples=100, epochs=30)
    one = case.BenchmarkCase(
        framework="xla",
        config=to_dict(config),
        data_dir=str(data_dir),
        task="reach",
        target=0.6,
    )
    result = worker.run_task(one, time.time())
    assert result["epochs"] * 4 == int(result["epochs"] * 4) > 0
    assert 0 < result["seconds"] < result["whole_seconds"]
    short = to_dict(dataclasses.replace(config, epochs=1))
    never = dataclasses.replace(one, target=0.1, config=short)
    assert worker.run_task(never, time.time())["failed"].endswith("after 1 epochs")
