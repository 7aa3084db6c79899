"""Line plots: both scales logarithmic, lines with their names at their ends; and rooflines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.suite.page.figures import amount, rate, trimmed
from sdengine.benchmarks.suite.page.ink import COLOURS, SMALL, blank, inline
from sdengine.benchmarks.suite.page.markup import in_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Callable[[float], str]
_MOST_TICKS = 6
# Of a decade, the densest first.
_STEPS = (
    tuple(1 + 0.1 * step for step in range(90)), tuple(1 + 0.2 * step for step in range(45)),
    tuple(1 + 0.5 * step for step in range(18)), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,),
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """Size of a plot in CSS pixels, and the room around its axes.

    Args:
        shown: class that says on which widths of the page it is shown.
        right: room for names at the lines' ends.
        is_narrow: names are shorter or take two lines.
    """

    shown: str
    width: float
    height: float
    right: float
    is_narrow: bool
    left: float = 58.0
    top: float = 12.0
    bottom: float = 30.0

    def axes(self, figure: Figure) -> Axes:
        """Add the axes."""
        return figure.add_axes(
            (
                self.left / self.width,
                self.bottom / self.height,
                (self.width - self.left - self.right) / self.width,
                (self.height - self.top - self.bottom) / self.height,
            )
        )


_HALF = (Frame("for-wide", 520, 330, 170, False), Frame("for-narrow", 340, 330, 124, True))
_WHOLE = (
    Frame("for-wide", 1080, 460, 20, False, top=26.0, bottom=44.0),
    Frame("for-narrow", 340, 400, 8, True, left=44.0, top=26.0, bottom=44.0),
)


@dataclass(frozen=True)
class Line:
    """One line.

    Args:
        name: at its end; `more` stands behind it, or below it where there is little room.
        points: x, y, and the ends of y's interval or None; above 0, ascending.
        ink: a name of INKS.
        dash: how often the line is broken; 0 for never.
    """

    name: str
    more: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    ink: str
    dash: int = 0
    is_ours: bool = False


@dataclass(frozen=True)
class Dot:
    """One operation on a roofline: FLOP a byte, FLOP a second, and how large it is drawn."""

    intensity: float
    achieved: float
    ink: str
    area: float = 60.0
    name: str = ""
    is_ours: bool = False


def lines(
    drawn: Sequence[Line],
    x_format: Format,
    y_format: Format,
    name: str,
    title: str,
    description: str,
) -> str:
    """Return lines as elements of the page, one for wide and one for narrow pages.

    Args:
        drawn: with at least one point together.
        x_format, y_format: of the axes' figures.
        name, title, description: see `ink.inline`.
    """
    return _each(
        _HALF,
        lambda frame, axes: _draw_lines(frame, axes, drawn, x_format, y_format),
        name,
        title,
        description,
    )


def roofline(
    peaks: Mapping[str, float],
    bandwidth: float,
    dots: Sequence[Dot],
    name: str,
    title: str,
    description: str,
) -> str:
    """Return dots below what a machine reaches.

    Args:
        peaks: FLOP a second by the numbers' name, above 0.
        bandwidth: bytes a second, above 0.
        dots: above 0.
        name, title, description: see `ink.inline`.
    """
    return _each(
        _WHOLE,
        lambda frame, axes: _draw_roofline(frame, axes, peaks, bandwidth, dots),
        name,
        title,
        description,
    )


def _each(
    frames: Sequence[Frame],
    draw: Callable[[Frame, Axes], None],
    name: str,
    title: str,
    description: str,
) -> str:
    written = []
    for index, frame in enumerate(frames):
        figure = blank(frame.width, frame.height)
        axes = frame.axes(figure)
        axes.patch.set_visible(False)
        draw(frame, axes)
        written.append(inline(figure, f"{name}{'wn'[index]}", title, description, frame.shown))
    return "".join(written)


def _draw_lines(
    frame: Frame, axes: Axes, drawn: Sequence[Line], x_format: Format, y_format: Format
) -> None:
    xs = [x for line in drawn for x, *_ in line.points]
    ys = [y for line in drawn for _, *ends in line.points for y in ends if y is not None and y > 0]
    _logarithmic(axes, (min(xs) / 1.12, max(xs) * 1.12), (min(ys) / 1.25, max(ys) * 1.25))
    _x_ticks(frame, axes, sorted(set(xs)), x_format)
    _y_ticks(axes, y_format)
    for line in sorted(drawn, key=lambda line: line.is_ours):
        style = ("-", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1.5, 2)))[line.dash % 4]
        axes.plot(
            [x for x, *_ in line.points],
            [y for _, y, *_ in line.points],
            color=COLOURS[line.ink],
            linestyle=style,
            linewidth=2.6 if line.is_ours else 1.6,
            marker="o",
            markersize=6 if line.is_ours else 4.5,
        )
        for x, _, low, high in line.points:
            if low and high:
                axes.plot([x, x], [low, high], color=COLOURS[line.ink])
    _names(frame, axes, drawn)


def _names(frame: Frame, axes: Axes, drawn: Sequence[Line]) -> None:
    """Write names beside the lines' ends, moved apart where ends are near each other."""
    span = frame.height - frame.top - frame.bottom
    least = 25.0 if frame.is_narrow else 16.0
    low, high = (math.log(end) for end in axes.get_ylim())
    wanted = sorted(
        ((math.log(line.points[-1][1]) - low) / (high - low) * span, index)
        for index, line in enumerate(drawn)
    )
    places = _apart([place for place, _ in wanted], least, -frame.bottom + 14, span)
    inner = frame.width - frame.left - frame.right
    x_low, x_high = (math.log(end) for end in axes.get_xlim())
    for place, (end, index) in zip(places, wanted, strict=True):
        line = drawn[index]
        at = (math.log(line.points[-1][0]) - x_low) / (x_high - x_low)
        axes.plot(
            [at + 6 / inner, 1 + 4 / inner], [end / span, place / span],
            transform=axes.transAxes, color=COLOURS[line.ink], linewidth=0.8, alpha=0.6,
            clip_on=False,
        )  # fmt: skip
        weight = "bold" if line.is_ours else "normal"
        parts = [line.name, line.more] if frame.is_narrow else [f"{line.name} {line.more}".strip()]
        for number, part in enumerate(filter(None, parts)):
            offset = (4.5 - 12 * number) if len(list(filter(None, parts))) > 1 else 0
            axes.text(
                1 + 8 / inner, (place + offset) / span,
                in_figure(part, 20 if frame.is_narrow else 27),
                transform=axes.transAxes, va="center", fontsize=SMALL, weight=weight,
                color=COLOURS[line.ink if number == 0 else "quiet"],
            )  # fmt: skip


def _apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Return ascending places moved to be `least` apart, between low and high where they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least if moved else low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - least
    return moved


def _draw_roofline(
    frame: Frame, axes: Axes, peaks: Mapping[str, float], bandwidth: float, dots: Sequence[Dot]
) -> None:
    ridges = [peak / bandwidth for peak in peaks.values()]
    xs = [*ridges, *(dot.intensity for dot in dots)]
    low, high = min(xs) / 4, max(xs) * 4
    ys = [*peaks.values(), *(dot.achieved for dot in dots)]
    _logarithmic(axes, (low, high), (min(ys) / 2.5, max(ys) * 1.8))
    decades = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    _x_ticks(frame, axes, decades, trimmed)
    _y_ticks(axes, amount)
    shown: dict[str, Any] = {"fontsize": SMALL, "textcoords": "offset points"}
    quiet = {"color": COLOURS["quiet"], **shown}
    axes.annotate("FLOP/s", (low, axes.get_ylim()[1]), (-38, 10), **quiet)
    axes.annotate("FLOP/byte", (high, axes.get_ylim()[0]), (0, -36), ha="right", **quiet)
    shown["color"] = COLOURS["text"]
    top = max(peaks.values())
    start = max(low, axes.get_ylim()[0] / bandwidth)
    slope = [start, top / bandwidth], [start * bandwidth, top]
    axes.plot(*slope, color=COLOURS["quiet"], linewidth=1.6)
    for peak in peaks.values():
        axes.plot([peak / bandwidth, high], [peak, peak], color=COLOURS["quiet"], linewidth=1.6)
    for peak, named in _roof_names(frame, axes, peaks):
        axes.annotate(named, (high, peak), (0, 4), ha="right", **shown)
    place = start * 1.6, start * bandwidth * 1.6
    axes.annotate(f"memory {rate(bandwidth, 'B')}", place, (8, -8), **shown)
    for dot in dots:
        axes.scatter(
            [dot.intensity], [dot.achieved], s=dot.area, color=COLOURS[dot.ink],
            edgecolors=COLOURS["ground"], linewidths=1, alpha=None if dot.name else 0.8, zorder=3,
        )  # fmt: skip
    _dot_names(frame, axes, [dot for dot in dots if dot.name], list(peaks.values()))


def _roof_names(
    frame: Frame, axes: Axes, peaks: Mapping[str, float]
) -> Iterator[tuple[float, str]]:
    """Yield where roofs are named and how; those too near each other are named together."""
    low, high = (math.log(end) for end in axes.get_ylim())
    least = (high - low) * 15 / (frame.height - frame.top - frame.bottom)
    near: dict[str, float] = {}
    for dtype, peak in sorted(peaks.items(), key=lambda entry: (-entry[1], entry[0])):
        if near and math.log(max(near.values()) / peak) > least:
            yield max(near.values()), _roof_name(frame, near)
            near = {}
        near[dtype] = peak
    yield max(near.values()), _roof_name(frame, near)


def _roof_name(frame: Frame, near: Mapping[str, float]) -> str:
    return ", ".join(
        f"{in_figure(dtype, 8)} {amount(peak) if frame.is_narrow else rate(peak, 'FLOP')}"
        for dtype, peak in near.items()
    )


def _dot_names(frame: Frame, axes: Axes, dots: Sequence[Dot], roofs: Sequence[float]) -> None:
    """Write the names of dots at their right, or at their left where the page ends."""
    span = frame.height - frame.top - frame.bottom
    inner = frame.width - frame.left - frame.right
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()

    def up(achieved: float) -> float:
        return math.log(achieved / y_low) / math.log(y_high / y_low) * span

    def beside(achieved: float) -> float:
        """Return where a name is that no roof strikes out."""
        place = up(achieved)
        for roof in map(up, roofs):
            if abs(place - roof) < 10:
                place = roof - 10 if place <= roof else roof + 10
        return place

    ordered = sorted(dots, key=lambda dot: -dot.achieved)
    # Downwards: dots are below their roofs.
    heights = [-y for y in _apart([-beside(dot.achieved) for dot in ordered], 15.0, -span, -4)]
    for dot, height in zip(ordered, heights, strict=True):
        x = math.log(dot.intensity / x_low) / math.log(x_high / x_low) * inner
        y = up(dot.achieved)
        is_left = x > inner / 2 and frame.is_narrow
        side = -1 if is_left else 1
        axes.plot(
            [(x + side * 5) / inner, (x + side * 13) / inner], [y / span, height / span],
            transform=axes.transAxes, color=COLOURS[dot.ink], linewidth=0.8,
        )  # fmt: skip
        axes.text(
            (x + side * 15) / inner, height / span, in_figure(dot.name, 27),
            transform=axes.transAxes, va="center", ha="right" if is_left else "left",
            fontsize=SMALL, weight="bold" if dot.is_ours else "normal", color=COLOURS[dot.ink],
        )  # fmt: skip


def _logarithmic(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.minorticks_off()
    axes.tick_params(length=0, pad=6, labelcolor=COLOURS["quiet"], labelsize=SMALL)
    axes.grid(True, color=COLOURS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(COLOURS["line"])


def _x_ticks(frame: Frame, axes: Axes, values: Sequence[float], shown: Format) -> None:
    """Label the values, but for those too near the one before."""
    inner = frame.width - frame.left - frame.right
    low, high = (math.log(end) for end in axes.get_xlim())
    kept: list[float] = []
    for value in values:
        room = 7.5 * max(len(shown(one)) for one in [value, *kept[-1:]])
        if not kept or math.log(value / kept[-1]) / (high - low) * inner > room:
            kept.append(value)
    axes.set_xticks(kept, [shown(value) for value in kept])
    axes.minorticks_off()


def _y_ticks(axes: Axes, shown: Format) -> None:
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        values = [step * 10.0**k for k in decades for step in steps]
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= _MOST_TICKS:
            break
    kept = inside[:: max(1, math.ceil(len(inside) / _MOST_TICKS))]
    axes.set_yticks(kept, [shown(value) for value in kept])
    axes.minorticks_off()
