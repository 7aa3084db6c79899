"""`sdengine bench compare`: what became slower or larger between two files of comparisons."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from sdengine.cli.terminal import note, print_table, say, say_json, spinner
from sdengine.errors import ConfigError


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="JSON lines of bench, before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same, after.")],
    threshold: Annotated[str, typer.Option(help="Change that counts, with its %.")] = "5%",
    stages: Annotated[
        str | None,
        typer.Option(help="What fails if worse; unet_step,end_to_end,peak_memory,device_memory."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail too where noise hides whether it is worse.")
    ] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Compare different processors too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs of bench, and fail where the second is slower or takes more memory.

    Where both have the same peer, times are compared as multiples of the peer's, so that a machine
    that became slower does not count. Exit status: 0 none is worse, 1 one is, 2 wrong usage.
    """
    limit = parse_percent("--threshold", threshold)
    with spinner("reading", quiet=as_json):
        from sdengine.benchmarks.records import read_records
        from sdengine.benchmarks.suite import comparing, comparing_report

        gated = _gated(stages, comparing.COMPARED, comparing.GATED)
        first, second = (read_records(path, comparing.SCHEMA) for path in (before, after))
        found = comparing.compare_records(first, second, limit, any_machine=any_machine)
    told = {stage for pair in found.pairs for stage in (*pair.changes, *pair.missing)}
    if stages is not None and (absent := [stage for stage in gated if stage not in told]):
        accepted = ", ".join(stage for stage in comparing.COMPARED if stage in told)
        raise ConfigError.for_field("--stages", absent[0], f"what both files tell: {accepted}")
    worse = comparing_report.regressions(found, gated)
    unclear = comparing_report.unclear(found, gated)
    if as_json:
        say_json(comparing_report.as_json(found, limit, gated))
    else:
        for pair in found.pairs:
            print_table(comparing_report.as_rich(pair, gated))
        for line in found.notes:
            note(f"note: {line}")
        for line in worse:
            say(f"regression: {line}; threshold {100 * limit:g} %")
        for line in unclear:
            say(f"unclear: {line}; threshold {100 * limit:g} %")
        if not worse:
            say("no regression" + (" was found, but see what is unclear" if unclear else ""))
    if worse or (strict and unclear):
        raise typer.Exit(1)


def parse_percent(option: str, text: str) -> float:
    """Read "5%" as 0.05; the sign is needed, as 0.05 might be meant as either.

    Raises:
        ConfigError: it is something else, or not above 0 %.
    """
    number, sign, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not sign or rest or not 0 < value <= 1000:
        raise ConfigError.for_field(option, text, "a percentage above 0 % such as 5%")
    return value / 100


def _gated(text: str | None, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ConfigError.for_field("--stages", name, f"some of {', '.join(known)}")
    return names
