"""`sdengine bench`: our backend against eager torch on equal inputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    arch: Annotated[str, typer.Option(help="demo, sd15, sd21 or tiny.")] = "demo",
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels; the architecture's own if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampler steps of each request.")] = 4,
    runs: Annotated[int, typer.Option(help="Counted requests of each side.")] = 5,
    precision: Annotated[str, typer.Option(help="Ours: auto, fp32 or bf16.")] = "auto",
    baseline_precision: Annotated[str, typer.Option(help="Eager torch's: fp32 or bf16.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="CPU threads of both sides.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the record to this file.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where built bundles are kept.")
    ] = None,
) -> None:
    """Measure speed and memory against eager torch, after comparing outputs.

    All weights but the demo model's are synthetic: nothing is downloaded.
    """
    from sdengine.benchmarks.cases import Case, native_side
    from sdengine.benchmarks.harness import run
    from sdengine.benchmarks.records import append_record, make_record

    case = Case(
        arch=arch,
        resolution=native_side(arch) if resolution is None else resolution,
        steps=steps,
        runs=runs,
        precision=precision,
        baseline_precision=baseline_precision,
        threads=threads,
    )
    record = make_record(case, run(case, cache or _default_cache(), _say))
    _print_table(record)
    if json_file is not None:
        append_record(record, json_file)


def _print_table(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sdengine.benchmarks.records import rows, title

    table = Table(title=title(record))
    table.add_column("")
    for name in (record["backends"]["ours"], record["backends"]["baseline"], "ratio"):
        table.add_column(name, justify="right")
    for row in rows(record):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sdengine" / "bench"


def _say(message: str) -> None:
    if sys.stderr.isatty():
        print(message, file=sys.stderr)
