"""Tables of records: for a terminal, and as Markdown for README.

    python -m sdengine.benchmarks.tables benchmarks/results/*.jsonl [--readme README.md]

Prints one Markdown table a record; with --readme, puts them between that file's two marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.harness import SIDES
from sdengine.benchmarks.records import read_records
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# Stage in the record, its label, and the error that says what its time bought.
_STAGES = (
    ("text_encoder", "text encoder, ms", "text_encoder"),
    ("unet_step", "U-Net step, ms", "unet"),
    ("vae_decoder", "VAE decoder, ms", "vae_decoder"),
    ("outside", "outside the networks, ms an image", None),
    ("end_to_end", "end to end, ms an image", "latents"),
)
Row = tuple[str, str, str, str, str, str]


def header(record: dict[str, Any]) -> Row:
    """Return the columns' names."""
    ours, baseline = (record["backends"][name] for name in SIDES)
    return ("", ours, baseline, "ratio", f"error, {ours}", f"error, {baseline}")


def rows(record: dict[str, Any]) -> list[Row]:
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


def _device_memory(record: dict[str, Any]) -> list[Row]:
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


def title(record: dict[str, Any]) -> str:
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


def as_markdown(record: dict[str, Any]) -> str:
    """Return a record as a titled Markdown table with a line on how to read it."""
    versions, spread = record["versions"], record["stages_ms"]["end_to_end"]["ours"]
    lines = [f"**{title(record)}**", "", *_markdown_row(header(record))]
    lines.append("|---|" + "---:|" * 5)
    for row in rows(record):
        lines += _markdown_row(row)
    lines += [
        "",
        f"Median (10th to 90th percentile) of {spread['n']} interleaved runs; errors are relative "
        f"RMS against eager torch in fp32. Other programs took {record['others_percent']:.1f} % of "
        f"the cores meanwhile. torch "
        f"{versions['torch']}, commit {versions['commit'] or 'unknown'}.{_on_gpu(record)}",
    ]
    return "\n".join(lines)


def _on_gpu(record: dict[str, Any]) -> str:
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


def as_rich(record: dict[str, Any]) -> Table:
    """Return a record as a table for a terminal."""
    from rich.table import Table

    table = Table(title=title(record))
    for index, name in enumerate(header(record)):
        table.add_column(name, justify="right" if index else "left")
    for row in rows(record):
        table.add_row(*row)
    return table


def put_into(text: str, tables: str) -> str:
    """Replace what is between the marks of a Markdown text.

    Raises:
        ConfigError: the marks are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"README: expected the lines {BEGIN} and {END}, once each, in order.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of result files, or write them into a README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args(arguments)
    records = [record for file in options.files for record in read_records(file)]
    tables = "\n\n".join(as_markdown(record) for record in records)
    if options.readme is None:
        print(tables)
    else:
        options.readme.write_text(put_into(options.readme.read_text(), tables))


def _markdown_row(row: Row) -> list[str]:
    return ["| " + " | ".join(row) + " |"]


def _spread(figures: dict[str, float]) -> str:
    return f"{figures['median']:.1f} ({figures['p10']:.1f} to {figures['p90']:.1f})"


def _build(report: dict[str, Any] | None) -> str:
    return f"{sum(report['seconds'].values()):.1f}" if report else "in the package"


if __name__ == "__main__":
    main()
