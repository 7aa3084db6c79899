"""`sdengine doctor`: what this machine has, what it lacks, what each lack costs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is present, what is missing, what each lack costs and how to get it."""
    from sdengine.cli.checks import run_checks

    checks = run_checks()
    ready = all(check.present for check in checks if check.required)
    if as_json:
        print(json.dumps({"ready": ready, "checks": [check.to_dict() for check in checks]}))
    else:
        for check in checks:
            print(f"{'ok     ' if check.present else 'missing'} {check.name:<16} {check.found}")
            if not check.present:
                print(f"{'':25}without it: {check.cost}")
                print(f"{'':25}to get it: {check.remedy}")
        print("ready: the demo can run" if ready else "not ready: a required part is missing")
    if not ready:
        raise typer.Exit(1)
