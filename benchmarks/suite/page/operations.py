"""View of rooflines and profiles: what a step could take at best, and what its operations take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sdengine.benchmarks.suite.page.figures import (
    TIMES,
    milliseconds,
    percent,
    rate,
    size,
    trimmed,
)
from sdengine.benchmarks.suite.page.gathered import Gathered, Together
from sdengine.benchmarks.suite.page.ink import OURS, PEERS
from sdengine.benchmarks.suite.page.line_plots import Dot, roofline
from sdengine.benchmarks.suite.page.markup import (
    Table,
    as_sentence,
    escaped,
    figure,
    grid,
    legend,
    paragraph,
    table,
)
from sdengine.benchmarks.suite.page.row_plots import Part, Row, bars
from sdengine.benchmarks.suite.suite_records import Operation, Profile, Roofline

_SLOWEST, _DRAWN, _ROWS = 15, 150, 12
# Of kinds, the one that takes longest first.
_KIND_INKS = (OURS[0], *PEERS[1:7])
_REST = PEERS[0]


def step_roofline(gathered: Gathered, one: Together) -> str:
    """Return where each side's step of the U-Net stands below what the machine reaches."""
    best = next((r for record in one.records if (r := record.get("roofline"))), None)
    peaks, bandwidth = _peaks(best)
    flops, moved = (best or {}).get("unet_step_flops", 0), (best or {}).get("unet_step_bytes", 0)
    if not best or not peaks or not bandwidth or not flops or not moved:
        return paragraph("What this machine reaches at best was not measured in this setting.")
    dots, cells = [], []
    for label, side in one.measured.items():
        achieved = side.get("unet_gflops")
        if not achieved:
            continue
        is_ours = label in one.ours
        dots.append(
            Dot(
                flops / moved,
                1e9 * achieved,
                gathered.ink(label),
                95 if is_ours else 55,
                label,
                is_ours,
            )
        )
        peak = side.get("percent_of_peak")
        share = f"{percent(peak['percent'])} ({peak['dtype']})" if peak else ""
        core = side.get("unet_gflops_per_core")
        cells.append(
            [
                label,
                rate(1e9 * achieved, "FLOP"),
                "" if core is None else rate(1e9 * core, "FLOP"),
                share,
            ]
        )
    if not dots:
        return paragraph("No side's steps of the U-Net were timed.")
    threads = best.get("threads")
    where = f"{threads} threads" if threads else "this machine"
    note = (
        f"A step is {trimmed(flops / 1e12)} TFLOP by the plain algorithms and moves "
        f"{size(moved)}: {trimmed(flops / moved)} FLOP a byte (across). Up: what is done in a "
        f"second, below what {where} reach{'' if threads else 'es'} at best."
    )
    name = f"f{one.number}"
    drawn = roofline(peaks, bandwidth, dots, name, f"Roofline: {one.label}", as_sentence(cells))
    heads = ("Side", "Achieved", "A core", "Of the peak")
    return grid([figure("Roofline of the U-Net step", note, drawn, Table(heads, cells), wide=True)])


def profiles(gathered: Gathered) -> str:
    """Return every profile: by kind, by level, its roofline, its slowest operations."""
    return "".join(_profile(one, number) for number, one in enumerate(gathered.profiles, 1))


def _profile(one: Profile, number: int) -> str:
    width, height = one["size"]
    label = f"{one['bundle']}, {one['network']}, {one['backend']} {one['precision']}"
    said = (
        f"{width}{TIMES}{height}, {one['rows']} rows: "
        f"{milliseconds(one['total_ms']['median'])} a call "
        f"({one['total_ms']['n']} calls), {len(one['steps'])} operations."
    )
    kinds = _sums(one["steps"], "kind")
    inks = dict(zip(kinds, _KIND_INKS, strict=False))
    cards = [
        _sums_card("By kind", kinds, inks, f"k{number}", label),
        _sums_card("By level", _sums(one["steps"], "level"), {}, f"v{number}", label),
        _sums_card("By what bounds it", _sums(one["steps"], "bound"), {}, f"b{number}", label),
    ]
    return (
        f"<h3>Profile <small>{escaped(label)}</small></h3>{paragraph(said)}"
        f"{grid(filter(None, cards))}{_operation_roofline(one, inks, number, label)}"
        f"<h4>Slowest operations</h4>{table(_slowest(one), 'Slowest operations')}"
    )


def _sums(
    steps: Sequence[Operation], key: Literal["kind", "level", "bound"]
) -> dict[str, tuple[float, float]]:
    """Return ms and percent by what operations have in common, the longest first."""
    found: dict[str, tuple[float, float]] = {}
    for step in steps:
        ms, share = found.get(step[key], (0.0, 0.0))
        found[step[key]] = (ms + step["ms"], share + step["percent_of_time"])
    return dict(sorted(found.items(), key=lambda entry: (-entry[1][0], entry[0])))


def _sums_card(
    title: str,
    found: Mapping[str, tuple[float, float]],
    inks: Mapping[str, str],
    name: str,
    label: str,
) -> str:
    if not found:
        return ""
    most = max(ms for ms, _ in found.values())
    kept = list(found.items())[:_ROWS]
    rest = list(found.values())[_ROWS:]
    if rest:
        kept.append((f"{len(rest)} others", (sum(a for a, _ in rest), sum(b for _, b in rest))))
    rows = [
        Row(
            key,
            milliseconds(ms, most),
            percent(share),
            [Part(ms, inks.get(key, _REST if inks else OURS[0]))],
        )
        for key, (ms, share) in kept
    ]
    cells = [[key, milliseconds(ms), percent(share)] for key, (ms, share) in found.items()]
    drawn = bars(rows, name, f"{title}: {label}", as_sentence(cells[:_ROWS]))
    return figure(title, "time of a call", drawn, Table(("", "Time", "Share"), cells))


def _operation_roofline(one: Profile, inks: Mapping[str, str], number: int, label: str) -> str:
    best = one.get("roofline")
    peaks, bandwidth = _peaks(best)
    slowest = sorted(one["steps"], key=lambda step: (-step["ms"], step["name"]))
    dots, cells = [], []
    for step in slowest[:_DRAWN]:
        moved = step["bytes_read"] + step["bytes_written"]
        if not step["flops"] or not moved or not step["ms"]:
            continue
        achieved = 1e3 * step["flops"] / step["ms"]
        area = 16 + 24 * step["percent_of_time"] ** 0.75
        ink = inks.get(step["kind"], _REST)
        dots.append(Dot(step["flops"] / moved, achieved, ink, min(area, 400)))
        cells.append(
            [step["name"], step["kind"], trimmed(step["flops"] / moved), rate(achieved, "FLOP")]
        )
    if not dots or not peaks or not bandwidth:
        return ""
    note = "FLOP a byte across, FLOP a second up; the longer an operation takes, the larger it is."
    drawn = roofline(
        peaks,
        bandwidth,
        dots,
        f"o{number}",
        f"Roofline of operations: {label}",
        as_sentence(cells[:_SLOWEST]),
    )
    used = {dot.ink for dot in dots}
    names = [(f"s-{ink}", kind) for kind, ink in inks.items() if ink in used]
    names += [(f"s-{_REST}", "others")] if _REST in used else []
    heads = ("Operation", "Kind", "FLOP a byte", "Achieved")
    shown = legend(names) + drawn
    content = Table(heads, cells[: 2 * _SLOWEST])
    return grid([figure("Roofline of the operations", note, shown, content, wide=True)])


def _slowest(one: Profile) -> Table:
    slowest = sorted(one["steps"], key=lambda step: (-step["ms"], step["name"]))[:_SLOWEST]
    heads = ("Operation", "Kind", "Level", "Time", "Share", "Bound by", "Of the peak", "Values")
    rows = [
        [
            step["name"],
            step["kind"],
            step["level"],
            milliseconds(step["ms"]),
            percent(step["percent_of_time"]),
            step["bound"],
            "" if step["percent_of_peak"] is None else percent(step["percent_of_peak"]),
            step["values"],
        ]
        for step in slowest
    ]
    return Table(heads, rows)


def _peaks(best: Roofline | None) -> tuple[dict[str, float], float]:
    """Return FLOP a second by the numbers' name and bytes a second; nothing where not measured."""
    found = best or Roofline()
    peaks = {name: peak for name, peak in found.get("flops_per_second", {}).items() if peak > 0}
    return peaks, found.get("bytes_per_second", 0.0)
