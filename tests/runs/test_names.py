"""Names of runs: short, and never equal for two runs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_jax.runs.names import run_names


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["runs/lr0.01", "runs/lr0.02"], ["lr0.01", "lr0.02"]),
        (["a/trial", "b/trial", "b/other"], ["a/trial", "b/trial", "other"]),
        (["x/a/trial", "y/a/trial", "a/trial/"], ["x/a/trial", "y/a/trial", "home/a/trial"]),
        ([".", "../other"], ["home", "other"]),
        (["/trial", "a/trial"], ["/trial", "a/trial"]),
        (["/"], ["/"]),
        (["a/../b"], ["b"]),
        (["a", "./a"], ["a", "a"]),
        ([], []),
    ],
)
def test_the_shortest_end_of_a_path_that_no_other_has(tmp_path, monkeypatch, runs, names):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    assert run_names(list(map(Path, runs))) == names


def test_a_name_that_is_taken_gets_its_folder():
    assert run_names([Path("runs/clean"), Path("runs/x")], taken=["clean"]) == ["runs/clean", "x"]


@given(st.sets(st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map("/".join)))
def test_two_runs_never_share_a_name(paths):
    assert len(set(run_names([Path(path) for path in paths]))) == len(paths)
