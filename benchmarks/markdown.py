"""Markdown: tables, folded parts, and the part of a file between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdengine.errors import ConfigError

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table.

    Args:
        columns: the heading's cells.
        rows: the other cells, as many in each.
        texts: so many columns are text, on the left; those after them are figures, on the right.
    """
    lines = [_row(columns), "|---" * texts + "|---:" * (len(columns) - texts) + "|"]
    return "\n".join([*lines, *map(_row, rows)])


def folded(summary: str, text: str) -> str:
    """Return a part that is shown when its summary is clicked."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def put_between(text: str, part: str) -> str:
    """Replace what is between the marks BEGIN and END of a text.

    Raises:
        ConfigError: the marks are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"README: expected the lines {BEGIN} and {END}, once each, in order.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{rest.partition(END)[2]}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
