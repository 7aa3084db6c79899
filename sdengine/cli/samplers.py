"""`sdengine samplers`: what --sampler and --schedule accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli.terminal import say, say_json

if TYPE_CHECKING:
    from sdengine.samplers import SamplerInfo, ScheduleInfo


def samplers(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List samplers and schedules with their names, options and aliases."""
    from sdengine.samplers import REFUSED, SAMPLERS, SCHEDULES

    if as_json:
        content: dict[str, object] = {
            "samplers": [_sampler(info) for info in SAMPLERS.values()],
            "schedules": [_entry(info) for info in SCHEDULES.values()],
            "refused": dict(REFUSED),
        }
        say_json(content)
        return
    say("samplers:")
    for info in SAMPLERS.values():
        twice = "; 2 evaluations a step" if info.evaluations == 2 else ""
        say(f"  {info.name:<18} {info.label:<18} {info.description}{twice}")
        details = {
            "options": info.options,
            "schedule if none is given": (info.default_schedule,),
            "also": info.aliases,
        }
        shown = [f"{key}: {', '.join(values)}" for key, values in details.items() if values]
        say(f"  {'':<37} {'; '.join(shown)}")
    say("schedules:")
    for schedule in SCHEDULES.values():
        also = f" (also: {', '.join(schedule.aliases)})" if schedule.aliases else ""
        say(f"  {schedule.name:<22} {schedule.label:<22} {schedule.description}{also}")
    say("refused:")
    for name, reason in REFUSED.items():
        say(f"  {name:<22} {reason}.")


def _sampler(info: SamplerInfo) -> dict[str, object]:
    return {
        **_entry(info),
        "evaluations": info.evaluations,
        "options": list(info.options),
        "default_schedule": info.default_schedule,
    }


def _entry(info: SamplerInfo | ScheduleInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "label": info.label,
        "description": info.description,
        "aliases": list(info.aliases),
    }
