"""Writes Markdown tables."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, aligned: bool = True) -> str:
    """Formats a Markdown table.

    Args:
        header: one title per column.
        rows: one cell per column, formatted with `str`.
        aligned: pad the cells so that the columns line up in plain text.
    """
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(3, *map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(3, width) for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
