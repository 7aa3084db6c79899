"""Noise schedule: the noise levels that a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine.errors import ConfigError

Float64 = npt.NDArray[np.float64]


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


_MAX_TRAIN_TIMESTEPS = 100_000


@dataclass(frozen=True)
class NoiseSchedule:
    """Hold how a checkpoint was trained to be noised.

    Attributes:
        alphas_cumprod: [T] float64, share of the signal's variance left at each timestep.
        prediction_type: what the network predicts, one of PREDICTION_TYPES.
        timestep_spacing: how few steps are spread over the T, one of TIMESTEP_SPACINGS.
        steps_offset: added to every timestep under "leading".
        set_alpha_to_one: DDIM's last step ends without any noise.
    """

    alphas_cumprod: Float64
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read diffusers' ``scheduler_config.json``.

        Raises:
            ConfigError: a value is missing, of another type or not supported.

        Source: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), equation 4; the
        "scaled_linear" betas are linear in their square roots, as latent diffusion trained them;
        "squaredcos_cap_v2" is equation 17 of "Improved DDPM" (Nichol and Dhariwal 2021).
        """
        count = _number(config, "num_train_timesteps", 1000, int, 2, _MAX_TRAIN_TIMESTEPS)
        start = _number(config, "beta_start", 0.0001, float, 0.0, 1.0)
        end = _number(config, "beta_end", 0.02, float, 0.0, 1.0)
        kind = _choice(config, "beta_schedule", "linear", BETA_SCHEDULES)
        if not 0 < start <= end < 1:
            raise ConfigError.for_field(
                "scheduler.beta_start", (start, end), "0 < beta_start <= beta_end < 1"
            )
        betas = _betas(kind, start, end, int(count))
        alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64)
        if config.get("rescale_betas_zero_snr", False) is True:
            alphas_cumprod = _without_last_signal(alphas_cumprod)
        return cls(
            alphas_cumprod=alphas_cumprod,
            prediction_type=_choice(config, "prediction_type", "epsilon", PREDICTION_TYPES),
            timestep_spacing=_choice(config, "timestep_spacing", "leading", TIMESTEP_SPACINGS),
            steps_offset=int(_number(config, "steps_offset", 0, int, 0, 100)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
        )

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps T."""
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Float64:
        """Noise levels [T] relative to the signal: sqrt((1 - alphas_cumprod) / alphas_cumprod)."""
        sigmas: Float64 = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        return sigmas


def _betas(kind: str, start: float, end: float, count: int) -> Float64:
    if kind == "squaredcos_cap_v2":
        left = np.arange(count + 1) / count
        alpha_bar = np.cos((left + 0.008) / 1.008 * np.pi / 2) ** 2
        betas: Float64 = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        return betas
    power = 2 if kind == "scaled_linear" else 1
    betas = np.linspace(start ** (1 / power), end ** (1 / power), count) ** power
    return betas


# What is left of the signal where none should be, so that noise levels stay finite.
_LEAST_SIGNAL = 2.0**-24


def _without_last_signal(alphas_cumprod: Float64) -> Float64:
    """Shift and scale the signal so that the last timestep is pure noise.

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023),
    algorithm 1.
    """
    roots = np.sqrt(alphas_cumprod)
    first, last = roots[0], roots[-1]
    rescaled = ((roots - last) * (first / (first - last))) ** 2
    rescaled[-1] = _LEAST_SIGNAL
    return np.asarray(rescaled)


def _number(
    config: Mapping[str, Any], key: str, default: float, kind: type, low: float, high: float
) -> float:
    value = config.get(key, default)
    right_type = isinstance(value, (int, float) if kind is float else int)
    if not right_type or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError.for_field(
            f"scheduler.{key}", value, f"{kind.__name__} from {low} to {high}"
        )
    return float(value) if kind is float else int(value)


def _choice(config: Mapping[str, Any], key: str, default: str, accepted: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if value not in accepted:
        raise ConfigError.for_field(f"scheduler.{key}", value, f"one of {', '.join(accepted)}")
    return str(value)
