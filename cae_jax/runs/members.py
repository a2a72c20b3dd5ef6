"""The members of a population: their names, their configs on disk, and how good they are.

``members.json`` makes a directory that of a population. Next to it `write_summary` puts
``members.md``, a table, and ``members.png``, a figure.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cae_jax import atomic, markdown
from cae_jax.config import TrainConfig, from_dict, to_dict
from cae_jax.errors import UserError
from cae_jax.runs import history, manifest
from cae_jax.runs.folder import MEMBERS
from cae_jax.training.population import swept


class Member(NamedTuple):
    """A member and its history.

    Attributes:
        config: of the member.
        rows: one for each epoch that it completed.
        stopped_at: the step since the start of training at which it became not finite; None if it
            did not.
    """

    config: TrainConfig
    rows: list[history.Row]
    stopped_at: int | None = None

    @property
    def val_loss(self) -> float:
        """The last one; NaN where there is none."""
        return self.rows[-1].val_loss if self.rows and self.stopped_at is None else math.nan


def name_members(configs: Sequence[TrainConfig]) -> dict[str, TrainConfig]:
    """Members by name: the fields in which they differ, such as ``learning_rate=0.01_seed=3``.

    The name always has the seed.
    """
    fields = [*swept(configs), "seed"]
    return {
        "_".join(f"{field}={getattr(config, field)}" for field in fields): config
        for config in configs
    }


class Members(NamedTuple):
    """What ``members.json`` holds.

    Attributes:
        configs: by name, in the order of the arrays of a checkpoint.
        stopped: name of a stopped member to the step at which it became not finite.
        ended: whether the runs of the members and the summary are written.
    """

    configs: dict[str, TrainConfig]
    stopped: dict[str, int]
    ended: bool


def read(folder: Path) -> Members | None:
    """Reads the members of a population; None if the directory is not one.

    Raises:
        UserError: the file is damaged or of a later version.
    """
    path = folder / MEMBERS
    try:
        values = json.loads(path.read_bytes())
        if values["format"] <= manifest.FORMAT:
            configs = {name: from_dict(config) for name, config in values["members"].items()}
            stopped = {name: int(step) for name, step in values["stopped"].items()}
            if not configs or not configs.keys() >= stopped.keys():
                raise ValueError("it has no members, or others that are stopped")
            return Members(configs, stopped, bool(values["ended"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    # ValueError comes from JSON and TrainConfig, RecursionError from nested brackets.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be used ({error}); restore it from a copy, or train in another "
            "`workdir`"
        ) from error
    raise UserError(
        f"{folder} has format {values['format']} and this version reads up to {manifest.FORMAT}; "
        "update cae-jax"
    )


def write(folder: Path, members: Members) -> None:
    """Writes the members, which makes the directory that of a population."""
    configs = {name: to_dict(config) for name, config in members.configs.items()}
    values = {"members": configs, "stopped": members.stopped, "ended": members.ended}
    atomic.write_json(folder / MEMBERS, {"format": manifest.FORMAT, **values})


def of_population(folder: Path) -> dict[str, Member] | None:
    """The members of a population with the histories of their runs; None if it is not one.

    Raises:
        UserError: its training has not ended, or a file is damaged.
    """
    if (there := read(folder)) is None:
        return None
    if not there.ended:
        raise UserError(
            f"{folder} is a population whose training has not ended; repeat its `cae-jax train`, "
            "or pass runs of its members"
        )
    return {
        name: Member(config, history.of_run(folder / name), there.stopped.get(name))
        for name, config in there.configs.items()
    }


def write_summary(folder: Path, members: Mapping[str, Member]) -> None:
    """Writes the table and the figure of the members, then that the population has ended."""
    from cae_jax import figures  # matplotlib takes a second to import

    atomic.write_text(folder / "members.md", summary(members) + "\n")
    curves = {
        name: [(row.epoch, row.val_loss) for row in member.rows]
        for name, member in members.items()
        if member.rows
    }
    if curves:
        figures.save_members(folder / "members.png", curves, panels(members))
    configs = {name: member.config for name, member in members.items()}
    stopped = {
        name: member.stopped_at for name, member in members.items() if member.stopped_at is not None
    }
    write(folder, Members(configs, stopped, ended=True))


def summary(members: Mapping[str, Member]) -> str:
    """The members in comparison as Markdown: `headline`, `settings` if there are any, `rows`."""
    tables = [table for table in (settings(members), rows(members)) if len(table) > 1]
    return "\n\n".join(
        [headline(members), *(markdown.table(header, cells) for header, *cells in tables)]
    )


def ranked(members: Mapping[str, Member]) -> list[str]:
    """The names of the members by loss, those without one last."""

    def key(name: str) -> tuple[bool, float]:
        loss = members[name].val_loss
        return (not math.isfinite(loss), loss if math.isfinite(loss) else 0.0)

    return sorted(members, key=key)


def headline(members: Mapping[str, Member]) -> str:
    """The best and the median member, in a sentence or two."""
    losses = [member.val_loss for member in members.values() if math.isfinite(member.val_loss)]
    if not losses:
        return "No member has completed an epoch."
    return (
        f"Best: {ranked(members)[0]}, val_loss {min(losses):.4f}. Median of {len(losses)} members: "
        f"{statistics.median(losses):.4f}."
    )


def rows(members: Mapping[str, Member]) -> list[list[str]]:
    """The table of the members by loss, its header first."""
    header = ["member", "epochs", "val_loss", "lowest (epoch)", "val_psnr, dB", ""]
    return [header, *(_row(name, members[name]) for name in ranked(members))]


def settings(members: Mapping[str, Member]) -> list[list[str]]:
    """The table of the settings that several seeds have, its header first: losses over the seeds.

    Intervals are those of the mean, from the t distribution (Student 1908).
    """
    fields = swept([member.config for member in members.values()])
    header = [*fields, "members", "best", "median", "mean", "95 % interval"]
    return [header, *_setting_rows(list(members.values()), fields)]


def _setting_rows(members: Sequence[Member], fields: Sequence[str]) -> list[list[str]]:
    found: dict[tuple, list[float]] = {}
    for member in members:
        key = tuple(getattr(member.config, field) for field in fields)
        found.setdefault(key, []).append(member.val_loss)
    rows = []
    for key, every in found.items():
        losses = [loss for loss in every if math.isfinite(loss)]
        if len(losses) > 1:
            low, high = interval(losses)
            numbers = [min(losses), statistics.median(losses), statistics.fmean(losses)]
            cells = [f"{number:.4f}" for number in numbers]
            rows.append([*map(str, key), str(len(losses)), *cells, f"{low:.4f} to {high:.4f}"])
    return rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of normal values, at least two of them."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    margin = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - margin, mean + margin


def panels(members: Mapping[str, Member]) -> dict[str, list[tuple[float, float]]]:
    """For each swept field its values with the final losses, ``(value, val_loss)``, sorted."""
    good = [member for member in members.values() if math.isfinite(member.val_loss)]
    return {
        field: sorted((getattr(member.config, field), member.val_loss) for member in good)
        for field in swept([member.config for member in members.values()])
    }


def _row(name: str, member: Member) -> list[str]:
    cells = [name, str(len(member.rows)), "-", "-", "-"]
    if member.rows:
        last, best = member.rows[-1], min(member.rows, key=lambda row: row.val_loss)
        cells[2:] = [f"{last.val_loss:.4f}", f"{best.val_loss:.4f} ({best.epoch})"]
        cells.append(f"{last.val_psnr:.2f}")
    stopped = "" if member.stopped_at is None else f"not finite at step {member.stopped_at}"
    return [*cells, stopped]
