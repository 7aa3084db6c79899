"""`sdengine bench growth`: how time and memory grow with what is asked for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from sdengine.cli.terminal import note, print_table, say, spinner
from sdengine.storage.cache_place import cache_dir


def growth(
    arch: Annotated[str, typer.Option(help="demo, sd15, sd21, sdxl or tiny.")] = "demo",
    axes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Some of pixels,batch,steps,chunks,controls,loras; all if none."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="native, openvino or torch.")] = "native",
    precision: Annotated[str, typer.Option(help="What the networks compute in.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    runs: Annotated[int, typer.Option(help="Counted requests of each point.")] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps on all axes but that of steps.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the records to this file.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where what is built is kept.")
    ] = None,
) -> None:
    """Measure how time and memory grow with size, batch, steps, prompt, ControlNets and LoRAs.

    Each point has a process of its own. An axis is in the file as soon as it is measured, and so is
    what was measured of one that is interrupted.
    """
    with spinner("importing"):
        from sdengine.benchmarks.records import append_record, check_writable, stamped
        from sdengine.benchmarks.suite.comparing import SCHEMA
        from sdengine.benchmarks.suite.growth import tables as growth_tables
        from sdengine.benchmarks.suite.growth.run import Growth, measure

    chosen = None if axes is None else tuple(name.strip() for name in axes.split(","))
    asked = Growth(arch, chosen, backend, precision, threads, runs, steps)
    if json_file is not None:
        check_writable(json_file)
    command = _command(asked.measured, arch, backend, precision, threads, runs, steps)
    records: list[dict[str, Any]] = []

    def keep(figures: dict[str, Any]) -> None:
        record = stamped({"command": command, **figures}, schema=SCHEMA)
        records.append(record)
        if json_file is not None:
            append_record(record, json_file)

    try:
        with spinner("starting") as progress:
            measure(asked, cache or cache_dir("bench"), keep, progress)
    finally:
        for record in records:
            print_table(growth_tables.points_table(record))
            print_table(growth_tables.fits_table(record))
            if line := growth_tables.verdict(record):
                say(line)
            for value, why in record["failed"].items():
                note(f"warning: {record['axis']} {value} was not measured: {why}")
            for why in record["noise"]["why"]:
                note(f"warning: {record['axis']}: {why}; measure again on an idle machine.")


def _command(
    axes: tuple[str, ...],
    arch: str,
    backend: str,
    precision: str,
    threads: int | None,
    runs: int,
    steps: int | None,
) -> str:
    """Return the command that measures the same again."""
    words = ["sdengine", "bench", "growth", "--arch", arch, "--axes", ",".join(axes)]
    words += ["--backend", backend, "--precision", precision, "--runs", str(runs)]
    for option, value in (("--threads", threads), ("--steps", steps)):
        words += [] if value is None else [option, str(value)]
    return shlex.join(words)
