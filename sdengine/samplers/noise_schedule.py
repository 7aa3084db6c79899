"""Noise schedule: the noise levels that a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine.errors import ConfigError
from sdengine.samplers.scheduler_keys import CLASSES, EDM_CLASSES

Float64 = npt.NDArray[np.float64]


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


EDM_PREDICTION_TYPES = ("epsilon", "v_prediction")


_BETAS = {"beta_start", "beta_end", "beta_schedule", "trained_betas"}
_MAX_TRAIN_TIMESTEPS = 100_000
_RHO = 7.0  # of the karras schedule, the only one that there is


@dataclass(frozen=True)
class NoiseSchedule:
    """Hold how a checkpoint was trained to be noised.

    Attributes:
        alphas_cumprod: [T] float64, share of the signal's variance left at each timestep.
        prediction_type: what the network predicts, one of PREDICTION_TYPES.
        timestep_spacing: how few steps are spread over the T, one of TIMESTEP_SPACINGS.
        steps_offset: added to every timestep under "leading".
        set_alpha_to_one: DDIM's last step ends without any noise.
        own_schedule: what the name "normal" stands for.
        sigma_min, sigma_max: ends of the schedules that are curves; None for those of the table.
        sigma_data: what EDM preconditions with; None for models of the variance preserving process.
        continuous_timesteps: the network reads a quarter of log sigma as its timestep.
        original_inference_steps: those that LCM and TCD were distilled at.
        timestep_scaling: of LCM's boundary condition.
    """

    alphas_cumprod: Float64
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    own_schedule: str = "normal"
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    continuous_timesteps: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read diffusers' ``scheduler_config.json``.

        Args:
            config: its content. What the file's own sampler would make of it that no schedule can
                say is not looked at here: see `sdengine.samplers.scheduler_keys`.

        Raises:
            ConfigError: a value is missing, of another type or not supported, or the class is of
                another process and names no betas.

        Source: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), equation 4; the
        "scaled_linear" betas are linear in their square roots, as latent diffusion trained them;
        "squaredcos_cap_v2" is equation 17 of "Improved DDPM" (Nichol and Dhariwal 2021).
        """
        kind = config.get("_class_name")
        if kind in EDM_CLASSES:
            return _edm(config)
        if kind is not None and str(kind) not in CLASSES and not _BETAS & config.keys():
            raise ConfigError.for_field(
                "scheduler._class_name", kind, f"one of {', '.join(CLASSES)}, or betas"
            )
        alphas_cumprod = np.cumprod(1 - _betas(config), dtype=np.float64)
        if config.get("rescale_betas_zero_snr", False) is True:
            alphas_cumprod = _without_last_signal(alphas_cumprod)
        prediction_type = _choice(config, "prediction_type", "epsilon", PREDICTION_TYPES)
        continuous = _choice(config, "timestep_type", "discrete", ("discrete", "continuous"))
        total = len(alphas_cumprod)
        return cls(
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            timestep_spacing=_choice(config, "timestep_spacing", "leading", TIMESTEP_SPACINGS),
            steps_offset=int(_number(config, "steps_offset", 0, int, 0, 100)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
            sigma_min=_optional_sigma(config, "sigma_min"),
            sigma_max=_optional_sigma(config, "sigma_max"),
            # As published: nothing but v prediction reads sigma.
            continuous_timesteps=continuous == "continuous" and prediction_type == "v_prediction",
            original_inference_steps=int(
                _number(config, "original_inference_steps", min(50, total), int, 1, total)
            ),
            timestep_scaling=_number(config, "timestep_scaling", 10.0, float, 0.0, 1e6),
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


def _betas(config: Mapping[str, Any]) -> Float64:
    count = int(_number(config, "num_train_timesteps", 1000, int, 2, _MAX_TRAIN_TIMESTEPS))
    trained = config.get("trained_betas")
    if trained is not None:
        return _trained_betas(trained, count)
    start = _number(config, "beta_start", 0.0001, float, 0.0, 1.0)
    end = _number(config, "beta_end", 0.02, float, 0.0, 1.0)
    kind = _choice(config, "beta_schedule", "linear", BETA_SCHEDULES)
    if not 0 < start <= end < 1:
        raise ConfigError.for_field(
            "scheduler.beta_start", (start, end), "0 < beta_start <= beta_end < 1"
        )
    if kind == "squaredcos_cap_v2":
        left = np.arange(count + 1) / count
        alpha_bar = np.cos((left + 0.008) / 1.008 * np.pi / 2) ** 2
        betas: Float64 = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        return betas
    power = 2 if kind == "scaled_linear" else 1
    betas = np.linspace(start ** (1 / power), end ** (1 / power), count) ** power
    return betas


def _trained_betas(trained: object, count: int) -> Float64:
    """Check betas that the file lists one by one; they go before its start, end and schedule."""
    accepted = f"null or a list of num_train_timesteps={count} numbers between 0 and 1"
    if not isinstance(trained, list) or len(trained) != count:
        raise ConfigError.for_field("scheduler.trained_betas", trained, accepted)
    for beta in trained:
        if type(beta) not in (int, float) or not 0 < beta < 1:
            raise ConfigError.for_field("scheduler.trained_betas", beta, accepted)
    return np.array(trained, dtype=np.float64)


def _edm(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read the noise process of EDM; levels between its ends are even in log sigma.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.
    2022), table 1, column "Ours": levels, preconditioning, and log sigma / 4 for the network.
    """
    count = int(_number(config, "num_train_timesteps", 1000, int, 2, _MAX_TRAIN_TIMESTEPS))
    low = _number(config, "sigma_min", 0.002, float, 1e-6, 1e6)
    high = _number(config, "sigma_max", 80.0, float, 1e-6, 1e6)
    if not low < high:
        raise ConfigError.for_field("scheduler.sigma_min", (low, high), "less than sigma_max")
    _number(config, "rho", _RHO, float, _RHO, _RHO)
    sigmas = np.exp(np.linspace(np.log(low), np.log(high), count))
    return NoiseSchedule(
        alphas_cumprod=1 / (sigmas**2 + 1),
        prediction_type=_choice(config, "prediction_type", "epsilon", EDM_PREDICTION_TYPES),
        own_schedule=_choice(config, "sigma_schedule", "karras", ("karras", "exponential")),
        sigma_min=low,
        sigma_max=high,
        sigma_data=_number(config, "sigma_data", 0.5, float, 1e-6, 1e6),
        continuous_timesteps=True,
        original_inference_steps=min(50, count),
    )


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


def _optional_sigma(config: Mapping[str, Any], key: str) -> float | None:
    return None if config.get(key) is None else _number(config, key, 1.0, float, 1e-6, 1e6)


def _choice(config: Mapping[str, Any], key: str, default: str, accepted: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if value not in accepted:
        raise ConfigError.for_field(f"scheduler.{key}", value, f"one of {', '.join(accepted)}")
    return str(value)
