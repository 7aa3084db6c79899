"""The cases: which model, at which size, asked for what, computed in which precision."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.backends.native.backend import PRECISIONS
from sdengine.errors import ConfigError
from sdengine.request import Request

NATIVE_SIDES = {"demo": 128, "sd15": 512, "sd21": 768, "tiny": 64}
_PROMPT = "a benchmark of a picture"


@dataclass(frozen=True)
class Case:
    """Describe one comparison; constructing it refuses what cannot be measured.

    Args:
        arch: a key of NATIVE_SIDES; all but "demo" have seeded synthetic weights.
        resolution: side of the square image in pixels.
        steps, guidance_scale, batch_size: of each request; guidance doubles the U-Net's rows.
        runs: counted requests of each side, after the warm-up.
        precision, baseline_precision: what each side computes in.
        threads: of both sides, or None for each runtime's own choice.
    """

    arch: str = "demo"
    resolution: int = 128
    steps: int = 4
    guidance_scale: float = 3.0
    batch_size: int = 1
    runs: int = 5
    precision: str = "auto"
    baseline_precision: str = "fp32"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check everything now: building comes first and may take minutes."""
        native_side(self.arch)
        if not 1 <= self.runs <= 1000:
            raise ConfigError.for_field("runs", self.runs, "a whole number from 1 to 1000")
        if self.precision not in PRECISIONS:
            raise ConfigError.for_field("precision", self.precision, ", ".join(PRECISIONS))
        if self.baseline_precision not in ("fp32", "bf16"):
            raise ConfigError.for_field("baseline_precision", self.baseline_precision, "fp32, bf16")
        if self.threads is not None and not 1 <= self.threads <= 4096:
            raise ConfigError.for_field("threads", self.threads, "a whole number from 1 to 4096")
        self.request()

    def request(self) -> Request:
        """Return what both sides are asked for."""
        return Request(
            prompt=_PROMPT,
            width=self.resolution,
            height=self.resolution,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            sampler="dpmpp_2m",
            schedule="karras",
            seed=0,
            batch_size=self.batch_size,
        )


def native_side(arch: str) -> int:
    """Return the side in pixels that an architecture was made for."""
    if arch not in NATIVE_SIDES:
        raise ConfigError.for_field("arch", arch, ", ".join(NATIVE_SIDES))
    return NATIVE_SIDES[arch]
