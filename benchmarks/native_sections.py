"""Sections of the report that time the native target beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks.controls import as_markdown as controls_table
from sdengine.benchmarks.markdown import folded

Record = Mapping[str, Any]


def networks(records: Sequence[Record]) -> str:
    """Return the networks on the native target beside OpenVINO and torch, by processor."""
    parts = [
        "Synthetic weights, square pictures, U-Nets with two rows (guidance), text encoders with "
        "two prompts. Round after round each side is loaded, compared with torch in "
        "fp32 on the same inputs, timed and dropped before the next is loaded. Times are those of "
        "the newest record on an otherwise idle machine that has OpenVINO in it; OpenVINO's faster "
        "precision of that record is compared with. Errors are those of the newest record that "
        "compares with torch. A table is as old as its dates say, and so are the kernels in it. "
        "Processors with AMX, which OpenVINO uses and "
        "the native target does not, are not measured."
    ]
    for name, found in native.by_processor(records).items():
        versions, days = found[-1]["versions"], sorted({r["time"][:10] for r in found})
        commit = f", commit {versions['commit']}" if versions["commit"] else ""
        release = f"OpenVINO {versions['openvino']}, torch {versions['torch']}{commit}"
        parts += [f"**{name}**, {' to '.join(days[:1] + days[1:][-1:])}, {release}"]
        parts += [native.network_speed(found)]
        for heading, text in (
            ("What lower precision costs OpenVINO and torch:", native.slower_precisions(found)),
            ("With one thread and with more:", native.threads(found)),
            ("Errors of all sides:", native.network_errors(found)),
        ):
            parts += [heading, text] if text else []
    parts.append(folded("every record", native.network_records(records)))
    parts.append(
        "OpenVINO's attention in bf16 gives wrong results where a layer has as many query tokens "
        "as heads; bundles for OpenVINO compute such layers in fp32."
    )
    return "\n\n".join(parts)


def operations(records: Sequence[Record]) -> str:
    """Return single operations beside oneDNN and OpenVINO."""
    newest = {record["threads"]: record for record in records}
    most = newest[max(newest)]
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in most["peaks"].items())
    return "\n\n".join(
        [
            "Operations of SD 1.5's U-Net at 512 pixels, two rows, against oneDNN (through torch) "
            "and OpenVINO, each in its faster precision; "
            f"{most['machine']['processor']}, kernels for {most['isa']}. The share of the peak is "
            "of the products that are really computed, against what the same instructions reach "
            "where nothing waits for memory. These peaks with "
            f"{most['threads']} threads, in GFLOP/s: {peaks}. Errors are relative to fp64.",
            native.operations(list(newest.values())),
        ]
    )


def hard_values(record: Record) -> str:
    """Return errors on values that low precision finds hard."""
    rows = record["rows"]
    return "\n\n".join(
        [
            "Errors relative to fp64 where a channel is far louder than the others, logits are "
            "large or variances extreme. In bf16 the native target errs at most "
            f"{native.worst_ratio(rows):.2f} times as much as torch in bf16; kernels for "
            f"{record['isa']}.",
            folded("operation x values", native.hard_values(rows)),
        ]
    )


def controls(records: Sequence[Record]) -> str:
    """Return steps with a ControlNet beside diffusers and OpenVINO, the newest of each model."""
    if not records:
        return ""
    newest = {(record["arch"], record["side"]): record for record in records}
    parts = [
        "Synthetic weights, one picture, guidance, Euler. All sides start from the same noise and "
        "take the same noise levels; each is loaded, its pictures are compared with diffusers' in "
        "fp32, it is timed and dropped before the next is loaded. A step's time is that between "
        "the ends of two, the median over all rounds: without a control, with one, and with one at "
        "scale 0."
    ]
    for (arch, side), record in newest.items():
        versions = record["versions"]
        parts += [
            f"**{arch}**, {side}x{side}, {record['threads']} threads, "
            f"{record['machine']['processor']}, diffusers {versions['diffusers']}, OpenVINO "
            f"{versions['openvino']}; other programs took {record['other_load_percent']:g} % of "
            "the machine.",
            controls_table(record),
        ]
    return "\n\n".join(parts)
