"""Populations on disk: what `fit_population` leaves, resumes and refuses."""

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import cae_jax
from benchmarks.kill_and_resume import final, stress
from cae_jax.cli.train import members as configs_of
from cae_jax.config import resolved
from cae_jax.evaluation import members as comparison
from cae_jax.report import collect
from cae_jax.runs import history, journal, members
from cae_jax.runs.members import Member
from cae_jax.training.trainer import Trainer
from cae_jax.training.validation import Validation
from tests.conftest import DENSE, SMALL, needs_native, signal_in_chunk
from tests.runs.test_reliability import TRAIN, assert_same_end

CONFIGS = [dataclasses.replace(DENSE, seed=seed) for seed in (0, 4)]
NAMES = ["seed=0", "seed=4"]
# The second member has a loss that is not finite from its fourth step on.
DIVERGING = [dataclasses.replace(DENSE, learning_rate=rate) for rate in (2e-2, 1e37)]


@pytest.fixture(scope="module")
def population(tmp_path_factory, data_dir) -> Path:
    """The folder of a finished population of the config DENSE."""
    folder = tmp_path_factory.mktemp("many") / "population"
    cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir, dense_run) -> list[Path]:
    """The folders of the runs of its members, each trained by `fit`."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    cae_jax.fit(CONFIGS[1], folder, data_dir=data_dir)
    return [dense_run, folder]


def row(epoch, val_loss, step=None):
    return history.Row(epoch, step or 8 * epoch, 0.5, val_loss, 10.0, None, 0, 1.0, 1000.0)


def test_members_are_the_runs_that_each_would_have_been(population, alone):
    for name, expected in zip(NAMES, alone, strict=True):
        assert_same_end(population / name, expected)
        theirs = {path.name for path in expected.iterdir()}
        assert {path.name for path in (population / name).iterdir()} == theirs
        for file in ("config.json", "environment.json", "summary.txt"):
            assert (population / name / file).read_text() == (expected / file).read_text()
    names = {".cae-jax", "members.json", "environment.json", *NAMES}
    assert {path.name for path in population.iterdir()} == names


@pytest.mark.slow
@needs_native
def test_convolutional_members_have_the_bits_of_runs_alone(run, data_dir, tmp_path):
    configs = [dataclasses.replace(SMALL, seed=seed) for seed in (0, 1)]
    cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir, chunk_steps=5)
    assert_same_end(tmp_path / "many" / "seed=0", run)
    cae_jax.fit(configs[1], tmp_path / "one", data_dir=data_dir)
    assert_same_end(tmp_path / "many" / "seed=1", tmp_path / "one")


@pytest.mark.slow
def test_members_by_one_program_end_near_the_runs_alone(alone, data_dir, tmp_path):
    folder = tmp_path / "together"
    cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir, members_per_program=2)
    for name, expected in zip(NAMES, alone, strict=True):
        ours, theirs = (history.read(run / "history.csv") for run in (folder / name, expected))
        for a, b in zip(ours, theirs, strict=True):
            assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)
            assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_a_member_is_a_run_like_any_other(population, data_dir, test_images, tmp_path, command):
    member = shutil.copytree(population / "seed=4", tmp_path / "member")
    loaded = cae_jax.load(member)
    assert loaded.config == resolved(CONFIGS[1])
    assert loaded.reconstruct(test_images[:2]).shape == (2, 28, 28, 1)
    longer = dataclasses.replace(CONFIGS[1], epochs=3)
    assert len(cae_jax.fit(longer, member, data_dir=data_dir).history) == 3
    shown = command("curves", population / "seed=0", population / "seed=4")
    assert "seed=4" in shown.stdout


def test_the_result_in_memory_is_that_on_disk(population, data_dir, test_images, capsys):
    result = cae_jax.fit_population(CONFIGS, population, data_dir=data_dir)
    assert "is finished after 2 epochs" in capsys.readouterr().out
    assert list(result.members) == list(result.autoencoders) == NAMES
    for name, autoencoder in result.autoencoders.items():
        there = cae_jax.load(population / name)
        for images in (test_images[:2], test_images[2:5]):
            ours, theirs = (each.reconstruct(images) for each in (autoencoder, there))
            np.testing.assert_array_equal(ours, theirs)
        assert result.members[name].rows == history.of_run(population / name)
        assert autoencoder.config == there.config
    first, second = result.autoencoders.values()
    assert first._passes is second._passes  # compiled once
    jax.tree.map(np.testing.assert_array_equal, nnx.state(second.model, nnx.Param), second.params)


def test_a_member_is_a_run_while_others_train(data_dir, tmp_path, test_images):
    """At the first chunk of the second member the first is whole; the second has its files."""
    folder, seen = tmp_path / "many", []

    def look(step):
        if (folder / "seed=4").exists() and not seen:
            losses = {name: each.val_loss for name, each in members.of_population(folder).items()}
            shown = cae_jax.load(folder / "seed=0").reconstruct(test_images[:1])
            seen.append((losses, shown.shape, (folder / "seed=4" / "config.json").exists()))

    result = cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir, on_chunk=look)
    (losses, shape, has_config), *_ = seen
    assert losses["seed=0"] == result.members["seed=0"].val_loss
    assert math.isnan(losses["seed=4"])
    assert (shape, has_config) == ((1, 28, 28, 1), True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "where", "step", "size"),
    [
        (1, "seed=0", 3, 1),
        (3, "seed=0", 8, 1),
        (11, "seed=4", 14, 1),
        (12, "seed=4", 16, 1),
        (5, "", 14, 2),
    ],
)
def test_an_interrupted_population_resumes_to_the_same_bits(
    chunk, where, step, size, population, data_dir, tmp_path, capsys
):
    folder, options = tmp_path / "many", {"data_dir": data_dir, "members_per_program": size}
    on_chunk = signal_in_chunk(chunk)
    result = cae_jax.fit_population(CONFIGS, folder, chunk_steps=3, on_chunk=on_chunk, **options)
    assert result.interrupted == signal.SIGINT
    assert (
        f"SIGINT after step {step} of 16, which {folder / where} keeps" in capsys.readouterr().out
    )
    assert (folder / "seed=0").exists() == (size == 1)
    assert cae_jax.fit_population(CONFIGS, folder, **options).interrupted is None
    if size > 1:  # the same program, undisturbed
        population = tmp_path / "undisturbed"
        cae_jax.fit_population(CONFIGS, population, **options)
        assert not list(folder.glob(".cae-jax-group-*"))
    for name in NAMES:
        assert_same_end(folder / name, population / name)


@pytest.mark.slow
def test_a_population_that_broke_off_while_runs_were_written(population, data_dir, tmp_path):
    """Of the second member nothing or half is there, and it is not finished."""
    for keep in ((), ("config.json", "checkpoints"), (".cae-jax",)):
        folder = tmp_path / f"many{len(keep)}{'c' if '.cae-jax' in keep else ''}"
        shutil.copytree(population, folder)
        for path in (folder / "seed=4").iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not keep:
            (folder / "seed=4").rmdir()
        cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir)
        assert_same_end(folder / "seed=4", population / "seed=4")
        assert (folder / "seed=4" / "result.json").exists()


@pytest.mark.slow
def test_members_may_be_given_in_another_order(data_dir, tmp_path):
    """Their states are those of their names, whatever the order of seeds or of swept fields."""
    seeds = (0, 4, 7)
    configs = [dataclasses.replace(DENSE, seed=seed) for seed in seeds]
    cae_jax.fit_population(configs, tmp_path / "undisturbed", data_dir=data_dir)
    options = {"chunk_steps": 3, "on_chunk": signal_in_chunk(8)}
    cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir, **options)
    result = cae_jax.fit_population(configs[::-1], tmp_path / "many", data_dir=data_dir)
    for name in [f"seed={seed}" for seed in seeds]:
        assert_same_end(tmp_path / "many" / name, tmp_path / "undisturbed" / name)
        assert result.autoencoders[name].config == result.members[name].config
        assert result.members[name].config.seed == int(name[5:])


@pytest.mark.slow
def test_a_group_that_broke_off_while_runs_were_written(data_dir, tmp_path, monkeypatch):
    """Of the second member nothing is there; the checkpoint of the group gives it."""
    options = {"data_dir": data_dir, "members_per_program": 2}
    cae_jax.fit_population(CONFIGS, tmp_path / "whole", **options)
    calls = []

    def write_one(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    original = journal.Journal.restate
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "restate", write_one)
        with pytest.raises(KeyboardInterrupt):
            cae_jax.fit_population(CONFIGS, tmp_path / "many", **options)
    group = tmp_path / "many" / ".cae-jax-group-0"
    assert group.exists()
    # As after a kill while the second member's checkpoint was written.
    (tmp_path / "many" / "seed=4" / "checkpoints" / "16.tmp" / "params").mkdir(parents=True)
    cae_jax.fit_population(CONFIGS, tmp_path / "many", **options)
    assert not group.exists()
    group.mkdir()  # as after a kill before the end
    cae_jax.fit_population(CONFIGS, tmp_path / "many", **options)
    assert not group.exists()
    for name in NAMES:
        assert_same_end(tmp_path / "many" / name, tmp_path / "whole" / name)
    with pytest.raises(cae_jax.UserError, match="`members_per_program`"):
        cae_jax.fit_population(CONFIGS, tmp_path / "many", **{**options, "members_per_program": 1})


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_an_epoch(population, data_dir, tmp_path, capsys):
    folder = Path(shutil.copytree(population, tmp_path / "many"))
    run = shutil.copytree(population / "seed=4", tmp_path / "first")
    (folder / "seed=4" / "result.json").unlink()
    cae_jax.fit(dataclasses.replace(CONFIGS[1], epochs=1), tmp_path / "one", data_dir=data_dir)
    file = next(path for path in (folder / "seed=4/checkpoints/16").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes() + b"x")
    cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir)
    assert "resuming after step 8" in capsys.readouterr().err
    assert_same_end(folder / "seed=4", run)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_member_that_is_not_finite_is_stopped_and_named(
    size, population, data_dir, tmp_path, capsys
):
    """It diverges in its first epoch: there is no good checkpoint of it."""
    folder = tmp_path / "many"
    result = cae_jax.fit_population(DIVERGING, folder, data_dir=data_dir, members_per_program=size)
    good, bad = result.members
    assert f"{bad} is stopped: step " in capsys.readouterr().err
    assert list(result.autoencoders) == [good]
    assert result.members[bad].stopped_at is not None
    assert math.isnan(result.members[bad].val_loss)
    if size == 1:
        assert_same_end(folder / good, population / "seed=0")
    assert not list((folder / bad).glob("checkpoints/*"))
    assert f"not finite at step {result.members[bad].stopped_at}" in comparison.summary(
        result.members
    )
    again = cae_jax.fit_population(DIVERGING, folder, data_dir=data_dir, members_per_program=size)
    assert again.members[bad].stopped_at == result.members[bad].stopped_at
    assert again.members[good].rows == result.members[good].rows


@pytest.mark.slow
def test_a_stopped_member_keeps_its_last_good_checkpoint(
    population, data_dir, tmp_path, monkeypatch
):
    """The second member's parameters become NaN in the second epoch."""
    run = Trainer.run

    def poison(self, state, *arguments):
        if self.members[0].seed == 4 and int(state.step) == 11:
            state = state._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
        return run(self, state, *arguments)

    monkeypatch.setattr(Trainer, "run", poison)
    folder = tmp_path / "many"
    result = cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir, chunk_steps=3)
    assert result.members["seed=4"].stopped_at == 12
    assert [row.epoch for row in result.members["seed=4"].rows] == [1]
    assert_same_end(folder / "seed=0", population / "seed=0")
    # An ordinary run after its first epoch, which goes on alone.
    assert [path.name for path in (folder / "seed=4" / "checkpoints").iterdir()] == ["8"]
    monkeypatch.undo()
    cae_jax.fit(CONFIGS[1], folder / "seed=4", data_dir=data_dir)
    assert_same_end(folder / "seed=4", population / "seed=4")
    # It is another's by now: the population leaves it alone.
    before = final(folder / "seed=4")
    cae_jax.fit_population(CONFIGS, folder, data_dir=data_dir)
    assert final(folder / "seed=4") == before


@pytest.mark.slow
@pytest.mark.parametrize("step", [11, 14])  # within the last epoch, and in its last chunk
def test_a_signal_while_a_member_is_stopped(step, data_dir, tmp_path, monkeypatch):
    """What is saved then has its state after it was stopped, which must not come back."""
    options = {"data_dir": data_dir, "chunk_steps": 3, "members_per_program": 2}
    cae_jax.fit_population(CONFIGS, tmp_path / "whole", **options)
    folder, run = tmp_path / "many", Trainer.run

    def poison(self, state, *arguments):
        chunk = run(self, state, *arguments)
        if int(state.step) != step:
            return chunk
        signal.raise_signal(signal.SIGINT)
        nan = jax.tree.map(lambda leaf: leaf.at[1].mul(np.nan), chunk.state.params)
        return chunk._replace(
            state=chunk.state._replace(params=nan), finite_M=np.array([True, False])
        )

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", poison)
        first = cae_jax.fit_population(CONFIGS, folder, **options)
    assert first.interrupted == signal.SIGINT
    result = cae_jax.fit_population(CONFIGS, folder, **options)
    assert result.members["seed=4"].stopped_at == min(step + 3, 16)
    assert list(result.autoencoders) == ["seed=0"]
    assert [path.name for path in (folder / "seed=4" / "checkpoints").iterdir()] == ["8"]
    assert not (folder / "seed=4" / "result.json").exists()
    assert_same_end(folder / "seed=0", tmp_path / "whole" / "seed=0")


def test_a_validation_loss_that_is_not_finite_stops_a_member(
    population, data_dir, tmp_path, monkeypatch
):
    evaluate = Validation.evaluate

    def overflow(self, params):
        [score] = evaluate(self, params)
        return [score._replace(val_loss=np.inf) if self._members[0].seed == 4 else score]

    monkeypatch.setattr(Validation, "evaluate", overflow)
    result = cae_jax.fit_population(CONFIGS, tmp_path / "many", data_dir=data_dir)
    assert result.members["seed=4"].stopped_at == 8
    assert list(result.autoencoders) == ["seed=0"]
    assert_same_end(tmp_path / "many" / "seed=0", population / "seed=0")


@pytest.mark.slow
def test_skipped_updates_do_not_stop_a_member(data_dir, tmp_path):
    """The second member skips every update from its first steps on, and more than `max_skips`."""
    configs = [dataclasses.replace(each, on_nan="skip", max_skips=2) for each in DIVERGING]
    result = cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir, chunk_steps=4)
    good, bad = result.members.values()
    assert good.stopped_at is None
    assert bad.stopped_at in (4, 8)  # the end of a chunk: which update was one too many is open


def test_without_a_member_left_it_ends(data_dir, tmp_path):
    configs = [dataclasses.replace(each, learning_rate=1e37) for each in CONFIGS]
    with pytest.raises(cae_jax.UserError, match=r"all members of .* lower `learning_rate`"):
        cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir)


@pytest.mark.slow
def test_images_in_memory(test_images, tmp_path):
    images = test_images[:1000], test_images[1000:1300]
    configs = [dataclasses.replace(each, train_examples=None) for each in CONFIGS]
    result = cae_jax.fit_population(configs, tmp_path / "many", images=images)
    assert {member.config.data for member in result.members.values()} == {"arrays"}
    assert cae_jax.load(tmp_path / "many" / "seed=0").config.data == "arrays"
    with pytest.raises(cae_jax.UserError, match="began with other images than"):
        cae_jax.fit_population(
            configs,
            shutil.copytree(tmp_path / "many", tmp_path / "copy", ignore=lambda *_: NAMES),
            images=(images[0][::-1], images[1]),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configs": CONFIGS[:1]}, "differs in its members (2 there, 1 now; such as seed=4)"),
        (
            {"configs": [dataclasses.replace(each, epochs=9) for each in CONFIGS]},
            "differs in epochs (2 there, 9 now)",
        ),
        ({"overwrite": True}, "holds a population with runs such as seed=0, which would be lost"),
        ({"configs": []}, "`configs` is empty"),
        ({"members_per_program": 0}, "`members_per_program` is 0"),
        ({"members_per_program": 10**9}, "fit: each takes about"),
        ({"chunk_steps": 0}, "`chunk_steps` is 0"),
    ],
)
def test_refused(change, message, population, data_dir):
    before = {path: path.stat().st_mtime_ns for path in population.rglob("*") if path.is_file()}
    before.pop(population / ".cae-jax")
    arguments = {"configs": CONFIGS, **change}
    with pytest.raises(cae_jax.UserError) as error:
        cae_jax.fit_population(arguments.pop("configs"), population, data_dir=data_dir, **arguments)
    assert message in str(error.value)
    for path, time in before.items():
        assert path.stat().st_mtime_ns == time


@needs_native
def test_the_native_kernel_computes_one_member_at_a_time(data_dir, tmp_path):
    configs = [dataclasses.replace(SMALL, seed=seed) for seed in (0, 1)]
    with pytest.raises(cae_jax.UserError, match="one member at a time"):
        cae_jax.fit_population(configs, tmp_path / "x", data_dir=data_dir, members_per_program=2)
    assert not (tmp_path / "x").exists()


def test_a_run_and_a_population_do_not_share_a_directory(population, copied, data_dir, tmp_path):
    with pytest.raises(cae_jax.UserError, match="holds a population; choose another"):
        cae_jax.fit(CONFIGS[0], population, data_dir=data_dir)
    with pytest.raises(cae_jax.UserError, match="holds a population; choose another"):
        cae_jax.fit(CONFIGS[0], population, data_dir=data_dir, overwrite=True)
    assert (population / "members.json").exists()
    with pytest.raises(cae_jax.UserError, match="holds a run; choose another"):
        cae_jax.fit_population(CONFIGS, copied, data_dir=data_dir)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / ".cae-jax").write_text("cae-jax run 1\n")
    (tmp_path / "file" / "seed=4").write_text("")
    with pytest.raises(cae_jax.UserError, match="seed=4 is not a run"):
        cae_jax.fit_population(CONFIGS, tmp_path / "file", data_dir=data_dir)
    with pytest.raises(cae_jax.UserError, match="is a population; pass one of its members"):
        cae_jax.load(population)
    (tmp_path / "many" / "seed=0").mkdir(parents=True)
    (tmp_path / "many" / ".cae-jax").write_text("cae-jax run 1\n")
    (tmp_path / "many" / "seed=0" / "thesis.txt").write_text("mine")
    with pytest.raises(cae_jax.UserError, match="is not empty and not a run of cae-jax"):
        cae_jax.fit_population(CONFIGS, tmp_path / "many", data_dir=data_dir)
    assert (tmp_path / "many" / "seed=0" / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_population_may_replace_a_run(copied, population, data_dir):
    cae_jax.fit_population(CONFIGS, copied, data_dir=data_dir, overwrite=True)
    assert not (copied / "config.json").exists()
    assert_same_end(copied / "seed=4", population / "seed=4")


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"[]", b'{"format": 1}', b'{"format": 1, "members": {"a": {"x": 1}}}', b"\xff"),
        b'{"format": 1, "members": {}, "stopped": {}}',
        b'{"format": 1, "members": {"a": {}}, "stopped": 5}',
        b'{"format": 1, "members": {"a": {}}, "stopped": {"b": 1}}',
        b'{"format": 1, "members": {"a": {}}, "stopped": {}, "per_program": 0}',
    ],
)
def test_damaged_members_are_refused(damage, tmp_path):
    (tmp_path / "members.json").write_bytes(damage)
    with pytest.raises(cae_jax.UserError, match=r"members.json cannot be used .*restore it"):
        members.read(tmp_path)
    (tmp_path / "members.json").write_text('{"format": 2, "people": {}}')
    with pytest.raises(cae_jax.UserError, match="update cae-jax"):
        members.read(tmp_path)


def test_members_are_named_by_what_differs():
    assert list(members.name_members(CONFIGS)) == NAMES
    swept = configs_of(DENSE, (0, 1), ("learning_rate=1e-2,5e-4", "b2=0.9"))
    assert list(members.name_members(swept)) == [
        "learning_rate=0.01_seed=0",
        "learning_rate=0.01_seed=1",
        "learning_rate=0.0005_seed=0",
        "learning_rate=0.0005_seed=1",
    ]
    assert {config.b2 for config in swept} == {0.9}


def test_the_interval_is_students():
    values = [0.2712, 0.2719, 0.2708, 0.2731]
    mean, error = np.mean(values), scipy.stats.sem(values)
    expected = scipy.stats.t.interval(0.95, df=3, loc=mean, scale=error)
    assert comparison.interval(values) == pytest.approx(expected)


def test_the_table_of_members():
    configs = configs_of(DENSE, (0, 1), ("b1=0.9,0.8",))
    histories = [[row(1, 0.5), row(2, 0.3)], [row(1, 0.25), row(2, 0.26)], [row(1, 0.4)], []]
    stopped = [None, None, 9, 3]
    named = {
        name: Member(config, rows, step)
        for (name, config), rows, step in zip(
            members.name_members(configs).items(), histories, stopped, strict=True
        )
    }
    text = comparison.summary(named).splitlines()
    assert text[0] == "Best: b1=0.9_seed=1, val_loss 0.2600. Median of 2 members: 0.2800."
    low, high = comparison.interval([0.3, 0.26])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text if "|" in line]
    # The other setting has no two members that are finite.
    assert cells[2] == ["0.9", "2", "0.2600", "0.2800", "0.2800", f"{low:.4f} to {high:.4f}"]
    assert cells[5:] == [
        ["b1=0.9_seed=1", "2", "0.2600", "0.2500 (1)", "10.00", ""],
        ["b1=0.9_seed=0", "2", "0.3000", "0.3000 (2)", "10.00", ""],
        ["b1=0.8_seed=0", "1", "0.4000", "0.4000 (1)", "10.00", "not finite at step 9"],
        ["b1=0.8_seed=1", "0", "-", "-", "-", "not finite at step 3"],
    ]
    assert comparison.panels(named) == {"b1": [(0.9, 0.26), (0.9, 0.3)]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep", "b2"], "--sweep has 'b2'; it takes FIELD=VALUE,VALUE"),
        (["--sweep", "lr=1,2"], "unknown config key 'lr'"),
        (["--sweep", "b2=2,3"], "--b2 is 2.0; it takes a number from 0 to below 1"),
        (["--sweep", "seed=1,2", "--seeds", "1"], "--sweep has seed; leave it out, or --seeds"),
        (["--sweep", "batch_size=64,128"], "--batch-size differs among the members (64, 128)"),
        (["--seeds", "1", "1"], "two members have the same config"),
        (["--sweep", "b2=0.9", "b2=0.8"], "--sweep has a field twice"),
        (["--members-per-program", "2"], "--members-per-program is for --seeds and --sweep"),
        (["--seeds", "1", "2", "--from", "x"], "--from is for one run"),
    ],
)
def test_refused_on_the_command_line(flags, message, refuse):
    done = refuse("train", "--workdir", "x", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("x").exists()


@pytest.mark.slow
def test_the_command_trains_many(script, population, tmp_path):
    flags = ["--config", "simple", "--seeds", 0, 4, "--workdir", "many"]
    values = {"train_examples": 1000, "test_examples": 300, "epochs": 2, "optimizer": "adam"}
    values |= {"learning_rate": 2e-2, "warmup_steps": 4, "b2": 0.99}
    for name, value in values.items():
        flags += [f"--{name.replace('_', '-')}", value]
    done = script("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2 - " in done.stdout
    assert "Best: seed=" in done.stdout
    for name in NAMES:
        assert_same_end(tmp_path / "many" / name, population / name)
    assert "Best: seed=" in (tmp_path / "many" / "members.md").read_text()
    assert (tmp_path / "many" / "members.png").stat().st_size > 10_000


@pytest.mark.slow
def test_kills_of_a_population_do_not_change_a_bit(data_dir, tmp_path, capsys):
    small = ["--train-examples", "1000", "--test-examples", "300", "--epochs", "8"]
    small += ["--config", "simple", "--optimizer", "adam"]  # which compile soon
    command = [*TRAIN, *small, "--seeds", "0", "1", "2", "--data-dir", str(data_dir)]
    stress(command, tmp_path / "stress", kills=4, fresh=False)
    assert "all ended with the same bits" in capsys.readouterr().out


# Fields that an optimizer uses, with values that are no float32.
SWEPT = {
    "adam": {"b2": (0.9713, 0.97), "eps": (1e-8, 1.3e-7), "learning_rate": (1e-2, 0.0137)},
    "soap": {"b1": (0.9, 0.873), "b2": (0.95, 0.9713), "learning_rate": (1e-2, 0.0137)},
    "nadam": {"b1": (0.9, 0.873), "eps": (1e-8, 1.3e-7)},
    "adamw": {"weight_decay": (0.0, 0.00123), "b1": (0.9, 0.873)},
    "adadelta": {"rho": (0.95, 0.937)},
    "sgd": {"momentum": (0.9, 0.77)},
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SWEPT)
def test_swept_numbers_share_a_program_and_have_the_bits_of_runs_alone(
    optimizer, monkeypatch, data_dir, tmp_path
):
    base = dataclasses.replace(DENSE, optimizer=optimizer, clip_norm=0.7)
    configs = [
        dataclasses.replace(base, **dict(zip(SWEPT[optimizer], values, strict=True)))
        for values in zip(*SWEPT[optimizer].values(), strict=True)
    ]
    compiled, original = [], Trainer._compile
    monkeypatch.setattr(
        Trainer, "_compile", lambda *args: (compiled.append(args), original(*args))[1]
    )
    population = cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir)
    assert len(compiled) == 1
    cae_jax.fit(configs[1], tmp_path / "alone", data_dir=data_dir)
    assert_same_end(tmp_path / "many" / [*population.members][1], tmp_path / "alone")


@pytest.fixture
def many(population, tmp_path) -> Path:
    """A copy of `population`, which a test may change."""
    return Path(shutil.copytree(population, tmp_path / "many"))


def damage_all(checkpoints):
    for path in checkpoints.glob("*/manifest.json"):
        path.write_text("{}")


def test_without_a_damaged_list_of_members_the_runs_are_taken_up(many, data_dir):
    before = {path: path.stat().st_mtime_ns for path in many.rglob("manifest.json")}
    (many / "members.json").write_bytes(b"{")
    advice = r"members.json cannot be used .* or remove it and repeat the training"
    with pytest.raises(cae_jax.UserError, match=advice):
        members.of_population(many)
    (many / "members.json").unlink()
    result = cae_jax.fit_population(CONFIGS, many, data_dir=data_dir)
    assert [*result.autoencoders] == NAMES
    assert {path: path.stat().st_mtime_ns for path in many.rglob("manifest.json")} == before


@pytest.mark.parametrize("other", ["config", "images"])
def test_a_run_at_the_place_of_a_member_is_not_counted(many, dense_run, data_dir, other):
    run = many / "seed=4"
    if other == "config":
        shutil.rmtree(run)
        shutil.copytree(dense_run, run)
    else:
        for folder, digest in ((many, "ours"), (run, "others"), (many / "seed=0", "ours")):
            environment = json.loads((folder / "environment.json").read_text())
            (folder / "environment.json").write_text(json.dumps({**environment, "images": digest}))
    message = r"seed=4 is not the member of that name but a run of another .* move it elsewhere"
    counts = [
        lambda: members.of_population(many),
        lambda: members.is_written(many, "seed=4", resolved(CONFIGS[1])),
        lambda: cae_jax.fit_population(CONFIGS, many, data_dir=data_dir),
    ]
    for count in counts if other == "config" else counts[:2]:
        with pytest.raises(cae_jax.UserError, match=message):
            count()
    run.rename(many.parent / "mine")
    found = members.of_population(many)
    assert found is not None
    assert [len(member.rows) for member in found.values()] == [2, 0]


@pytest.mark.slow
def test_a_member_with_damaged_checkpoints_is_trained_again_once_removed(many, data_dir):
    run = many / "seed=4"
    expected = shutil.copytree(run, many.parent / "expected")
    (run / "result.json").unlink()
    damage_all(run / "checkpoints")
    with pytest.raises(cae_jax.UserError, match=f"or remove {run} and train again$"):
        cae_jax.fit_population(CONFIGS, many, data_dir=data_dir)
    shutil.rmtree(run)
    cae_jax.fit_population(CONFIGS, many, data_dir=data_dir)
    assert_same_end(run, expected)


@pytest.mark.slow
def test_a_group_with_damaged_checkpoints_is_trained_again_once_removed(data_dir, tmp_path):
    options = {"data_dir": data_dir, "members_per_program": 2}
    cae_jax.fit_population(CONFIGS, tmp_path / "whole", **options)
    stop = signal_in_chunk(2)
    cae_jax.fit_population(CONFIGS, tmp_path / "many", chunk_steps=5, on_chunk=stop, **options)
    group = tmp_path / "many" / ".cae-jax-group-0"
    damage_all(group / "checkpoints")
    with pytest.raises(cae_jax.UserError, match=f"or remove {group} and train again$"):
        cae_jax.fit_population(CONFIGS, tmp_path / "many", **options)
    shutil.rmtree(group)
    cae_jax.fit_population(CONFIGS, tmp_path / "many", **options)
    for name in NAMES:
        assert_same_end(tmp_path / "many" / name, tmp_path / "whole" / name)


def test_a_population_without_a_finite_member_is_called_that():
    stopped = {name: Member(CONFIGS[0], [row(1, 0.3)], 9) for name in NAMES}
    assert comparison.headline(stopped) == "All members became non-finite."
    with pytest.raises(cae_jax.UserError, match="all members of many became non-finite; train oth"):
        collect._shown(Path("many"), stopped)
    waiting = {**stopped, "seed=4": Member(CONFIGS[1], [])}
    with pytest.raises(cae_jax.UserError, match="has completed an epoch; wait"):
        collect._shown(Path("many"), waiting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"rho": 0.9}, {"rho": 0.8}], "`rho` has no effect with optimizer adam; leave it out"),
        ([{"momentum": 0.9}, {}], "`momentum` has no effect with optimizer adam"),
    ],
)
def test_a_sweep_over_what_the_optimizer_ignores_is_refused(changes, message, tmp_path):
    configs = [dataclasses.replace(DENSE, **each) for each in changes]
    with pytest.raises(cae_jax.UserError, match=message):
        cae_jax.fit_population(configs, tmp_path / "many")
    assert not (tmp_path / "many").exists()
