"""`sdengine samplers`: what --sampler and --schedule accept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdengine.samplers import SamplerInfo, ScheduleInfo


def samplers(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List samplers and schedules with their names and aliases."""
    from sdengine.samplers import SAMPLERS, SCHEDULES

    kinds: dict[str, Mapping[str, SamplerInfo | ScheduleInfo]] = {
        "samplers": SAMPLERS,
        "schedules": SCHEDULES,
    }
    if as_json:
        print(
            json.dumps({kind: [_entry(i) for i in known.values()] for kind, known in kinds.items()})
        )
        return
    for kind, known in kinds.items():
        print(f"{kind}:")
        for info in known.values():
            aliases = f" (also: {', '.join(info.aliases)})" if info.aliases else ""
            print(f"  {info.name:<10} {info.label:<12} {info.description}{aliases}")


def _entry(info: SamplerInfo | ScheduleInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "label": info.label,
        "description": info.description,
        "aliases": list(info.aliases),
    }
