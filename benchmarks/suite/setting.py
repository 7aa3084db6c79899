"""Settings: which model is asked for what, at which size, on what; equal for all sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdengine.benchmarks.cases import NATIVE_SIDES, native_side
from sdengine.errors import ConfigError
from sdengine.request.request import Request

TASKS = ("text", "image", "inpaint", "control")
DEVICES = ("cpu", "cuda")
PROMPT = "a benchmark of a picture"
SEED = 0
# What all systems have: Euler's method on the noise levels of diffusers' EulerDiscreteScheduler.
SAMPLER, SCHEDULE = "euler", "normal"
# Noise that torch draws on a GPU, which all systems can be given; those that change a picture draw
# several times, as torch does on a CPU.
NOISE = {"text": "cuda", "control": "cuda", "image": "cpu", "inpaint": "cpu"}
STRENGTH = 0.5  # of image to image and of inpainting
_FROM_PICTURES = ("image", "inpaint")


@dataclass(frozen=True)
class Setting:
    """Describe what every side is asked for; constructing it refuses what cannot be measured.

    Args:
        arch: a key of NATIVE_SIDES, of which all but "demo" have seeded synthetic weights, or
            what the checkpoint is called in tables.
        checkpoint: a folder in diffusers' layout in place of synthetic weights, or None.
        task: one of TASKS.
        resolution: side of the square picture in pixels.
        batch_size: pictures of a request.
        steps: sampler steps of a request.
        guidance_scale: above 1 the U-Net evaluates two rows for each picture.
        threads: of every side on a CPU, or None for each system's own choice.
        device: one of DEVICES.
    """

    arch: str = "demo"
    checkpoint: str | None = None
    task: str = "text"
    resolution: int = 128
    batch_size: int = 1
    steps: int = 20
    guidance_scale: float = 5.0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check everything now: building comes first and may take minutes."""
        if self.checkpoint is None:
            native_side(self.arch)
        if self.task not in TASKS:
            raise ConfigError.for_field("task", self.task, ", ".join(TASKS))
        if self.device not in DEVICES:
            raise ConfigError.for_field("device", self.device, ", ".join(DEVICES))
        if self.threads is not None and not 1 <= self.threads <= 4096:
            raise ConfigError.for_field("threads", self.threads, "an integer from 1 to 4096")
        self.request()
        if self.steps < self.least_steps:
            raise ConfigError.for_field(
                "steps", self.steps, f"at least {self.least_steps} with task {self.task}",
                f"Its strength is {STRENGTH:g}.",
            )  # fmt: skip

    @property
    def least_steps(self) -> int:
        """The fewest that a request of the task may have, so that one of them is run."""
        return math.ceil(1 / STRENGTH) if self.task in _FROM_PICTURES else 1

    def evaluations(self, steps: int) -> int:
        """Return how many of a request's steps are run."""
        return int(steps * STRENGTH) if self.task in _FROM_PICTURES else steps

    @property
    def rows(self) -> int:
        """Rows of the U-Net at each step."""
        return self.batch_size * (2 if self.guidance_scale > 1 else 1)

    @property
    def label(self) -> str:
        """One line for tables: what is asked for."""
        size = f"{self.resolution}x{self.resolution}"
        batch = f", batch {self.batch_size}" if self.batch_size > 1 else ""
        task = "" if self.task == "text" else f" {self.task}"
        return (
            f"{self.arch}{task} {size}{batch}, {self.steps} steps, guidance {self.guidance_scale:g}"
        )

    def request(self, steps: int | None = None, **given: Any) -> Request:
        """Return the request that an engine of ours is given, of `steps` where they are fewer."""
        return Request(
            prompt=PROMPT,
            width=self.resolution,
            height=self.resolution,
            steps=self.steps if steps is None else steps,
            guidance_scale=self.guidance_scale,
            sampler=SAMPLER,
            schedule=SCHEDULE,
            noise=NOISE[self.task],
            seed=SEED,
            batch_size=self.batch_size,
            **given,
        )


__all__ = ["NATIVE_SIDES", "Setting"]
