"""Timings: milliseconds and calls of a request by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

# Those that every request has, in the order in which they are shown.
STAGES = ("load", "text_encoder", "unet", "vae_decoder")


class StageTime(NamedTuple):
    """One stage of a request: its milliseconds, and how often its network ran."""

    ms: float
    calls: int


_NONE = StageTime(0.0, 0)


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went.

    Args:
        stages: time and calls by stage; "load" is reading and compiling networks that the engine
            had not loaded for these sizes, and is zero from the second request on.
        total_ms: all of it, without the time that the caller held a step.
    """

    stages: Mapping[str, StageTime]
    total_ms: float

    def __post_init__(self) -> None:
        complete = {**dict.fromkeys(STAGES, _NONE), **self.stages}
        object.__setattr__(self, "stages", MappingProxyType(complete))

    def __reduce__(self) -> tuple[type[Timings], tuple[Mapping[str, StageTime], float]]:
        return Timings, (dict(self.stages), self.total_ms)  # a proxy is for this process alone

    @property
    def load_ms(self) -> float:
        """Milliseconds of loading networks."""
        return self.stages["load"].ms

    @property
    def text_encoder_ms(self) -> float:
        """Milliseconds in text encoders."""
        return self.stages["text_encoder"].ms

    @property
    def unet_ms(self) -> float:
        """Milliseconds in the U-Net."""
        return self.stages["unet"].ms

    @property
    def vae_decoder_ms(self) -> float:
        """Milliseconds in the VAE decoder."""
        return self.stages["vae_decoder"].ms

    @property
    def other_ms(self) -> float:
        """Milliseconds outside the stages."""
        return self.total_ms - sum(stage.ms for stage in self.stages.values())

    @property
    def text_encoder_calls(self) -> int:
        """Runs of text encoders."""
        return self.stages["text_encoder"].calls

    @property
    def unet_calls(self) -> int:
        """Runs of the U-Net."""
        return self.stages["unet"].calls

    @property
    def vae_decoder_calls(self) -> int:
        """Runs of the VAE decoder."""
        return self.stages["vae_decoder"].calls

    def to_dict(self) -> dict[str, float | int]:
        """Return the figures by name, milliseconds rounded to 1 us."""
        times = {f"{name}_ms": round(stage.ms, 3) for name, stage in self.stages.items()}
        ends = {"other_ms": round(self.other_ms, 3), "total_ms": round(self.total_ms, 3)}
        return {**times, **ends, **{f"{n}_calls": s.calls for n, s in self.stages.items()}}
