"""A sampler as a linear program: every step is one network evaluation and one matrix of numbers.

    registers r[0..R-1], r[0] = x
    for k in 0..K-1:
        m     = guided(denoiser(c_in[k] * r[0], t[k]))
        r'[i] = sum_j A[k,i,j] r[j] + b[k,i] m + d[k,i] noise[k]

The numbers are computed on the host in float64; native code applies them to fp32 registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine.errors import ConfigError

Float64 = npt.NDArray[np.float64]
Denoiser = Callable[[npt.NDArray[Any], float], npt.NDArray[Any]]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear")
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
        "scaled_linear" betas are linear in their square roots, as latent diffusion trained them.
        """
        count = _number(config, "num_train_timesteps", 1000, int, 2, _MAX_TRAIN_TIMESTEPS)
        start = _number(config, "beta_start", 0.0001, float, 0.0, 1.0)
        end = _number(config, "beta_end", 0.02, float, 0.0, 1.0)
        kind = _choice(config, "beta_schedule", "linear", BETA_SCHEDULES)
        if not 0 < start <= end < 1:
            raise ConfigError.for_field(
                "scheduler.beta_start", (start, end), "0 < beta_start <= beta_end < 1"
            )
        power = 2 if kind == "scaled_linear" else 1
        betas = np.linspace(start ** (1 / power), end ** (1 / power), int(count)) ** power
        return cls(
            alphas_cumprod=np.cumprod(1 - betas),
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


@dataclass(frozen=True)
class SamplerProgram:
    """Hold a sampler's numbers for K evaluations over R registers.

    Attributes:
        sampler, schedule: names of what the program was made from.
        t: [K] timesteps given to the network.
        c_in: [K] factors on r[0] before the network reads it.
        sigma: [K] noise level before each evaluation, relative to the signal.
        A: [K,R,R], b: [K,R], d: [K,R] coefficients of registers, network output and noise.
        init_scale: r[0] starts as init_scale times unit noise.
    """

    sampler: str
    schedule: str
    t: Float64
    c_in: Float64
    sigma: Float64
    A: Float64
    b: Float64
    d: Float64
    init_scale: float

    @property
    def num_registers(self) -> int:
        """Number of latent-shaped registers R."""
        return int(self.b.shape[1])

    @property
    def needs_noise(self) -> tuple[bool, ...]:
        """Tell for each evaluation whether fresh noise enters."""
        return tuple(bool(row.any()) for row in self.d)


def run_step_reference(
    registers: npt.NDArray[Any],
    noise_pred: npt.NDArray[Any],
    guidance_scale: float,
    A: Float64,
    b: Float64,
    d: Float64,
    noise: npt.NDArray[Any] | None,
) -> bool:
    """Apply one step in NumPy: the reference of the native kernel.

    Args:
        registers: [R,B,...], updated in place.
        noise_pred: [2B,...], unconditional rows first, or [B,...] without guidance.
        guidance_scale: used only with 2B rows.
        A, b, d: [R,R], [R], [R].
        noise: [B,...], or None when d is zero.

    Returns:
        Whether every new value is finite.
    """
    batch = registers.shape[1]
    m = noise_pred
    if len(noise_pred) == 2 * batch:
        m = noise_pred[:batch] + guidance_scale * (noise_pred[batch:] - noise_pred[:batch])
    updated = np.tensordot(A, registers, axes=1) + np.multiply.outer(b, m)
    if noise is not None:
        updated += np.multiply.outer(d, noise)
    registers[:] = updated
    return bool(np.isfinite(registers).all())


def sample_reference(
    program: SamplerProgram,
    denoiser: Denoiser,
    initial_noise: npt.NDArray[Any],
    step_noise: Callable[[int], npt.NDArray[Any]] | None = None,
) -> list[npt.NDArray[np.float64]]:
    """Run a whole program in float64 without guidance.

    Args:
        program: the sampler.
        denoiser: maps (scaled latents, timestep) to the network's output.
        initial_noise: [B,...] unit noise.
        step_noise: unit noise of evaluation k; needed where program.needs_noise says so.

    Returns:
        r[0] after each evaluation.
    """
    registers = np.zeros((program.num_registers, *initial_noise.shape))
    registers[0] = initial_noise * program.init_scale
    trajectory = []
    for k, needs_noise in enumerate(program.needs_noise):
        output = denoiser(program.c_in[k] * registers[0], float(program.t[k]))
        noise = step_noise(k) if needs_noise and step_noise is not None else None
        run_step_reference(registers, output, 1.0, program.A[k], program.b[k], program.d[k], noise)
        trajectory.append(registers[0].copy())
    return trajectory


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
