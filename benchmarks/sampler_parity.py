"""Samplers: every whole trajectory beside an independent implementation's, in float64.

    python benchmarks/sampler_parity.py      # the table and the record

The other implementations are diffusers' schedulers and k-diffusion's samplers, the latter after
`pip install --no-deps k-diffusion torchsde torchdiffeq trampoline`. Both sides see the same
latents, the same noises and the same nonlinear stand-in for a network.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from sdengine.benchmarks.accuracy_tables import samplers as as_markdown
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.samplers import NoiseSchedule, build_program
from sdengine.samplers.reference import sample_reference

SHAPE = (2, 4, 8, 8)
STEPS = (5, 20, 50)
MAX_ERROR = 1e-4
BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
# Ours: diffusers' scheduler, what it is told, and the schedules that it has under which name.
_CURVES = {"normal": {}, "karras": {"use_karras_sigmas": True}}
_MORE_CURVES = {
    **_CURVES,
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
_NORMAL: dict[str, dict[str, Any]] = {"normal": {}}
DIFFUSERS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, _NORMAL),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, _NORMAL),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}, _NORMAL),
    "euler": ("EulerDiscreteScheduler", {}, _MORE_CURVES),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, _NORMAL),
    "heun": ("HeunDiscreteScheduler", {}, _MORE_CURVES),
    "lms": ("LMSDiscreteScheduler", {}, _MORE_CURVES),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, _CURVES),
    "deis": ("DEISMultistepScheduler", {}, _CURVES),
    "unipc": ("UniPCMultistepScheduler", {}, _CURVES),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}, _CURVES),
    "lcm": ("LCMScheduler", {"set_alpha_to_one": False, "clip_sample": False}, _NORMAL),
    "tcd": ("TCDScheduler", {"set_alpha_to_one": False, "clip_sample": False}, _NORMAL),
}
# Where we mean to differ: sampler, prediction type, why.
DIFFERS = {
    ("pndm", "v_prediction"): (
        "diffusers mixes the v outputs of several timesteps before turning them into noise; the "
        "paper's multistep formula is about noise estimates, which we mix"
    )
}
# From so many steps on LMS ends in a step of lower order than the others' (see
# sdengine/samplers/lms.py), so that only fewer are compared.
LMS_LOWERS = {"karras": 50, "exponential": 30, "align_your_steps": 100}
LMS_REASON = (
    "the last step, to zero, is then so much longer than those before it that their slopes, "
    "extrapolated by it, multiply the rounding of the network's output by up to a million; it "
    "takes fewer of them"
)
K_DIFFUSION = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "dpm2": "sample_dpm_2",
    "dpm2_a": "sample_dpm_2_ancestral",
    "lms": "sample_lms",
    "dpmpp_2s_a": "sample_dpmpp_2s_ancestral",
    "dpmpp_sde": "sample_dpmpp_sde",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "sample_dpmpp_2m_sde",
    "dpmpp_3m_sde": "sample_dpmpp_3m_sde",
}
K_SCHEDULES = ("normal", "karras", "exponential", "simple", "beta", "align_your_steps")

Array = np.ndarray[Any, Any]


def denoise(latents: Array, timestep: float) -> Array:
    """Stand in for a network: smooth, bounded, and different at every timestep."""
    output: Array = 0.7 * np.tanh(latents) + 0.2 * np.cos(latents + timestep / 300)
    return output


def unit_noise(seed: int) -> Array:
    """Return the noise that evaluation `seed - 100` draws, or the first latents for 0."""
    return np.random.default_rng(seed).standard_normal(SHAPE)


def ours(sampler: str, schedule: str, steps: int, config: dict[str, Any]) -> list[Array]:
    """Return the latents after each evaluation."""
    program = build_program(sampler, schedule, steps, NoiseSchedule.from_config(config))
    return sample_reference(program, denoise, unit_noise(0), lambda k: unit_noise(100 + k))


def diffusers_trajectory(
    sampler: str, schedule: str, steps: int, config: dict[str, Any]
) -> list[Array]:
    """Return the same by diffusers' scheduler."""
    import diffusers

    name, extra, schedules = DIFFUSERS[sampler]
    scheduler = getattr(diffusers, name)(**config, **extra, **schedules[schedule])
    module = f"{type(scheduler).__module__}.randn_tensor"
    # The draw belongs to the evaluation that it follows.
    index = 0

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(unit_noise(100 + index))

    scheduler.set_timesteps(steps)
    x = torch.from_numpy(unit_noise(0)) * float(scheduler.init_noise_sigma)
    out = []
    with mock.patch(module, draw, create=True):
        for index, t in enumerate(scheduler.timesteps):  # noqa: B007 - draw reads it
            scaled = scheduler.scale_model_input(x, t).double().numpy()
            output = torch.from_numpy(denoise(scaled, float(t)))
            x = scheduler.step(output, t, x).prev_sample.double()
            out.append(x.numpy())
    return out


@functools.cache
def k_diffusion_sampling() -> Any:
    """Return k-diffusion's module of samplers, without the rest of that package, or None."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
    utils.to_d = None  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    package.utils = utils  # type: ignore[attr-defined]
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion_image(sampler: str, schedule: str, steps: int, config: dict[str, Any]) -> Array:
    """Return the last latents by k-diffusion's sampler over the same noise levels."""
    sampling = k_diffusion_sampling()
    noise_schedule = NoiseSchedule.from_config(config)
    program = build_program(sampler, schedule, steps, noise_schedule)
    firsts = np.searchsorted(program.step, np.arange(steps))
    sigmas = torch.from_numpy(np.append(program.sigma[firsts], 0.0))
    table = torch.from_numpy(np.log(noise_schedule.sigmas)).numpy()

    def model(x: Any, sigma: Any, **_: Any) -> Any:
        level = float(sigma[0])
        t = float(np.interp(np.log(level), table, np.arange(len(table))))
        output: Any = torch.from_numpy(denoise((x / (level**2 + 1) ** 0.5).numpy(), t))
        if config["prediction_type"] == "v_prediction":
            return x / (level**2 + 1) - output * level / (level**2 + 1) ** 0.5
        return x - level * output

    x = torch.from_numpy(unit_noise(0)) * program.init_scale
    options: dict[str, Any] = {"disable": True}
    if any(program.needs_noise):
        options["noise_sampler"] = _k_noise(sampler, program.needs_noise, sigmas)
    if sampler == "dpmpp_2m_sde_heun":
        options["solver_type"] = "heun"
    image: Array = getattr(sampling, K_DIFFUSION[sampler])(model, x, sigmas, **options).numpy()
    return image


def _k_noise(
    sampler: str, needs_noise: tuple[bool, ...], sigmas: torch.Tensor
) -> Callable[[Any, Any], torch.Tensor]:
    """Return what gives k-diffusion the noises that our evaluations draw."""
    draws = iter([k for k, needed in enumerate(needs_noise) if needed])
    ends = [float(s) for s in sigmas]
    halves: dict[float, Array] = {}

    def noise(sigma: Any, sigma_next: Any) -> torch.Tensor:
        fresh = unit_noise(100 + next(draws))
        start, end = float(sigma), float(sigma_next)
        if sampler != "dpmpp_sde":
            return torch.from_numpy(fresh)
        if not any(abs(end - s) < 1e-9 * s for s in ends if s):
            halves[start] = fresh  # up to the middle of the step
            return torch.from_numpy(fresh)
        # The whole step's Brownian increment holds that of its first half.
        middle = (start * end) ** 0.5
        share = (start - middle) / (start - end)
        joined = share**0.5 * halves[start] + (1 - share) ** 0.5 * fresh
        return torch.from_numpy(joined)

    return noise


def relative_error(found: Array, expected: Array) -> float:
    """Return the largest difference relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measure() -> dict[str, dict[str, dict[str, Any]]]:
    """Return by sampler and schedule the largest error over step counts and prediction types."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    has_k = k_diffusion_sampling() is not None
    for prediction_type in ("epsilon", "v_prediction"):
        config = {**BASE, "prediction_type": prediction_type, "timestep_spacing": "leading"}
        for steps in STEPS:
            for sampler, (name, extra, schedules) in DIFFUSERS.items():
                for schedule in () if (sampler, prediction_type) in DIFFERS else schedules:
                    if is_lowered(sampler, schedule, steps):
                        continue
                    expected = diffusers_trajectory(sampler, schedule, steps, config)
                    found = ours(sampler, schedule, steps, {**config, **extra})
                    pairs = zip(found, expected, strict=True)
                    error = max(relative_error(a, b) for a, b in pairs)
                    _record(table, sampler, schedule, f"diffusers {name}", error)
            for sampler, name in K_DIFFUSION.items() if has_k else ():
                for schedule in K_SCHEDULES:
                    if is_lowered(sampler, schedule, steps):
                        continue
                    expected_image = k_diffusion_image(sampler, schedule, steps, config)
                    error = relative_error(
                        ours(sampler, schedule, steps, config)[-1], expected_image
                    )
                    _record(table, sampler, schedule, f"k-diffusion {name}", error)
    return table


def is_lowered(sampler: str, schedule: str, steps: int) -> bool:
    """Say whether our sampler takes a step of lower order than the others, for its stability."""
    return sampler == "lms" and steps >= LMS_LOWERS.get(schedule, steps + 1)


def _record(
    table: dict[str, dict[str, dict[str, Any]]],
    sampler: str,
    schedule: str,
    oracle: str,
    error: float,
) -> None:
    row = table.setdefault(sampler, {}).setdefault(schedule, {})
    row[oracle] = max(error, row.get(oracle, 0.0))


def main() -> int:
    """Run the comparison; return 1 when an error is beyond MAX_ERROR."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = measure()
    differs = {" ".join(key): reason for key, reason in DIFFERS.items()}
    lowered = ", ".join(f"{name} from {count} steps on" for name, count in LMS_LOWERS.items())
    differs[f"lms {lowered}"] = LMS_REASON
    figures = {"steps": STEPS, "shape": SHAPE, "relative_error": table, "differs": differs}
    write_record(
        stamped(figures, "diffusers", "k-diffusion"), options.output / "sampler-parity.json"
    )
    print(as_markdown(table))
    for what, reason in differs.items():
        print(f"\nLeft out, {what}: {reason}.")
    worst = max(e for rows in table.values() for row in rows.values() for e in row.values())
    return 1 if worst > MAX_ERROR else 0


if __name__ == "__main__":
    sys.exit(main())
