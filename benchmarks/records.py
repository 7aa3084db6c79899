"""Records of results: one JSON line a case, with everything needed to judge it, and its tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdengine import __version__
from sdengine.benchmarks.cases import Case
from sdengine.benchmarks.harness import STAGES
from sdengine.errors import ConfigError, OutputError

SCHEMA = 1
_LABELS = {
    "text_encoder": "text encoder",
    "unet_step": "U-Net step",
    "vae_decoder": "VAE decoder",
    "outside": "outside the networks",
    "end_to_end": "end to end",
}


def make_record(case: Case, figures: dict[str, Any]) -> dict[str, Any]:
    """Return a case's figures with the software and the machine that gave them."""
    return {
        "schema": SCHEMA,
        "case": asdict(case),
        **figures,
        "versions": {"sdengine": __version__, "commit": _commit(), **_versions()},
        "machine": {"processor": processor_name(), "cores": os.cpu_count()},
    }


def append_record(record: dict[str, Any], path: Path) -> None:
    """Add a record to a file of JSON lines.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Raises:
        ConfigError: a line is not a record of this schema.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ConfigError(f"{path}:{number} is not a benchmark record of schema {SCHEMA}")
        records.append(record)
    return records


def rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (stage, ours, baseline, ratio) as text, errors and memory included."""
    out = []
    for stage in STAGES:
        figures = record["stages_ms"][stage]
        out.append(
            (
                f"{_LABELS[stage]}, ms",
                _spread(figures["ours"]),
                _spread(figures["baseline"]),
                "" if stage == "outside" else f"{figures['ratio']:.2f}x",
            )
        )
    ours, baseline = record["alone"]["ours"], record["alone"]["baseline"]
    memory = baseline["peak_bytes"] / ours["peak_bytes"]
    out.append(
        (
            "peak memory, GB",
            f"{ours['peak_bytes'] / 1e9:.2f}",
            f"{baseline['peak_bytes'] / 1e9:.2f}",
            f"{memory:.2f}x",
        )
    )
    out.append(("load, s", f"{ours['load_seconds']:.1f}", f"{baseline['load_seconds']:.1f}", ""))
    errors = record["errors"]
    for key, label, form in (
        ("latents_relative_rms", "latents' relative RMS error", "{:.2e}"),
        ("image_psnr_db", "image PSNR, dB", "{:.1f}"),
    ):
        values = [form.format(errors[name][key]) for name in ("ours", "baseline")]
        out.append((label, *values, ""))
    return out


def title(record: dict[str, Any]) -> str:
    """Return one line that says what was compared where."""
    case, names = record["case"], record["backends"]
    return (
        f"{case['arch']} {case['resolution']}x{case['resolution']}, {case['steps']} steps, "
        f"{names['ours']} against {names['baseline']}, {record['machine']['processor']}, "
        f"{case['threads'] or record['machine']['cores']} threads"
    )


def as_markdown(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table."""
    names = record["backends"]
    lines = [
        f"| {title(record)} | {names['ours']} | {names['baseline']} | ratio |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(record)])


def processor_name() -> str:
    """Return the processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _spread(figures: dict[str, float]) -> str:
    return f"{figures['median']:.1f} ({figures['p10']:.1f} to {figures['p90']:.1f})"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "openvino", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
