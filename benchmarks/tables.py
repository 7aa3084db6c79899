"""Tables of comparisons with eager torch: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.records import SIDES

if TYPE_CHECKING:
    from rich.table import Table

# Stage in the record, its label, and the error that says what its time bought.
_STAGES = (
    ("text_encoder", "text encoder, ms", "text_encoder"),
    ("unet_step", "U-Net step, ms", "unet"),
    ("vae_decoder", "VAE decoder, ms", "vae_decoder"),
    ("outside", "outside the networks, ms an image", None),
    ("end_to_end", "end to end, ms an image", "latents"),
)
Row = tuple[str, str, str, str, str, str]


def header(record: Mapping[str, Any]) -> Row:
    """Return the columns' names."""
    ours, baseline = (record["backends"][name] for name in SIDES)
    return ("", ours, baseline, "ratio", f"error, {ours}", f"error, {baseline}")


def rows(record: Mapping[str, Any]) -> list[Row]:
    """Return the table's rows as text: figures of both sides, their ratio, their errors."""
    errors = [record["errors"][name] for name in SIDES]
    out: list[Row] = []
    for stage, label, error in _STAGES:
        figures = record["stages_ms"][stage]
        ours, baseline = (_spread(figures[name]) for name in SIDES)
        ratio = f"{figures['ratio']:.2f}x"
        if stage == "outside":
            ratio = ""
            ours, baseline = (
                f"{text}, {record['outside_percent'][name]:.1f} %"
                for text, name in zip((ours, baseline), SIDES, strict=True)
            )
        shown = [f"{e[error]:.1e}" if error else "" for e in errors]
        if stage == "end_to_end":
            shown = [
                f"{text}, {e['image_psnr_db']:.1f} dB"
                for text, e in zip(shown, errors, strict=True)
            ]
        out.append((label, ours, baseline, ratio, shown[0], shown[1]))
    for key, label, scale in (
        ("peak_bytes", "peak memory, GB", 1e9),
        ("load_seconds", "load, s", 1.0),
        ("first_seconds", "load and first request, s", 1.0),
    ):
        ours_value, baseline_value = (record["alone"][name][key] / scale for name in SIDES)
        ratio = f"{baseline_value / max(ours_value, 1e-9):.2f}x"
        out.append((label, f"{ours_value:.2f}", f"{baseline_value:.2f}", ratio, "", ""))
    out += _device_memory(record)
    if any(record["build"].values()):
        ours, baseline = (_build(record["build"][name]) for name in SIDES)
        out.append(("build, s", ours, baseline, "", "", ""))
    return out


def _device_memory(record: Mapping[str, Any]) -> list[Row]:
    """Return what each side took of a GPU's memory; that of torch's allocator where it has one."""
    found: list[Row] = []
    for key, label in (
        ("device_bytes", "GPU memory taken, GB"),
        ("allocated_device_bytes", "of it in use by torch at the peak, GB"),
    ):
        values = [record["alone"][name].get(key) for name in SIDES]
        if any(value is not None for value in values):
            ours, baseline = ("-" if v is None else f"{v / 1e9:.2f}" for v in values)
            ratio = ""
            if all(values):
                ratio = f"{values[1] / values[0]:.2f}x"
            found.append((label, ours, baseline, ratio, "", ""))
    return found


def title(record: Mapping[str, Any]) -> str:
    """Return one line that says what was compared where."""
    case, place = record["case"], record["machine"]
    threads = f"{case['threads']} threads" if case["threads"] else f"{place['cores']} cores"
    where = f"{place['processor']}, {threads}"
    if "gpu" in record:
        where = f"{record['gpu']['name']}, compute capability {record['gpu']['compute_capability']}"
    images = f", batch {case['batch_size']}" if case["batch_size"] > 1 else ""
    return (
        f"{case['arch']} {case['resolution']}x{case['resolution']}{images}, {case['steps']} steps, "
        f"guidance {case['guidance_scale']:g}; {where}"
    )


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return a record as a titled Markdown table with a line on how to read it."""
    versions, spread = record["versions"], record["stages_ms"]["end_to_end"]["ours"]
    commit = f", commit {versions['commit']}" if versions["commit"] else ""
    lines = [
        f"**{title(record)}**",
        "",
        table(header(record), rows(record)),
        "",
        f"Median (10th to 90th percentile) of {spread['n']} interleaved runs; errors are relative "
        f"RMS against eager torch in fp32. Other programs took {record['others_percent']:.1f} % of "
        f"the cores meanwhile. torch {versions['torch']}{commit}.{_on_gpu(record)}",
    ]
    return "\n".join(lines)


def _on_gpu(record: Mapping[str, Any]) -> str:
    """Return the sentences that a GPU's table needs besides."""
    if "gpu" not in record:
        return ""
    shown = [
        " The reference multiplies fp32 unrounded; eager torch is timed as it is by default, with "
        "TF32 in the convolutions of fp32."
    ]
    for network, found in record["kernels"].items():
        ours = ", ".join(f"{count} {op}" for op, count in found["replaced"].items())
        kept = "".join(f"; torch: {count} {why}" for why, count in found["kept"].items())
        shown.append(f"Shapes of {network} in Triton: {ours or 'none'}{kept}.")
    return " ".join(shown)


def as_rich(record: Mapping[str, Any]) -> Table:
    """Return a record as a table for a terminal."""
    from rich.table import Table

    shown = Table(title=title(record))
    for index, name in enumerate(header(record)):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows(record):
        shown.add_row(*row)
    return shown


def _spread(figures: dict[str, float]) -> str:
    return f"{figures['median']:.1f} ({figures['p10']:.1f} to {figures['p90']:.1f})"


def _build(report: Mapping[str, Any] | None) -> str:
    return f"{sum(report['seconds'].values()):.1f}" if report else "in the package"
