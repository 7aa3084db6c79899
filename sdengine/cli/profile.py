"""`sdengine profile`: what each operation of a network takes, beside the machine's roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdengine.cli.terminal import note, parse_size, print_table, say, spinner
from sdengine.errors import ConfigError


def profile(
    bundle: Annotated[str, typer.Argument(help="A bundle for a CPU, or 'demo'.")],
    network: Annotated[str, typer.Option(help="Of the bundle; `inspect` lists them.")] = "unet",
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="The bundle's first if not given.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, native, openvino or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Evaluated at once; 2 if not given, of a VAE 1.")
    ] = None,
    calls: Annotated[int, typer.Option(help="Calls that are timed.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the record to this file.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for chrome://tracing or Perfetto."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Slowest operations that are shown.")] = 20,
) -> None:
    """Show where a network's time goes, by kind, by level and by operation.

    Each is shown beside the peaks of this machine, which are measured in the same run.
    """
    with spinner("importing"):
        from sdengine.benchmarks.measures import BUSY_PERCENT
        from sdengine.benchmarks.records import append_record, check_writable
        from sdengine.benchmarks.suite.profiles.run import Asked, run
        from sdengine.benchmarks.suite.profiles.tables import notes, slowest, summary
        from sdengine.benchmarks.suite.profiles.trace import write_trace

    if limit < 0:
        raise ConfigError.for_field("--limit", limit, "0 or more")
    asked = Asked(
        bundle=bundle,
        network=network,
        size=parse_size("--size", size) if size else None,
        backend=backend,
        precision=precision,
        threads=threads,
        rows=rows,
        calls=calls,
    )
    for path in (json_file, trace):
        if path is not None:
            check_writable(path)
    with spinner("opening the bundle") as progress:
        record = run(asked, progress)
    if json_file is not None:
        append_record(record, json_file)
    if trace is not None:
        write_trace(record, trace)
    for key in ("kind", "level"):
        print_table(summary(record, key))
    if limit:
        print_table(slowest(record, limit))
    for line in notes(record):
        say(line)
    others = record["others_percent"]
    if others > BUSY_PERCENT:
        note(
            f"warning: other programs took {others:.0f} % of the cores while timing; measure again "
            "on an idle machine."
        )
