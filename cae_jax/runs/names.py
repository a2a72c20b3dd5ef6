"""Names runs in tables and figures."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def run_names(runs: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """Names each run by the shortest end of its path that no other run shares.

    ``runs/lr0.01`` is ``lr0.01``; next to ``b/trial``, ``a/trial`` keeps its folder. A path that is
    given twice has one name.

    Args:
        runs: paths of runs, or of files of runs.
        taken: names of other rows or curves.
    """
    # Not resolved: a link keeps the name by which the user knows the run.
    paths = [Path(os.path.abspath(run)).parts for run in runs]  # noqa: PTH100

    def name(path: tuple[str, ...]) -> str:
        others = {*paths, *((name,) for name in taken)} - {path}
        for length in range(1, len(path)):
            if all(other[-length:] != path[-length:] for other in others):
                return "/".join(path[-length:])
        return Path(*path).as_posix()

    return [name(path) for path in paths]
