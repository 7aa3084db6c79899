"""Samplers and schedules by name, and the programs that they make."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdengine.errors import ConfigError
from sdengine.samplers.ddim import ddim
from sdengine.samplers.dpmpp import dpmpp_2m
from sdengine.samplers.euler import euler, euler_ancestral
from sdengine.samplers.program import (
    NoiseSchedule,
    SamplerProgram,
    run_step_reference,
    sample_reference,
)

__all__ = [
    "MAX_STEPS",
    "SAMPLERS",
    "SCHEDULES",
    "NoiseSchedule",
    "SamplerInfo",
    "SamplerProgram",
    "ScheduleInfo",
    "build_program",
    "run_step_reference",
    "sample_reference",
]

MAX_STEPS = 1000


@dataclass(frozen=True)
class SamplerInfo:
    """Describe a sampler to people and to `build_program`."""

    name: str
    label: str
    description: str
    build: Callable[[str, int, NoiseSchedule], SamplerProgram]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScheduleInfo:
    """Describe a schedule to people."""

    name: str
    label: str
    description: str
    aliases: tuple[str, ...] = ()


SAMPLERS: Mapping[str, SamplerInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            SamplerInfo("ddim", "DDIM", "deterministic, first order", ddim),
            SamplerInfo("euler", "Euler", "deterministic, first order", euler),
            SamplerInfo(
                "euler_a",
                "Euler a",
                "ancestral: adds noise at every step and does not converge",
                euler_ancestral,
                ("euler ancestral", "k_euler_a"),
            ),
            SamplerInfo(
                "dpmpp_2m",
                "DPM++ 2M",
                "deterministic, second order from the last two evaluations; good at 15 to 30 steps",
                dpmpp_2m,
                ("dpm++ 2m", "dpmsolver++", "dpm++2m"),
            ),
        )
    }
)

SCHEDULES: Mapping[str, ScheduleInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            ScheduleInfo("normal", "Normal", "evenly spaced timesteps, as the checkpoint asks"),
            ScheduleInfo("karras", "Karras", "noise levels closer together towards the clean end"),
        )
    }
)


def build_program(
    sampler: str, schedule: str, steps: int, noise_schedule: NoiseSchedule
) -> SamplerProgram:
    """Make a sampler's program.

    Args:
        sampler: a name, label or alias out of SAMPLERS, in any case.
        schedule: the same out of SCHEDULES.
        steps: number of network evaluations, 1 to 1000.
        noise_schedule: how the checkpoint was trained.

    Raises:
        ConfigError: a name is unknown or steps is not a whole number in the range.
    """
    info = SAMPLERS[_resolve("sampler", sampler, SAMPLERS)]
    chosen = _resolve("schedule", schedule, SCHEDULES)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_STEPS:
        raise ConfigError.for_field("steps", steps, f"a whole number from 1 to {MAX_STEPS}")
    if steps > noise_schedule.num_train_timesteps:
        raise ConfigError.for_field(
            "steps", steps, f"at most the model's {noise_schedule.num_train_timesteps} timesteps"
        )
    return info.build(chosen, steps, noise_schedule)


def _resolve(
    field: str, name: str, known: Mapping[str, SamplerInfo] | Mapping[str, ScheduleInfo]
) -> str:
    names = {
        spelling.lower(): info.name
        for info in known.values()
        for spelling in (info.name, info.label, *info.aliases)
    }
    if isinstance(name, str) and name.lower() in names:
        return names[name.lower()]
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    hint = f"Did you mean {names[near[0]]!r}?" if near else ""
    raise ConfigError.for_field(field, name, f"one of {', '.join(known)}", hint)
