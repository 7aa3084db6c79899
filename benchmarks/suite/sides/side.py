"""Sides: one system that serves a setting's requests, alone in its process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import Setting

# "vae_encoder" and "control" only where the task has them; "control" is of one step.
STAGES = (
    "text_encoder", "vae_encoder", "control", "unet_step", "vae_decoder", "outside", "end_to_end",
)  # fmt: skip
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Place:
    """Where a side finds its model; what a side does not need is None.

    Args:
        checkpoint: folder in diffusers' layout.
        bundle: built for the side's target.
        work: a folder that is kept between runs, for what the side converts itself.
    """

    checkpoint: str | None
    bundle: str | None
    work: str


@dataclass(frozen=True)
class Served:
    """One request that a side served.

    Args:
        images: [B,H,W,3] of 8 bits.
        stages_ms: by name of STAGES; "text_encoder" is all of a request's, "unet_step" the mean of
            its steps, and the others are of one image or its share. A stage that the system does
            not tell apart is missing; "end_to_end" is always there.
        steps_ms: of each U-Net evaluation, where the system tells them.
        latents: [B,4,h,w] before decoding, or None where the system does not give them.
    """

    images: NDArray[np.uint8]
    stages_ms: dict[str, float]
    steps_ms: list[float] = field(default_factory=list)
    latents: NDArray[np.float32] | None = None


class Side(Protocol):
    """One system with one precision. Importing its module imports nothing of the system."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        """Keep the arguments; nothing heavy happens yet."""
        ...

    def start(self) -> dict[str, float]:
        """Import and load; return seconds of "import", "load" and, where apart, "pack".

        "load" is reading; "pack" is packing of weights, compiling or capturing, without which no
        request can be served.
        """
        ...

    def serve(self, steps: int) -> Served:
        """Serve the setting's request with so many steps."""
        ...

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Run each network once on seeded inputs; empty where the system gives no access.

        Args:
            states: [B,77,D] that the U-Net shall read; None for those of the own text encoder.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
