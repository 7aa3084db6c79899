"""`sdengine bench`: our backend against eager torch on equal inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdengine.cli.terminal import note_busy, print_table, spinner
from sdengine.storage.cache_place import cache_dir


def bench(
    arch: Annotated[str, typer.Option(help="demo, sd15, sd21, sdxl or tiny.")] = "demo",
    device: Annotated[str, typer.Option(help="Of both sides: cpu or cuda.")] = "cpu",
    target: Annotated[
        str | None, typer.Option(help="On cuda: tensorrt-rtx, tensorrt or triton.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels; the architecture's own if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampler steps of each request.")] = 4,
    guidance: Annotated[float, typer.Option(help="Above 1, the U-Net runs in pairs.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Images of each request.")] = 1,
    runs: Annotated[int, typer.Option(help="Counted requests of each side.")] = 5,
    precision: Annotated[
        str, typer.Option(help="Ours: auto, fp32, bf16 or int8; on cuda fp16, not int8.")
    ] = "auto",
    baseline_precision: Annotated[
        str | None, typer.Option(help="Eager torch's: fp32 or bf16; on cuda also fp16.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of both sides.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the record to this file.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where built bundles are kept.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the bundles again.")] = False,
) -> None:
    """Measure speed and memory against eager torch, after comparing outputs.

    All weights but the demo model's are synthetic: nothing is downloaded.
    """
    with spinner("importing"):
        from sdengine.benchmarks.cases import TARGETS, Case, native_side
        from sdengine.benchmarks.harness import run
        from sdengine.benchmarks.records import append_record, check_writable, make_record
        from sdengine.benchmarks.tables import as_rich

    case = Case(
        arch=arch,
        resolution=native_side(arch) if resolution is None else resolution,
        steps=steps,
        guidance_scale=guidance,
        batch_size=batch,
        runs=runs,
        precision=precision,
        baseline_precision=baseline_precision or ("fp16" if device == "cuda" else "fp32"),
        threads=threads,
        device=device,
        target=target or TARGETS.get(device, ("",))[0],
    )
    if json_file is not None:
        check_writable(json_file)
    with spinner("starting") as progress:
        figures = run(case, cache or cache_dir("bench"), progress, rebuild=rebuild)
    record = make_record(case, figures)
    if json_file is not None:
        append_record(record, json_file)
    print_table(as_rich(record))
    note_busy(record["others_percent"])
