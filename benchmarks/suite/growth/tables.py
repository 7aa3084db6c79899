"""Tables of growths for people: the points of an axis, and what was fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.suite.growth.run import PEAK

if TYPE_CHECKING:
    from rich.table import Table

# What the work outside of the networks may be at most, at SD 1.5 in 512 x 512 and anywhere.
MOST_PERCENT, MOST_MS_PER_STEP = 1.0, 1.0
_STAGES = (
    ("weights", "weights, ms"),
    ("text_encoder", "text encoder, ms"),
    ("controls_step", "controls, ms a step"),
    ("unet_step", "U-Net, ms a step"),
    ("vae_decoder", "VAE decoder, ms"),
    ("end_to_end", "whole request, ms"),
)


def points_table(record: Mapping[str, Any]) -> Table:
    """Return medians of each point, with the 10th and 90th percentile of the whole."""
    from rich.table import Table

    points = record["points"]
    shown = [(name, head) for name, head in _STAGES if any(name in p["stages_ms"] for p in points)]
    found = Table(title=_title(record))
    found.add_column(record["axis"], justify="right")
    for _, head in shown:
        found.add_column(head, justify="right")
    for head in ("peak memory, GB", "outside the networks"):
        found.add_column(head, justify="right")
    for point in points:
        cells = [_spread(name, point["stages_ms"].get(name)) for name, _ in shown]
        outside = f"{point['outside_percent']:.2f} %, {point['outside_ms_per_step']:.2f} ms a step"
        found.add_row(str(point["value"]), *cells, f"{point[PEAK] / 1e9:.2f}", outside)
    return found


def fits_table(record: Mapping[str, Any]) -> Table:
    """Return exponents, and where they were fitted the lines."""
    from rich.table import Table

    heads = dict(_STAGES) | {"outside": "outside the networks, ms", PEAK: "peak memory, MB"}
    found = Table(title=f"how they grow with {record['axis']}")
    columns = ("", "as a power of it", "95 % interval", "misfit", "fixed", "each", "share")
    for index, head in enumerate(columns):
        found.add_column(head, justify="right" if index else "left")
    for name, head in heads.items():
        if fit := record["fits"].get(name):
            found.add_row(head, *_power(fit), *_line(fit.get("linear"), 1e6 if name == PEAK else 1))
    return found


def verdict(record: Mapping[str, Any]) -> str:
    """Return a line on what lies outside of the networks in an axis's points, and its goals.

    Requests that change weights do not count: merging has work of its own there.
    """
    points = [p for p in record["points"] if "weights" not in p["stages_ms"]]
    if not points:
        return ""
    percents = [point["outside_percent"] for point in points]
    times = [point["outside_ms_per_step"] for point in points]
    whose = "" if len(points) == len(record["points"]) else ", where no weights were changed"
    line = (
        f"outside the networks{whose}: {min(percents):.2f} to {max(percents):.2f} % of a request, "
        f"{min(times):.2f} to {max(times):.2f} ms a step (goal: below {MOST_MS_PER_STEP:g} ms"
    )
    met = max(times) < MOST_MS_PER_STEP
    if record["arch"] == "sd15":
        line += f", and below {MOST_PERCENT:g} % at 512x512"
        at_512 = [p for p in points if record["axis"] != "pixels" or p["value"] == 512 * 512]
        met = met and all(point["outside_percent"] < MOST_PERCENT for point in at_512)
    return f"{line}): {'met' if met else 'missed'}"


def _title(record: Mapping[str, Any]) -> str:
    setting = record["setting"]
    size = f"{setting['resolution']}x{setting['resolution']}, {setting['steps']} steps"
    how = "in turns" if record["interleaved"] else "one point after another"
    whole = "" if record["complete"] else "; not finished"
    return f"{record['arch']} {size}, {record['backend']} {record['precision']}, {how}{whole}"


def _spread(name: str, figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return ""
    if name != "end_to_end":
        return f"{figures['median']:.2f}"
    return f"{figures['median']:.1f} ({figures['p10']:.1f} to {figures['p90']:.1f})"


def _power(fit: Mapping[str, Any]) -> tuple[str, str, str]:
    if "exponent" not in fit:
        return "", "", ""
    ends = "" if fit["low"] is None else f"{fit['low']:.2f} to {fit['high']:.2f}"
    return f"{fit['exponent']:.2f}", ends, f"{fit['misfit_percent']:.0f} %"


def _line(fit: Mapping[str, Any] | None, unit: float) -> tuple[str, str, str]:
    if fit is None:
        return "", "", ""
    share = "" if fit["per_unit_percent"] is None else f"{fit['per_unit_percent']:.1f} %"
    return f"{fit['fixed'] / unit:.2f}", f"{fit['per_unit'] / unit:.3f}", share


def as_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one table of all axes of an architecture: exponents, lines, and what lies outside."""
    rows = []
    for record in records:
        fits, points = record["fits"], record["points"]
        line = fits.get("end_to_end", {}).get("linear") or {}
        share = line.get("per_unit_percent")
        rows.append(
            [
                record["axis"],
                ", ".join(str(point["value"]) for point in points),
                *(_exponent(fits.get(name)) for name in ("end_to_end", "unet_step", PEAK)),
                f"{share:.1f} %" if share is not None else "",
                f"{max(p['outside_percent'] for p in points):.2f} %",
                f"{max(p['outside_ms_per_step'] for p in points):.2f}",
            ]
        )
    columns = (
        "axis", "values", "whole request", "U-Net step", "peak memory", "each one more",
        "outside, at most", "ms a step, at most",
    )  # fmt: skip
    first = records[0]
    place, threads = first["machine"]["processor"], first["setting"]["threads"]
    where = f"{place}, {threads} threads" if threads else place
    return f"**{_title(first)}; {where}**\n\n{table(columns, rows, texts=2)}"


def _exponent(fit: Mapping[str, Any] | None) -> str:
    if fit is None or "exponent" not in fit:
        return ""
    ends = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
    return f"{fit['exponent']:.2f}{ends}"
