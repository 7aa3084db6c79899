"""Known part of a trajectory: what a mask keeps, laid into every step, so that the rest fits it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.samplers import SamplerProgram

Array = NDArray[np.float32]


@dataclass(frozen=True)
class KnownPart:
    """Clean latents, and where a trajectory may leave them.

    With "clean" the estimate of the clean latents is blended, before the sampler's step reads it:
    its history holds what was blended, so multistep and stochastic samplers stay consistent. With
    "latents" the latents after each step are blended with the known ones, noised to their level.

    Args:
        clean: [B,C,h,w] fp32 known clean latents.
        weights: [1,1,h,w] fp32, how much may change. 0 keeps, 1 is free.
        rule: "clean" or "latents".
        soft: a cell of weight w is kept for the first 1 - w of the steps, then free; else weights
            are shares.

    Source: "clean" is what the web UI does, "latents" is "RePaint" (Lugmayr et al. 2022), equation
    8, as diffusers does; soft weights are "Differential Diffusion" (Levin and Fried 2023),
    algorithm 1.
    """

    clean: Array
    weights: Array
    rule: str = "clean"
    soft: bool = False

    def weights_at(self, step: int, steps: int) -> Array:
        """Return how much may change in a step, [1,1,h,w]."""
        if not self.soft:
            return self.weights
        is_free = (1 - self.weights <= np.float32(step / steps)) & (self.weights > 0)
        return np.asarray(is_free, np.float32)

    def blend_output(self, program: SamplerProgram, k: int, read: Array, output: Array) -> Array:
        """Return the guided output whose clean estimate is the known one where that is kept.

        Args:
            program: of the trajectory.
            k: the evaluation.
            read: [B,C,h,w] what the network read.
            output: [B,C,h,w] what it answered, guided.
        """
        p, q = program.clean_form(k)
        kept = (self.clean - np.float32(p) * read) / np.float32(q)
        share = self._share(program, k)
        return np.ascontiguousarray(share * output + (1 - share) * kept, dtype=np.float32)

    def blend_latents(self, program: SamplerProgram, k: int, latents: Array, noise: Array) -> None:
        """Lay the known latents, noised to the level after evaluation k, into what it gave.

        Args:
            program: of the trajectory.
            k: the evaluation.
            latents: [B,C,h,w] after it; changed.
            noise: [B,C,h,w] that the trajectory started from.
        """
        signal, sigma = (np.float32(one) for one in program.levels[k + 1])
        share = self._share(program, k)
        latents *= share
        latents += (1 - share) * (signal * self.clean + sigma * noise)

    def _share(self, program: SamplerProgram, k: int) -> Array:
        return self.weights_at(int(program.step[k]), int(program.step[-1]) + 1)
