"""Tables of a profile: where the time goes by kind and by level, and the slowest operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_FIGURES = ("ms", "% of time", "GFLOP/s", "% of peak", "could save, ms")
_LONGEST_NAME = 48


@dataclass(frozen=True)
class Group:
    """Operations that are told together.

    Args:
        name: of the group.
        count: of its operations.
        ms: that they take.
        percent_of_time: of all operations.
        flops: of the plain algorithm.
        peak_ms: that their products take at the peak.
        could_save_ms: what each takes above the least by the roofline, added up.
    """

    name: str
    count: int
    ms: float
    percent_of_time: float
    flops: int
    peak_ms: float
    could_save_ms: float

    @classmethod
    def of(cls, name: str, steps: Sequence[Mapping[str, Any]]) -> Group:
        """Add up what a record says of some operations."""
        return cls(
            name=name,
            count=len(steps),
            ms=sum(one["ms"] for one in steps),
            percent_of_time=sum(one["percent_of_time"] for one in steps),
            flops=sum(one["flops"] for one in steps),
            peak_ms=sum(one["ms"] * (one["percent_of_peak"] or 0.0) / 100 for one in steps),
            could_save_ms=sum(max(0.0, one["ms"] - one["least_ms"]) for one in steps),
        )

    def cells(self) -> tuple[str, ...]:
        """Return what a table says under _FIGURES."""
        rate, peak = "", ""
        if self.flops and self.ms > 0:
            rate, peak = f"{self.flops / self.ms / 1e6:.1f}", f"{100 * self.peak_ms / self.ms:.1f}"
        saved = f"{self.could_save_ms:.3f}"
        return f"{self.ms:.3f}", f"{self.percent_of_time:.1f}", rate, peak, saved


def groups(record: Mapping[str, Any], key: str) -> list[Group]:
    """Return the operations of a record by "kind", the slowest first, or by "level", in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in record["steps"]:
        found.setdefault(one[key], []).append(one)
    listed = [Group.of(name, steps) for name, steps in found.items()]
    return listed if key == "level" else sorted(listed, key=lambda group: -group.ms)


def title(record: Mapping[str, Any]) -> str:
    """Return one line that says what was profiled where."""
    width, height = record["size"]
    rows = "1 row" if record["rows"] == 1 else f"{record['rows']} rows"
    threads = record["roofline"]["threads"]
    return (
        f"{record['network']} of {record['bundle']}, {width}x{height}, {rows}, {record['backend']} "
        f"{record['precision']}; {record['machine']['processor']}, "
        f"{'1 thread' if threads == 1 else f'{threads} threads'}"
    )


def summary(record: Mapping[str, Any], key: str) -> Table:
    """Return the table by "kind" or by "level", with all operations at its end."""
    shown = _table(title(record) if key == "kind" else "", f"by {key}", ("count", *_FIGURES))
    for group in groups(record, key):
        shown.add_row(group.name, str(group.count), *group.cells())
    shown.add_section()
    whole = Group.of("all", record["steps"])
    shown.add_row(whole.name, str(whole.count), *whole.cells())
    return shown


def slowest(record: Mapping[str, Any], limit: int) -> Table:
    """Return the table of the slowest operations."""
    shown = _table("", "slowest", ("kind", "level", *_FIGURES, "MB", "bound by"))
    for column in shown.columns[1:3]:
        column.justify = "left"
    for one in sorted(record["steps"], key=lambda step: -step["ms"])[:limit]:
        moved = (one["bytes_read"] + one["bytes_written"]) / 1e6
        bound = one["bound"] + (f", {one['values']}" if one["values"] else "")
        cells = Group.of("", [one]).cells()
        shown.add_row(_short(one["name"]), one["kind"], one["level"], *cells, f"{moved:.2f}", bound)
    return shown


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what the figures are and how to read them."""
    total, roofline = record["total_ms"], record["roofline"]
    inside = sum(one["ms"] for one in record["steps"])
    peaks = ", ".join(
        f"{name} {rate / 1e9:.0f}" for name, rate in roofline["flops_per_second"].items()
    )
    return [
        f"A call: {total['median']:.2f} ms ({total['p10']:.2f} to {total['p90']:.2f}), median of "
        f"{total['n']}; its operations: {inside:.2f} ms, medians of each. Other programs took "
        f"{record['others_percent']:.1f} % of the cores.",
        f"Measured peaks, GFLOP/s: {peaks}; memory copies {roofline['bytes_per_second'] / 1e9:.1f} "
        "GB/s, read and written.",
        "GFLOP/s are those of the plain algorithm; % of peak is of the products that are really "
        "computed, of the numbers that are multiplied. Could save: what is above the longer of "
        "products at the peak and bytes at memory's speed; what lies in caches may be faster.",
    ]


def _table(heading: str, first: str, columns: Iterable[str]) -> Table:
    from rich.table import Table

    shown = Table(title=heading or None)
    shown.add_column(first)
    for name in columns:
        shown.add_column(name, justify="right")
    return shown


def _short(name: str) -> str:
    """Return a name without what all share, and of a long one its end."""
    if name.startswith("/"):  # of an ONNX file: its last part is the kind of node
        name = name.removeprefix("/module").strip("/").rpartition("/")[0] or name
    name = name.removeprefix("module.").replace("transformer_blocks", "blocks")
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
