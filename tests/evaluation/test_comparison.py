"""Comparisons: rows, pairs, noise, curves, and the page of all."""

import contextlib
import dataclasses
import re
import shutil

import numpy as np
import pytest

import cae_jax
from benchmarks import study
from cae_jax import figures, markdown
from cae_jax.config import NOISES
from cae_jax.evaluation import baselines, comparison, lazy, quality
from cae_jax.runs import history
from tests.conftest import DENSE, SMALL
from tests.evaluation.test_baselines import InThisProcess


@pytest.fixture(scope="module")
def images(test_images):
    return test_images[:1000]


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory, data_dir):
    """One epoch with noise, validated on the `images`."""
    folder = tmp_path_factory.mktemp("noisy") / "run"
    config = dataclasses.replace(DENSE, noise="gaussian", epochs=1, test_examples=1000)
    cae_jax.fit(config, folder, data_dir=data_dir)
    return folder


@pytest.fixture(scope="module")
def trained(run, noisy_run):
    return [
        comparison.open_runs("plain", [run, run]),
        comparison.open_runs("denoiser", [noisy_run]),
    ]


@pytest.fixture(scope="module")
def entries(trained, images):
    inputs = comparison.noisy_images(images, "gaussian")
    return [
        comparison.untrained_entry("noisy image", inputs, images),
        *(comparison.trained_entry(each, images, inputs) for each in trained),
    ]


def test_it_measures_what_training_validated_on(noisy_run, entries):
    row = history.read(noisy_run / "history.csv")[-1]
    noisy, _, denoiser = comparison.summaries(entries)
    assert denoiser["bce"].mean == pytest.approx(row.val_loss, rel=1e-5)
    assert denoiser["psnr"].mean == pytest.approx(row.val_psnr, rel=1e-5)
    assert noisy["psnr"].mean == pytest.approx(row.val_psnr_input, rel=1e-5)
    assert denoiser["seconds"] == pytest.approx(row.epoch_seconds)


def test_rows_by_numpy(entries, images):
    noisy, plain, _ = comparison.summaries(entries)
    clean = images / 255
    outputs = np.asarray(entries[1].outputs, np.float64)
    assert plain["mse"].mean == pytest.approx(((outputs - clean) ** 2).mean(), rel=1e-5)
    assert plain["runs"] == 2
    assert (plain["parameters"], plain["code"]) == (4385, 128)
    assert noisy["parameters"] is noisy["code"] is noisy["seconds"] is None
    p = np.clip(np.asarray(entries[0].outputs, np.float64), 1e-7, 1 - 1e-7)
    bce = -(clean * np.log(p) + (1 - clean) * np.log1p(-p)).mean()
    assert noisy["bce"].mean == pytest.approx(bce, rel=1e-2)  # 1 - 1e-7 is 1 - 1.2e-7 in float32


def test_differences_of_all_pairs(entries):
    pairs = comparison.differences(entries)
    assert [pair["label"] for pair in pairs] == [
        "noisy image - plain",
        "noisy image - denoiser",
        "plain - denoiser",
    ]
    rows = comparison.summaries(entries)
    for name in ("bce", "mse", "psnr", "ssim"):
        mean = rows[1][name].mean - rows[2][name].mean
        assert pairs[2][name].mean == pytest.approx(mean)
        assert pairs[2][name].low < mean < pairs[2][name].high


def test_tables(entries):
    lines = comparison.metrics_table(comparison.summaries(entries)).splitlines()
    assert lines[0].split("|")[1].strip() == ""
    assert re.search(r"\| noisy image +\| - +\| 1 +\| - +\| - +\| - ", lines[2])
    assert re.search(r"\| plain +\| conv +\| 2 +\| 4,385 +\| 128 ", lines[3])
    assert len({len(line) for line in lines}) == 1
    signed = comparison.metrics_table(comparison.differences(entries), signed=True)
    assert re.search(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", signed)


def test_markdown_tables():
    header, rows = ["", "images/s"], [["a", 12], ["conv", ""]]
    assert markdown.table(header, rows) == (
        "|      | images/s |\n| ---- | -------- |\n| a    | 12       |\n| conv |          |"
    )
    assert markdown.table(["epoch", "a"], [[1, "0.3"]], aligned=False) == (
        "| epoch | a |\n| --- | --- |\n| 1 | 0.3 |"
    )


def test_noise_depends_on_its_seed_and_on_nothing_else(test_images):
    first = comparison.noisy_images(test_images[:50], "gaussian")
    np.testing.assert_array_equal(first, comparison.noisy_images(test_images[:50], "gaussian", 0.5))
    other = comparison.noisy_images(test_images[:50], "gaussian", seed=1)
    assert (first != other).mean() > 0.4  # the others are clipped to one end
    clean = comparison.noisy_images(test_images[:50], "none")
    np.testing.assert_allclose(clean, test_images[:50] / 255, atol=1e-7)


@pytest.mark.parametrize("pairs", [(), ("noisy", "clean")])
def test_images_of_two_files_are_not_joined_in_memory(test_images, pairs):
    stored = test_images[:30].reshape(30, 28, 14, 2)
    parts = lazy.joined([stored[:11], stored[11:]])
    config = dataclasses.replace(SMALL, pairs=pairs)
    noise = "pairs" if pairs else "gaussian"
    for name in ("none", noise):
        expected = comparison.clean_and_noisy(stored, config, name)
        found = comparison.clean_and_noisy(parts, config, name)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert isinstance(found[0], lazy.Lazy)
    for part in (slice(0, 30), slice(4, 11), slice(11, 12), slice(9, 20), np.array([3, 25, 12])):
        np.testing.assert_array_equal(parts[part], stored[part])


def test_runs_of_one_config_belong_together(run, noisy_run, tmp_path):
    other = tmp_path / "seed5"
    shutil.copytree(run, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"seed": 0', '"seed": 5'))
    assert comparison.group_runs([noisy_run, run, other]) == {
        noisy_run.name: [noisy_run],
        run.name: [run, other],
    }


def test_two_runs_of_one_seed_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(cae_jax.UserError, match="are the same config with the same seed"):
        comparison.group_runs([run, tmp_path / "copy"])


def test_robustness(trained, test_images):
    images = test_images[:200]
    curves = comparison.robustness_curves(trained, images, "gaussian")
    assert list(curves) == ["noisy image", "plain", "denoiser"]
    levels, psnr = zip(*curves["noisy image"], strict=True)
    assert levels == (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
    assert list(psnr) == sorted(psnr, reverse=True)
    noisy = comparison.noisy_images(images, "gaussian", 0.25)
    error = trained[1].autoencoders[0].reconstruct(noisy) - images / 255
    by_hand = (-10 * np.log10((error**2).mean(axis=(1, 2, 3)))).mean()
    assert curves["denoiser"][1] == (0.25, pytest.approx(by_hand, rel=1e-5))


@pytest.mark.slow
def test_more_images_than_fit_are_evaluated_in_parts(trained, entries, images, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_BYTES", 300 * 28 * 28 * 4)
    monkeypatch.setattr(quality, "_VALUES", 1)
    inputs = comparison.noisy_images(images, "gaussian")
    some = [*range(256), 900]
    np.testing.assert_array_equal(inputs[np.array(some)], entries[0].outputs[some])
    found = [
        comparison.untrained_entry("noisy image", inputs, images),
        comparison.trained_entry(trained[1], images, inputs),
    ]
    for entry, expected in zip(found, [entries[0], entries[2]], strict=True):
        for ours, theirs in zip(entry.qualities[0], expected.qualities[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # batches of other sizes
    assert comparison.mean_psnr(inputs, images) == pytest.approx(
        entries[0].values("psnr").mean(), rel=1e-6
    )


@pytest.mark.parametrize("noise", NOISES)
def test_every_level_of_a_curve_is_one_of_the_noise(noise, test_images):
    levels = comparison.levels_around(noise, (28, 28, 1))
    assert len(levels) >= 6
    assert NOISES[noise].default in levels
    for level in levels:
        dataclasses.replace(SMALL, noise=noise, noise_level=level)  # is checked on construction


def test_the_worst_images(entries, images):
    rows = comparison.worst_rows(entries[2:], images, entries[0].outputs)
    assert list(rows) == ["denoiser\nclean", "denoiser\nnoisy", "denoiser"]
    error = ((np.asarray(entries[2].outputs) - images / 255) ** 2).mean(axis=(1, 2, 3))
    worst = np.sort(error)[-10:]
    shown = ((rows["denoiser"] - rows["denoiser\nclean"]) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.sort(shown), worst, rtol=1e-6)


@pytest.mark.slow
def test_the_page_of_a_small_study(tmp_path, data_dir, capsys):
    noisy = dataclasses.replace(SMALL, noise="gaussian", epochs=1)
    plain = dataclasses.replace(SMALL, epochs=1)
    simple = dataclasses.replace(plain, model="simple")
    plan = study.Plan(
        denoising={"lab": noisy, "dense": dataclasses.replace(noisy, model="simple")},
        mix={"mixed": dataclasses.replace(noisy, noise="mix")},
        reconstruction={"plain": plain, "simple": simple},
        frontier={"family": {"plain": plain}, "other": {"simple": simple}},
        seeds=1,
    )
    page = tmp_path / "page.md"
    study.run(plan, tmp_path / "runs", page, with_baselines=False, data_dir=data_dir)
    text = page.read_text()
    assert "Training seed=0 (1 of 1)" in capsys.readouterr().out
    for figure in ("denoised", "worst", "robustness", "reconstructed", "frontier"):
        assert f"(page_{figure}.png)" in text
        assert (tmp_path / f"page_{figure}.png").stat().st_size > 5000
    assert "lab - dense" in text
    assert "| occlusion 12 |" in text
    # Once more: nothing is trained, and the page comes out the same.
    study.run(plan, tmp_path / "runs", page, with_baselines=False, data_dir=data_dir)
    assert "Training seed" not in capsys.readouterr().out
    assert page.read_text() == text
    other = plan._replace(mix={"mixed": dataclasses.replace(noisy, noise="masking")})
    with pytest.raises(cae_jax.UserError, match="holds a population that differs in noise"):
        study.run(other, tmp_path / "runs", page, with_baselines=False, data_dir=data_dir)
    with pytest.raises(cae_jax.UserError, match="give a file in a folder that exists"):
        study.run(plan, tmp_path / "runs", tmp_path / "no" / "page.md", with_baselines=False)


@pytest.mark.slow
def test_colors(tmp_path, monkeypatch):
    """Tables, curves, baselines and figures of a run on small colored images."""
    images = np.random.default_rng(0).integers(0, 256, (24, 9, 10, 3), np.uint8)
    changes = {"train_examples": None, "test_examples": None, "batch_size": 8, "epochs": 1}
    config = dataclasses.replace(SMALL, model="simple", noise="occlusion", **changes)
    cae_jax.fit(config, tmp_path / "run", images=(images[:16], images[16:]))
    trained = comparison.open_runs("photos", [tmp_path / "run"])
    test = images[16:]
    inputs = comparison.noisy_images(test, "occlusion")
    assert (inputs == 0).all(axis=-1).sum(axis=(1, 2)).min() >= 16  # a square of half the height
    entry = comparison.trained_entry(trained, test, inputs)
    error = np.asarray(entry.outputs, np.float64) - test / 255
    (row,) = comparison.summaries([entry])
    assert row["mse"].mean == pytest.approx((error**2).mean(), rel=1e-5)
    assert -1 <= row["ssim"].mean <= 1
    curves = comparison.robustness_curves([trained], test, "occlusion")
    assert [level for level, _ in curves["photos"]] == [1, 2, 3, 4, 5, 6, 8]
    function, grid = baselines.DENOISERS["median"]
    monkeypatch.setattr(baselines, "DENOISERS", {"median": (function, grid[:1])})
    monkeypatch.setattr(baselines, "workers", lambda: contextlib.nullcontext(InThisProcess()))
    tuning = images[:16], comparison.noisy_images(images[:16], "occlusion", seed=1)
    (median,) = comparison.baseline_entries(tmp_path / "cache", tuning, test, inputs)
    assert median.outputs.shape == test.shape
    figures.save_rows(tmp_path / "a.png", comparison.first_rows([entry, median], test))
    figures.save_rows(tmp_path / "b.png", comparison.worst_rows([entry], test, inputs))


@pytest.mark.parametrize("name", comparison.DATA_FIELDS)
def test_runs_of_other_images_are_not_compared(name):
    values = {"image_size": (8, 8), "channels": 3, "image_shape": (8, 8, 1)}
    values |= {"data": "mnist", "resize": "fit", "background": "white", "split": 0.5}
    values["pairs"] = "noisy", "clean"
    values |= dict.fromkeys(("include", "exclude"), ("*.png",))
    values |= {"black": 1.0, "white": 9.0, "frames": "all"}
    other = cae_jax.TrainConfig(**{name: values.get(name, True)})
    comparison.check_same_images([cae_jax.TrainConfig(), cae_jax.TrainConfig(seed=1, noise="mix")])
    with pytest.raises(cae_jax.UserError, match=f"were trained with {name} "):
        comparison.check_same_images([cae_jax.TrainConfig(), other])
