"""Sampler options: fresh noise and churn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sdengine.request.request import FIELDS


@dataclass(frozen=True)
class SamplerOptions:
    """Those fields of a request that some samplers have; None takes the sampler's own default.

    Args:
        eta, s_noise, s_churn, s_tmin, s_tmax: as in `sdengine.Request`.

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
        for name, value in self.given.items():
            FIELDS[name].checked(value)

    @property
    def given(self) -> dict[str, float]:
        """The options that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def churned(self, sigma: float, steps: int) -> float:
        """Return the noise level that a step from sigma is raised to first.

        Source: Karras et al. 2022, algorithm 2, line 4.
        """
        low = self.s_tmin or 0.0
        high = math.inf if self.s_tmax is None else self.s_tmax
        if not self.s_churn or not low <= sigma <= high:
            return sigma
        return sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1))
