"""Row plots: a name, a figure and below both a bar or a dot; as narrow as a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdengine.benchmarks.suite.page.ink import COLOURS, SMALL, canvas, inline
from sdengine.benchmarks.suite.page.markup import in_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 340.0
_ROW, _TOP, _BAR = 38.0, 4.0, 9.0


@dataclass(frozen=True)
class Part:
    """A stretch of a bar.

    Args:
        value: its length.
        ink: a name of INKS.
        opacity: of the ink.
    """

    value: float
    ink: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: at its left.
        shown: figure at its right.
        also: smaller text before the figure, such as an interval.
        parts: of the bar, from its left; of a dot only the first counts.
        low, high: ends of an interval, on the bar's scale; None for none.
        is_ours: it is written strong.
    """

    name: str
    shown: str
    also: str = ""
    parts: Sequence[Part] = field(default=())
    low: float | None = None
    high: float | None = None
    is_ours: bool = False


def bars(rows: Sequence[Row], name: str, title: str, description: str) -> str:
    """Return rows with bars from zero, as an element of the page.

    Args:
        rows: from the top.
        name, title, description: see `ink.inline`.
    """
    ends = [max(sum(part.value for part in row.parts), row.high or 0) for row in rows]
    scale = WIDTH / (max(ends, default=0) or 1)
    figure, axes = canvas(WIDTH, _height(rows))
    for index, row in enumerate(rows):
        y = _text(axes, index, row)
        if row.parts:
            axes.barh(y, WIDTH, _BAR, color=COLOURS["line"], alpha=0.35)
        start = 0.0
        for part in row.parts:
            width = part.value * scale
            axes.barh(y, width, _BAR, left=start, color=COLOURS[part.ink], alpha=part.opacity)
            start += width
        if row.low is not None and row.high is not None:
            _whisker(axes, row.low * scale, row.high * scale, y, "text")
    return inline(figure, name, title, description)


def ratios(rows: Sequence[Row], name: str, title: str, description: str) -> str:
    """Return rows with a dot and its interval on a logarithmic scale around 1.

    Args:
        rows: from the top; the value of a row's only part is its ratio, above 0.
        name, title, description: see `ink.inline`.
    """
    ends = [
        end
        for row in rows
        for end in (row.parts[0].value, row.low, row.high)
        if end is not None and end > 0
    ]
    low, high = min([0.9, *ends]), max([1.1, *ends])
    inner = WIDTH - 2 * _BAR
    stretch = inner / math.log(high / low)

    def place(value: float) -> float:
        return _BAR + stretch * math.log(max(value, low) / low)

    figure, axes = canvas(WIDTH, _height(rows))
    for index, row in enumerate(rows):
        part = row.parts[0]
        y = _text(axes, index, row)
        axes.plot([0, WIDTH], [y, y], color=COLOURS["line"])
        axes.plot([place(1)] * 2, [y - 7, y + 7], color=COLOURS["quiet"], linewidth=1.5)
        here = place(part.value)
        axes.plot([place(1), here], [y, y], color=COLOURS[part.ink], linewidth=3, alpha=0.35)
        if row.low is not None and row.high is not None:
            _whisker(axes, place(row.low), place(row.high), y, part.ink)
        axes.plot([here], [y], "o", markersize=10, color=COLOURS["ground"])
        axes.plot([here], [y], "o", markersize=8, color=COLOURS[part.ink], alpha=part.opacity,
                  markeredgewidth=0)  # fmt: skip
    return inline(figure, name, title, description)


def _height(rows: Sequence[Row]) -> float:
    return _TOP + _ROW * len(rows)


def _text(axes: Axes, index: int, row: Row) -> float:
    """Write a row's name and figure; return where the middle of its bar is."""
    y = _TOP + _ROW * index + 13
    weight = "bold" if row.is_ours else "normal"
    name = in_figure(row.name)
    axes.text(0, y, name, color=COLOURS["text"], weight=weight)
    ink = "text" if row.parts else "quiet"
    axes.text(WIDTH, y, in_figure(row.shown), color=COLOURS[ink], weight=weight,
              ha="right")  # fmt: skip
    # So much is a character of the widest font that a browser may choose.
    right = WIDTH - (8.6 if row.is_ours else 7.7) * len(row.shown) - 6
    room = right - (7.8 if row.is_ours else 7.0) * len(name) - 6.6 * len(row.also)
    if row.also and room > 4:
        axes.text(right, y, in_figure(row.also), color=COLOURS["quiet"], fontsize=SMALL, ha="right")
    return y + 12


def _whisker(axes: Axes, low: float, high: float, y: float, ink: str) -> None:
    steps = ((low, y - 4), (low, y + 4), (low, y), (high, y), (high, y - 4), (high, y + 4))
    axes.plot(*zip(*steps, strict=True), color=COLOURS[ink], linewidth=1.5)
