"""Every sampler's trajectory in float64 against diffusers' scheduler of the same method."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tolerances import assert_close

from sdengine.samplers import NoiseSchedule, SamplerOptions, build_program
from sdengine.samplers.reference import sample_reference

SHAPE = (2, 4, 8, 8)
BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
NO_CLIP = {"clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "unipc_3": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
    "lcm": (diffusers.LCMScheduler, NO_CLIP),
    "tcd": (diffusers.TCDScheduler, NO_CLIP),
}
CURVES: dict[str, dict[str, Any]] = {
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}

# diffusers has no ancestral scheduler for "sample" and no DDIM or Euler a under Karras.
CASES = [
    (sampler, schedule, prediction_type)
    for sampler, schedule in (
        ("ddim", "normal"),
        ("euler", "normal"),
        ("euler", "karras"),
        ("euler_a", "normal"),
        ("dpmpp_2m", "normal"),
        ("dpmpp_2m", "karras"),
    )
    for prediction_type in ("epsilon", "v_prediction", "sample")
    if (sampler, prediction_type) != ("euler_a", "sample")
]

# With as many steps as timesteps diffusers fails here itself: DDIM and DPM++ 2M index past the last
# timestep, and under "linspace" a repeated timestep turns DPM++ 2M into NaN halfway.
EVERY_TIMESTEP_FAILS = {
    ("ddim", "normal", "leading"),
    ("dpmpp_2m", "normal", "leading"),
    ("dpmpp_2m", "normal", "linspace"),
}


def denoise(latents: np.ndarray[Any, Any], timestep: float) -> np.ndarray[Any, Any]:
    """Stand in for a network: smooth, bounded, and different at every timestep."""
    output: np.ndarray[Any, Any] = 0.7 * np.tanh(latents) + 0.2 * np.cos(latents + timestep / 300)
    return output


def unit_noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(SHAPE)


def diffusers_trajectory(
    scheduler: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> list[np.ndarray[Any, Any]]:
    module = f"{type(scheduler).__module__}.randn_tensor"
    evaluation = 0
    monkeypatch.setattr(
        module, lambda *a, **k: torch.from_numpy(unit_noise(100 + evaluation)), raising=False
    )
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(unit_noise(0)) * float(scheduler.init_noise_sigma)
    out = []
    for evaluation, t in enumerate(scheduler.timesteps):  # noqa: B007 - the noise reads it
        scaled = scheduler.scale_model_input(x, t).double().numpy()
        x = scheduler.step(torch.from_numpy(denoise(scaled, float(t))), t, x).prev_sample.double()
        out.append(x.numpy())
    return out


def check_trajectory(
    sampler: str,
    schedule: str,
    prediction_type: str,
    spacing: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, extra = SCHEDULERS[sampler]
    config = {
        **BASE,
        **extra,
        "prediction_type": prediction_type,
        "timestep_spacing": spacing,
        "steps_offset": 1,
    }
    expected = diffusers_trajectory(kind(**config, **CURVES[schedule]), steps, monkeypatch)
    program = build_program(sampler, schedule, steps, NoiseSchedule.from_config(config))
    actual = sample_reference(program, denoise, unit_noise(0), lambda k: unit_noise(100 + k))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close("sampler_trajectory", "float64", ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 5, 25, 50])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("sampler", "schedule", "prediction_type"), CASES)
def test_trajectory_equals_diffusers(
    sampler: str,
    schedule: str,
    prediction_type: str,
    spacing: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trajectory(sampler, schedule, prediction_type, spacing, steps, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("sampler", "schedule", "prediction_type", "spacing"),
    [
        (*case, spacing)
        for case in CASES
        for spacing in ("leading", "linspace", "trailing")
        if (*case[:2], spacing) not in EVERY_TIMESTEP_FAILS
    ],
)
def test_trajectory_through_every_timestep_equals_diffusers(
    sampler: str,
    schedule: str,
    prediction_type: str,
    spacing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trajectory(sampler, schedule, prediction_type, spacing, 1000, monkeypatch)


# diffusers leaves "sample" out of some, and every schedule but these out of most.
MORE_CASES = [
    *((sampler, "normal") for sampler in ("ddpm", "pndm", "lcm", "tcd")),
    *((s, c) for s in ("heun", "lms") for c in CURVES),
    *((s, c) for s in ("deis", "unipc", "unipc_3") for c in ("normal", "karras")),
    *(("euler", c) for c in ("exponential", "beta")),
]


# diffusers' PNDM mixes v outputs of several timesteps as if they were noise estimates.
MORE_CASES_BY_TYPE = [
    (*case, prediction_type)
    for case in MORE_CASES
    for prediction_type in ("epsilon", "v_prediction")
    if (case[0], prediction_type) != ("pndm", "v_prediction")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(("sampler", "schedule", "prediction_type"), MORE_CASES_BY_TYPE)
def test_more_samplers_equal_diffusers(
    sampler: str,
    schedule: str,
    prediction_type: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trajectory(sampler, schedule, prediction_type, "leading", steps, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", ["ddim", "tcd"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_eta_equals_diffusers(sampler: str, eta: float) -> None:
    kind, extra = SCHEDULERS[sampler]
    config = {**BASE, **extra, "timestep_spacing": "leading", "steps_offset": 1}
    scheduler = kind(**config)
    scheduler.set_timesteps(10)
    program = build_program(
        sampler, "normal", 10, NoiseSchedule.from_config(config), SamplerOptions(eta=eta)
    )
    ours = sample_reference(program, denoise, unit_noise(0), lambda k: unit_noise(100 + k))
    x = torch.from_numpy(unit_noise(0))
    for k, t in enumerate(scheduler.timesteps):
        output = torch.from_numpy(denoise(x.numpy(), float(t)))
        noise = torch.from_numpy(unit_noise(100 + k))
        if sampler == "ddim":
            x = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        else:
            with pytest.MonkeyPatch.context() as patch:
                module = f"{type(scheduler).__module__}.randn_tensor"
                patch.setattr(module, lambda *a, n=noise, **k: n)
                x = scheduler.step(output, t, x, eta=eta).prev_sample
        assert_close("sampler_trajectory", "float64", ours[k], x.double().numpy())
