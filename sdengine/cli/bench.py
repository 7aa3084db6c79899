"""`sdengine bench`: our backends and every peer on equal requests; what it left, compared."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sdengine.cli.bench_compare import compare
from sdengine.cli.bench_growth import growth
from sdengine.cli.bench_report import report
from sdengine.cli.terminal import note, print_table, spinner
from sdengine.storage.cache_place import cache_dir

bench_app = typer.Typer(
    help="Measure speed and memory against eager torch and other systems, after comparing outputs. "
    "All weights but the demo model's are synthetic: nothing is downloaded.",
    invoke_without_command=True,
)
bench_app.command("compare")(compare)
bench_app.command("growth")(growth)
bench_app.command("report")(report)


@bench_app.callback()
def bench(
    context: typer.Context,
    arch: Annotated[
        str | None, typer.Option(help="demo, sd15, sd21, sdxl or tiny, separated by commas.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real weights instead: a folder in diffusers' layout."),
    ] = None,
    task: Annotated[str, typer.Option(help="text, image, inpaint, control.")] = "text",
    resolutions: Annotated[
        str | None,
        typer.Option(help="Sides in pixels, as 512,768; the architecture's own if not given."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Pictures of each request, as 1,4.")] = "1",
    steps: Annotated[int | None, typer.Option(help="Sampler steps; 20 if not given.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Above 1 the U-Net runs in pairs; 5 if not given.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of our backends: auto, fp32, bf16, int8; on cuda fp16, not int8.")
    ] = "auto",
    backends: Annotated[
        str | None,
        typer.Option(help="Ours: native, openvino; tensorrt-rtx, tensorrt, triton. All that are "
        "installed if not given."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="eager, compile, diffusers, onnxruntime, openvino, openvino-genai, "
            "stable-diffusion.cpp, with a precision as eager-bf16; all, or none. Eager if not "
            "given."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[str, typer.Option(help="CPU threads of every side, as 1,2.")] = "",
    runs: Annotated[int, typer.Option(help="Counted requests of each side.")] = 5,
    fewer: Annotated[
        list[str] | None,
        typer.Option(
            "--fewer-steps", metavar="NAME=N",
            help="Ask a slow system for so many steps, and scale; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="The most that one answer may take.")
    ] = 3600.0,
    mlperf: Annotated[
        bool,
        typer.Option("--mlperf", help="MLPerf's setting: SDXL, 1024, Euler, 20 steps, guidance 8."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the records to this file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the middle of a picture of each side.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where what is built is kept.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again.")] = False,
) -> None:  # fmt: skip
    """Measure ours and each peer in turns, after comparing their outputs with eager torch's."""
    if context.invoked_subcommand is not None:
        return
    with spinner("importing"):
        from sdengine.benchmarks.records import check_writable
        from sdengine.benchmarks.suite.options import Asked, suite_of
        from sdengine.benchmarks.suite.running import run, writer

    asked = Asked(
        arch=arch,
        checkpoint=checkpoint,
        task=task,
        resolutions=resolutions,
        batch=batch,
        steps=steps,
        guidance=guidance,
        precision=precision,
        backends=backends,
        against=against,
        device=device,
        threads=threads,
        runs=runs,
        fewer=tuple(fewer or ()),
        limit=limit,
        mlperf=mlperf,
        pictures=pictures,
    )
    suite = suite_of(asked, shlex.join(["sdengine", *sys.argv[1:]]))
    if json_file is not None:
        check_writable(json_file)
    with spinner("starting") as progress:
        write = writer(json_file, _shown)
        run(suite, cache or cache_dir("bench"), write, progress, rebuild=rebuild)


def _shown(record: dict[str, Any]) -> None:
    """Show a record as a table, and say what makes it doubtful."""
    from sdengine.benchmarks.suite.tables import as_rich

    print_table(as_rich(record))
    for why in record["noise"]["why"]:
        note(f"warning: {why} while timing; measure again on an idle machine.")
