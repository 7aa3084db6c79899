"""Verdicts on the keys of schedulers' files, against the constructors and steps of diffusers."""

from __future__ import annotations

import ast
import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tolerances import assert_close

from sdengine.samplers import NoiseSchedule, SamplerOptions, build_program, read_scheduler_keys
from sdengine.samplers.reference import sample_reference
from sdengine.samplers.scheduler_keys import CLASSES, HARMLESS, NOT_TAKEN_OVER, ONLY, USED

SHAPE = (2, 4, 8, 8)
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Without the package that its noise comes from, diffusers has no more than a dummy of it.
SDE = "scheduling_dpmsolver_sde.py"


def constructor(name: str) -> dict[str, Any]:
    """Return what a scheduler takes, with its defaults."""
    if name != "DPMSolverSDEScheduler":
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        return {key: p.default for key, p in parameters.items() if key != "self"}
    spec = find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "schedulers" / SDE).read_text()
    classes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
    methods = next(c.body for c in classes if c.name == name)
    init = next(m for m in methods if isinstance(m, ast.FunctionDef) and m.name == "__init__")
    names = [argument.arg for argument in init.args.args[1:]]
    return dict(zip(names, map(ast.literal_eval, init.args.defaults), strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_has_a_verdict_and_diffusers_default(name: str) -> None:
    for key, default in constructor(name).items():
        verdicts = [key in USED, key in HARMLESS, key in ONLY, key in NOT_TAKEN_OVER]
        assert sum(verdicts) == 1, f"{key} of {name}"
        if key not in HARMLESS:
            assert CLASSES[name].get(key, USED.get(key, "none")) == default, f"{key} of {name}"


@pytest.mark.parametrize("name", CLASSES)
def test_what_diffusers_writes_is_read(name: str) -> None:
    config = {"_class_name": name, "_diffusers_version": "0.42.0", **constructor(name)}
    config = json.loads(json.dumps(config))
    clips = config.get("clip_sample") is True
    if clips:
        with pytest.raises(Exception, match=r"clip_sample: True.*clip_sample=false"):
            read_scheduler_keys(config)
        config["clip_sample"] = False
    read, not_taken_over = read_scheduler_keys(config)
    assert bool(not_taken_over) == (name == "PNDMScheduler")  # whose default has other first steps
    NoiseSchedule.from_config(read)


def denoise(latents: np.ndarray[Any, Any], timestep: float) -> np.ndarray[Any, Any]:
    """Stand in for a network: smooth, bounded, and different at every timestep."""
    output: np.ndarray[Any, Any] = 0.7 * np.tanh(latents) + 0.2 * np.cos(latents + timestep / 300)
    return output


def unit_noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(SHAPE)


def check(
    scheduler: Any, sampler: str, schedule: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare what the network reads and the last latents, ours from the scheduler's file."""
    config = json.loads(scheduler.to_json_string())
    read, _ = read_scheduler_keys(config)
    program = build_program(sampler, schedule, steps, NoiseSchedule.from_config(read))
    ours: list[np.ndarray[Any, Any]] = []

    def remember(latents: np.ndarray[Any, Any], timestep: float) -> np.ndarray[Any, Any]:
        ours.append(latents)
        return denoise(latents, timestep)

    trajectory = sample_reference(program, remember, unit_noise(0), lambda k: unit_noise(100 + k))
    evaluation = 0
    monkeypatch.setattr(
        f"{type(scheduler).__module__}.randn_tensor",
        lambda *a, **k: torch.from_numpy(unit_noise(100 + evaluation)),
        raising=False,
    )
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(unit_noise(0)) * float(scheduler.init_noise_sigma)
    for evaluation, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t).double().numpy()
        assert_close("sampler_trajectory", "float64", ours[evaluation], scaled)
        x = scheduler.step(torch.from_numpy(denoise(scaled, float(t))), t, x).prev_sample.double()
    assert_close("sampler_trajectory", "float64", trajectory[-1], x.numpy())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "sampler", "changes"),
    [
        ("EDMEulerScheduler", "euler", {}),
        ("EDMEulerScheduler", "euler", {"sigma_max": 120.0, "sigma_data": 1.0}),
        ("EDMEulerScheduler", "euler", {"sigma_schedule": "exponential"}),
        ("EDMEulerScheduler", "euler", {"num_train_timesteps": 10}),
        ("EDMDPMSolverMultistepScheduler", "dpmpp_2m", {}),
        ("EDMDPMSolverMultistepScheduler", "dpmpp_2m", {"sigma_schedule": "exponential"}),
    ],
)
def test_edm(
    name: str,
    sampler: str,
    changes: dict[str, Any],
    prediction_type: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if steps == 1 and "sigma_schedule" in changes:
        return  # diffusers starts from the lowest level then
    scheduler = getattr(diffusers, name)(prediction_type=prediction_type, **changes)
    check(scheduler, sampler, "normal", steps, monkeypatch)


TRAINED = np.linspace(0.02**0.5, 0.05**0.5, 1000) ** 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "sampler", "schedule", "changes"),
    [
        (
            "DDIMScheduler", "ddim", "normal",
            {"trained_betas": TRAINED.tolist(), "clip_sample": False},
        ),
        ("EulerDiscreteScheduler", "euler", "normal", {"trained_betas": TRAINED.tolist()}),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", "normal", {"trained_betas": TRAINED.tolist()}),
        # A missing key is what the class assumes.
        ("EulerDiscreteScheduler", "euler", "normal", {}),
        ("EulerAncestralDiscreteScheduler", "euler_a", "normal", {}),
        ("HeunDiscreteScheduler", "heun", "normal", {}),
        ("LMSDiscreteScheduler", "lms", "normal", {}),
        ("LCMScheduler", "lcm", "normal", {}),
        ("TCDScheduler", "tcd", "normal", {}),
        (
            "EulerDiscreteScheduler", "euler", "karras",
            {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        ),
        (
            "EulerDiscreteScheduler", "euler", "exponential",
            {**LATENT, "use_exponential_sigmas": True, "sigma_max": 10.0},
        ),
        (
            "UniPCMultistepScheduler", "unipc", "karras",
            {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        ),
        (
            "EulerDiscreteScheduler", "euler", "karras",
            {
                **LATENT, "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0,
                "timestep_type": "continuous", "prediction_type": "v_prediction",
                "timestep_spacing": "leading",
            },
        ),
        (
            "EulerDiscreteScheduler", "euler", "normal",
            {**LATENT, "timestep_type": "continuous", "prediction_type": "v_prediction"},
        ),
        ("LCMScheduler", "lcm", "normal", {"original_inference_steps": 25}),
        ("LCMScheduler", "lcm", "normal", {"timestep_scaling": 1.0}),
        ("TCDScheduler", "tcd", "normal", {"original_inference_steps": 20}),
    ],
)  # fmt: skip
def test_a_files_keys_are_honoured(
    name: str,
    sampler: str,
    schedule: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(getattr(diffusers, name)(**changes), sampler, schedule, 8, monkeypatch)


def test_missing_keys_are_what_the_class_assumes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sampler in (("EulerDiscreteScheduler", "euler"), ("LCMScheduler", "lcm")):
        read, _ = read_scheduler_keys({"_class_name": name})
        program = build_program(sampler, "normal", 4, NoiseSchedule.from_config(read))
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(4)
        np.testing.assert_allclose(program.t, scheduler.timesteps.double().numpy(), rtol=1e-6)


def test_tcd_without_eta_is_its_scheduler_and_0_its_pipeline() -> None:
    schedule = NoiseSchedule.from_config({**LATENT, "steps_offset": 1})
    eta = inspect.signature(diffusers.TCDScheduler.step).parameters["eta"].default
    plain = build_program("tcd", "normal", 4, schedule)
    same = build_program("tcd", "normal", 4, schedule, SamplerOptions(eta=eta))
    np.testing.assert_array_equal(plain.A, same.A)
    np.testing.assert_array_equal(plain.d, same.d)
    call = inspect.signature(diffusers.StableDiffusionPipeline.__call__)
    assert call.parameters["eta"].default == 0.0
