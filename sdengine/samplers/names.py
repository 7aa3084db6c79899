"""Sampler names: spellings, labels, and the program that a name asks for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from sdengine.errors import ConfigError
from sdengine.request.fields import Integer
from sdengine.request.request import FIELDS
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span
from sdengine.samplers.program import SamplerProgram
from sdengine.samplers.registry import REFUSED, SAMPLERS, SCHEDULES, SamplerInfo, ScheduleInfo

_NO_OPTIONS = SamplerOptions()


def build_program(
    sampler: str,
    schedule: str,
    steps: int,
    noise_schedule: NoiseSchedule,
    options: SamplerOptions = _NO_OPTIONS,
    *,
    first: int | None = None,
) -> SamplerProgram:
    """Make a sampler's program.

    Args:
        sampler: a name, label or alias out of SAMPLERS, in any case.
        schedule: the same out of SCHEDULES.
        steps: 1 to 1000; some samplers evaluate the network twice in a step.
        noise_schedule: how the checkpoint was trained.
        options: those that the sampler has.
        first: start from noised latents of a picture at this step, 0 to steps - 1, of which the
            evaluations' steps are counted; None starts from noise. Samplers that remember earlier
            steps begin anew there.

    Raises:
        ConfigError: a name is unknown, steps is not an integer in the range, or the sampler
            has no such option.
    """
    info = SAMPLERS[_resolve("sampler", sampler, SAMPLERS)]
    chosen = _resolve("schedule", schedule, SCHEDULES)
    if chosen == "normal":
        chosen = noise_schedule.own_schedule
    FIELDS["steps"].checked(steps)
    if steps > noise_schedule.num_train_timesteps:
        raise ConfigError.for_field(
            "steps", steps, f"at most the model's {noise_schedule.num_train_timesteps} timesteps"
        )
    for name, value in options.given.items():
        if name not in info.options:
            accepted = ", ".join(info.options) or "no options"
            raise ConfigError.for_field(name, value, f"{accepted} for sampler {info.name}")
    if first is not None:
        Integer(0, steps - 1)("first", first)
    span = Span(steps, first or 0, from_picture=first is not None)
    return info.build(chosen, span, noise_schedule, options)


def resolve_names(
    sampler: str, schedule: str | None, otherwise: str | None = None
) -> tuple[str, str]:
    """Return the names of a sampler and a schedule.

    Args:
        sampler: a name, label or alias; it may end in a schedule's, as in "DPM++ 2M Karras".
        schedule: likewise; None takes the one in the sampler's name, or else `otherwise`.
        otherwise: a schedule; None is the sampler's default.

    Raises:
        ConfigError: a name is unknown, or the sampler cannot be a program.
    """
    named = _split_schedule(sampler) if isinstance(sampler, str) else None
    if named is not None:
        sampler, in_name = named
        schedule = schedule or in_name
    found = _resolve("sampler", sampler, SAMPLERS)
    schedule = schedule or otherwise
    if schedule is None:
        return found, SAMPLERS[found].default_schedule
    return found, _resolve("schedule", schedule, SCHEDULES)


def _split_schedule(sampler: str) -> tuple[str, str] | None:
    samplers = _SAMPLER_SPELLINGS
    plain = sampler.strip().lower()
    if plain in samplers:
        return None
    for spelling, name in _SCHEDULE_SPELLINGS.items():
        head = plain.removesuffix(spelling).rstrip(" _")
        if head != plain and head in samplers:
            return samplers[head], name
    return None


def _spellings(
    known: Mapping[str, SamplerInfo] | Mapping[str, ScheduleInfo],
) -> dict[str, str]:
    return {
        spelling.lower(): info.name
        for info in known.values()
        for spelling in (info.name, info.label, *info.aliases)
    }


def _resolve(
    field: str, name: str, known: Mapping[str, SamplerInfo] | Mapping[str, ScheduleInfo]
) -> str:
    names = _SAMPLER_SPELLINGS if known is SAMPLERS else _SCHEDULE_SPELLINGS
    plain = name.strip().lower() if isinstance(name, str) else ""
    if plain in names:
        return names[plain]
    refused = plain.replace(" ", "_")
    if field == "sampler" and refused in REFUSED:
        raise ConfigError(f"sampler: {name!r} is not accepted: {REFUSED[refused]}.")
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    hint = f"Did you mean {names[near[0]]!r}?" if near else ""
    raise ConfigError.for_field(field, name, f"one of {', '.join(known)}", hint)


_SAMPLER_SPELLINGS = _spellings(SAMPLERS)
_SCHEDULE_SPELLINGS = _spellings(SCHEDULES)
