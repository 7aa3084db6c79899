"""What a sampler lets its caller turn: fresh noise and churn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdengine.errors import ConfigError


@dataclass(frozen=True)
class SamplerOptions:
    """Options of a sampler; None takes the sampler's own default.

    Args:
        eta: 0 to 1, share of the noise that is added afresh.
        s_noise: factor on fresh noise.
        s_churn: noise added before each step, relative to the level; 0 for none.
        s_tmin, s_tmax: noise levels between which steps churn.

    Raises:
        ConfigError: a value is out of range.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.
    2022), algorithm 2; eta as in "Denoising Diffusion Implicit Models" (Song et al. 2021).
    """

    eta: float | None = None
    s_noise: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None

    def __post_init__(self) -> None:
        for name in ("eta", "s_noise", "s_churn", "s_tmin", "s_tmax"):
            value = getattr(self, name)
            if value is None:
                continue
            high = 1.0 if name == "eta" else math.inf
            if not (isinstance(value, (int, float)) and 0 <= value <= high):
                accepted = f"a number from 0 to {high:g}" if high == 1 else "a number from 0"
                raise ConfigError.for_field(name, value, accepted)

    @property
    def given(self) -> dict[str, float]:
        """The options that are not None, by name."""
        names = ("eta", "s_noise", "s_churn", "s_tmin", "s_tmax")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def churned(self, sigma: float, steps: int) -> float:
        """Return the noise level that a step from sigma is raised to first.

        Source: Karras et al. 2022, algorithm 2, line 4.
        """
        low = self.s_tmin or 0.0
        high = math.inf if self.s_tmax is None else self.s_tmax
        if not self.s_churn or not low <= sigma <= high:
            return sigma
        return sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1))
