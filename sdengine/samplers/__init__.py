"""Samplers: names, noise schedules, and the programs of numbers that they become."""

from sdengine.samplers.names import build_program, resolve_names
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.program import SamplerProgram
from sdengine.samplers.registry import REFUSED, SAMPLERS, SCHEDULES, SamplerInfo, ScheduleInfo
from sdengine.samplers.scheduler_keys import read_scheduler_keys

__all__ = [
    "REFUSED",
    "SAMPLERS",
    "SCHEDULES",
    "NoiseSchedule",
    "SamplerInfo",
    "SamplerOptions",
    "SamplerProgram",
    "ScheduleInfo",
    "build_program",
    "read_scheduler_keys",
    "resolve_names",
]
