"""Compares the members of a population: ``members.md``, a table, and ``members.png``, a figure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from cae_jax import atomic, markdown
from cae_jax.runs.members import Member
from cae_jax.training.programs import swept


def write_summary(folder: Path, members: Mapping[str, Member]) -> None:
    """Writes the table and the figure of the members to the directory of a population.

    Raises:
        UserError: they cannot be written.
    """
    from cae_jax import figures  # matplotlib takes a second to import

    with atomic.writing(folder / "members.md"):
        atomic.write_text(folder / "members.md", summary(members) + "\n")
    curves = {
        name: [(row.epoch, row.val_loss) for row in member.rows]
        for name, member in members.items()
        if member.rows
    }
    if curves:
        figures.save_members(folder / "members.png", curves, panels(members))


def summary(members: Mapping[str, Member]) -> str:
    """The members in comparison as Markdown: `headline`, `settings` if there are any, `rows`."""
    tables = [table for table in (settings(members), rows(members)) if len(table) > 1]
    return "\n\n".join(
        [headline(members), *(markdown.table(header, cells) for header, *cells in tables)]
    )


def ranked(members: Mapping[str, Member]) -> list[str]:
    """The names of the members by loss, those without one last."""
    losses = {name: member.val_loss for name, member in members.items()}
    return sorted(losses, key=lambda name: (not math.isfinite(losses[name]), losses[name]))


def headline(members: Mapping[str, Member]) -> str:
    """The best and the median member, in a sentence or two."""
    losses = [member.val_loss for member in members.values() if math.isfinite(member.val_loss)]
    if all(member.stopped_at is not None for member in members.values()):
        return "All members became non-finite."
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
    found: dict[tuple, list[float]] = {}
    for member in members.values():
        if math.isfinite(member.val_loss):
            key = tuple(getattr(member.config, field) for field in fields)
            found.setdefault(key, []).append(member.val_loss)
    rows = [[*fields, "members", "best", "median", "mean", "95 % interval"]]
    for key, losses in found.items():
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
