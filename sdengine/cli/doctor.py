"""`sdengine doctor`: what this machine has, what it lacks, what each lack costs."""

from __future__ import annotations

from typing import Annotated

import typer

from sdengine.cli.terminal import progress_bar, say, say_json


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is present, what is missing, what each lack costs and how to get it."""
    from sdengine.cli.checks import run_checks

    with progress_bar("looking", quiet=as_json):
        checks = run_checks()
    ready = all(check.present for check in checks if check.required)
    if as_json:
        say_json({"ready": ready, "checks": [check.to_dict() for check in checks]})
    else:
        for check in checks:
            say(f"{'ok     ' if check.present else 'missing'} {check.name:<16} {check.found}")
            if not check.present:
                say(f"{'':25}without it: {check.cost}")
                say(f"{'':25}to get it: {check.remedy}")
        say("ready: the demo can run" if ready else "not ready: a required part is missing")
    if not ready:
        raise typer.Exit(1)
