"""Tables of the suite's records: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.markdown import table

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]

_COLUMNS = (
    "", "U-Net step, ms", "text encoder, ms", "VAE decoder, ms", "outside, ms",
    "picture, s", "to ours, step", "to ours, picture", "peak memory, GB",
    "GPU memory, GB",
    "import + load + pack, s", "of the peak", "PSNR, dB",
)  # fmt: skip


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """Return records of one setting, precision of ours, machine and commit together, oldest first.

    Of a peer that was measured twice the last counts.
    """
    found: dict[tuple[object, ...], dict[object, Record]] = {}
    for record in records:
        key = (
            record["label"],
            record["setting"]["threads"],
            record["setting"]["device"],
            tuple(record["ours"]),
            record["machine"]["processor"],
        )
        found.setdefault(key, {})[record["peer"]] = record
    return [list(group.values()) for group in found.values()]


def rows(group: Sequence[Record]) -> list[list[str]]:
    """Return the cells of records of one setting: ours of the first of them, then each peer."""
    first = group[0]
    found = [
        _row(label, first["sides"][label], None, first["setting"]["steps"])
        for label in first["ours"]
    ]
    for record in group:
        peer = record["peer"]
        if peer is not None:
            ratios = record["ratios"].get(record["ours"][0])
            found.append(_row(peer, record["sides"][peer], ratios, record["setting"]["steps"]))
    return found


def title(group: Sequence[Record]) -> str:
    """Return what was asked for where."""
    first = group[0]
    machine, setting = first["machine"], first["setting"]
    threads = f"{setting['threads']} threads" if setting["threads"] else f"{machine['cores']} cores"
    where = f"{machine['processor']}, {threads}"
    if "gpu" in first:
        where = f"{first['gpu']['name']}, compute capability {first['gpu']['compute_capability']}"
    return f"{first['label']}; {where}"


def notes(group: Sequence[Record]) -> list[str]:
    """Return sentences on how to read a table, and what makes it doubtful."""
    first = group[0]
    runs = sorted({record["runs"] for record in group})
    said = [
        f"Medians of {' or '.join(map(str, runs))} requests a side that alternate with ours, and "
        "of their steps; ratios to ours with their 95 % interval where there are three values or "
        "more. PSNR is of a picture of two steps against eager torch's in fp32."
    ]
    best = first["roofline"]
    peaks = best.get("flops_per_second")
    if peaks:
        shown = ", ".join(f"{v / 1e9:.0f} in {name}" for name, v in peaks.items())
        said.append(
            f"This machine reaches {shown} GFLOP/s and {best['bytes_per_second'] / 1e9:.1f} GB/s; "
            f"a step is {best['unet_step_flops'] / 1e12:.3g} TFLOP by the plain algorithms."
        )
    if "gpu" in first:
        said.append(
            "The reference multiplies fp32 unrounded; eager torch is timed as it is by default, "
            "with TF32 in the convolutions of fp32."
        )
        said += [
            f"{label}: {line}"
            for label in first["ours"]
            for line in _kernels(first["sides"][label].get("kernels", {}))
        ]
    for record in group:
        label = record["peer"] or record["ours"][0]
        said += [f"Noise beside {label}: {why}." for why in record["noise"]["why"]]
    return said


def as_markdown(group: Sequence[Record]) -> str:
    """Return records of one setting as a titled table with notes."""
    columns, cells = _used(rows(group))
    lines = [f"**{title(group)}**", "", table(columns, cells), ""]
    commits = sorted({str(record["versions"]["commit"]) for record in group})
    return "\n".join([*lines, f"{' '.join(notes(group))} Commit {', '.join(commits)}."])


def as_rich(record: Record) -> Table:
    """Return one record as a table for a terminal: a column for each side."""
    from rich.table import Table

    shown = Table(title=title([record]))
    figures, cells = _used(rows([record]))
    shown.add_column("")
    for row in cells:
        shown.add_column(row[0], justify="right")
    for index, figure in enumerate(figures[1:], start=1):
        shown.add_row(figure, *(row[index] for row in cells))
    return shown


def _used(cells: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and cells without columns that are empty in every row."""
    used = [i for i in range(len(_COLUMNS)) if i == 0 or any(row[i].strip("- ") for row in cells)]
    return [_COLUMNS[i] for i in used], [[row[i] for i in used] for row in cells]


def _row(label: str, side: Record, ratios: Record | None, steps: int) -> list[str]:
    if "stages_ms" not in side:
        why = f"{side['state']}: {side['why']}"
        if side["install"]:
            why += f" (`{side['install']}`)"
        return [f"{label}: {why}", *[""] * (len(_COLUMNS) - 1)]
    stages = side["stages_ms"]
    scaled = f", scaled from {side['scaled_from_steps']} steps" if side["scaled_from_steps"] else ""
    start = side["start_seconds"]
    share = side["percent_of_peak"]
    return [
        f"{label}{scaled}",
        *(_spread(stages.get(stage)) for stage in ("unet_step", "text_encoder", "vae_decoder")),
        _outside(stages, steps),
        f"{stages['end_to_end']['median'] / 1e3:.2f}",
        _ratio(ratios, "unet_step"),
        _ratio(ratios, "end_to_end"),
        f"{side['memory']['peak_bytes'] / 1e9:.2f}",
        f"{side['memory']['device_bytes'] / 1e9:.2f}" if "device_bytes" in side["memory"] else "",
        " + ".join(f"{start[part]:.1f}" for part in ("import", "load", "pack") if part in start),
        f"{share['percent']:.0f} % ({share['dtype']})" if share else "",
        f"{side['errors']['image_psnr_db']:.1f}",
    ]


def _kernels(found: Record) -> list[str]:
    """Return which shapes our Triton kernels computed, and why torch did the others."""
    lines = []
    for network, counts in found.items():
        ours = ", ".join(f"{count} {op}" for op, count in counts["replaced"].items())
        kept = "".join(f"; torch: {count} {why}" for why, count in counts["kept"].items())
        lines.append(f"shapes of {network} in Triton: {ours or 'none'}{kept}.")
    return lines


def _spread(stage: Record | None) -> str:
    if stage is None:
        return "-"
    if stage["n"] == 1:
        return f"{stage['median']:.1f}"
    return f"{stage['median']:.1f} ({stage['p10']:.1f} to {stage['p90']:.1f})"


def _outside(stages: Record, steps: int) -> str:
    if "outside" not in stages:
        return "-"
    ms, whole = stages["outside"]["median"], stages["end_to_end"]["median"]
    return f"{ms:.1f}, {100 * ms / whole:.1f} %, {ms / steps:.2f} a step"


def _ratio(ratios: Record | None, stage: str) -> str:
    if not ratios or stage not in ratios:
        return ""
    found = ratios[stage]
    if found["low"] is None:
        return f"{found['ratio']:.2f}x"
    return f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"
