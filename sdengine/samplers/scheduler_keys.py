"""Scheduler keys: what becomes of each key of a ``scheduler_config.json``.

A key is used (it describes how the model was trained to be noised), harmless, implemented for one
value only and refused otherwise, or not taken over: it tunes the file's own sampler, and which
sampler runs is the request's to say. No key is passed over in silence.

Source: the constructors of diffusers' schedulers; a test walks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError

EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

# Read by NoiseSchedule, with what it takes where a key is missing. Keys of EDM are checked there.
USED: Mapping[str, Any] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "rescale_betas_zero_snr": False,
        "timestep_type": "discrete",
        "sigma_min": None,
        "sigma_max": None,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "rho": 7.0,
    }
)
# They say how to do what is refused when it is asked for, or what only training reads.
HARMLESS = frozenset(
    {
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "sample_max_value",
        "tau_func",
        "time_shift_type",
    }
)
_NOT_LINEAR = "clipping the clean estimate is not linear, so it is no part of a program"
_OF_FLOWS = "it belongs to flow matching, another noise process"
# Key: the value that is implemented, and why others are not.
ONLY: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "clip_sample": (False, _NOT_LINEAR),
        "thresholding": (False, _NOT_LINEAR),
        "use_flow_sigmas": (False, _OF_FLOWS),
        "use_dynamic_shifting": (False, _OF_FLOWS),
        "shift_terminal": (None, _OF_FLOWS),
    }
)
_SCHEDULE = "the request's schedule says so"
_SAMPLER = "the request's sampler says so"
# Key: what says it instead. Our sampler of the same method does what its class does by default,
# but for those in _OURS.
NOT_TAKEN_OVER: Mapping[str, str] = MappingProxyType(
    {
        "use_karras_sigmas": _SCHEDULE,
        "use_exponential_sigmas": _SCHEDULE,
        "use_beta_sigmas": _SCHEDULE,
        "use_lu_lambdas": _SCHEDULE,
        "interpolation_type": _SCHEDULE,
        "algorithm_type": _SAMPLER,
        "solver_order": _SAMPLER,
        "solver_type": _SAMPLER,
        "predictor_order": _SAMPLER,
        "corrector_order": _SAMPLER,
        "predict_x0": _SAMPLER,
        "disable_corrector": _SAMPLER,
        "solver_p": _SAMPLER,
        "skip_prk_steps": _SAMPLER,
        "variance_type": _SAMPLER,
        "final_sigmas_type": "all samplers but DEIS, LCM and TCD end without noise",
        "lower_order_final": _SAMPLER,
        "euler_at_final": _SAMPLER,
        "lambda_min_clipped": "no level is left out",
        "noise_sampler_seed": "the request's seed says so",
    }
)
_OURS = {"skip_prk_steps": True}

_CURVES = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_FLOWS = {"use_flow_sigmas": False, "use_dynamic_shifting": False}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_ENDS_LOW = {"set_alpha_to_one": False}
_SPREAD = {"timestep_spacing": "linspace"}
_CLIPS = {"clip_sample": True, "thresholding": False}
_SOLVER = {"solver_order": 2, "thresholding": False, "lower_order_final": True}
_DPM = {
    **_SOLVER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
}
_DISTILLED = {
    **_LATENT,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "thresholding": False,
}
_DPM_VP = {**_DPM, **_CURVES, **_FLOWS, "lambda_min_clipped": float("-inf"), "variance_type": None}
_DDPM = {**_CLIPS, "variance_type": "fixed_small"}
# By class: the defaults of those of its keys that are not simply used, and of those used whose
# default is not that of USED. Keys that a class does not have do nothing in it.
CLASSES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DDIMScheduler": _CLIPS,
        "DDIMParallelScheduler": _CLIPS,
        "DDPMScheduler": _DDPM,
        "DDPMParallelScheduler": _DDPM,
        "PNDMScheduler": {**_ENDS_LOW, "skip_prk_steps": False},
        "LMSDiscreteScheduler": {**_SPREAD, **_CURVES},
        "EulerDiscreteScheduler": {
            **_SPREAD,
            **_CURVES,
            "interpolation_type": "linear",
            "final_sigmas_type": "zero",
        },
        "EulerAncestralDiscreteScheduler": _SPREAD,
        "HeunDiscreteScheduler": {**_LATENT, **_SPREAD, **_CURVES, "clip_sample": False},
        "KDPM2DiscreteScheduler": {**_LATENT, **_SPREAD, **_CURVES},
        "KDPM2AncestralDiscreteScheduler": {**_LATENT, **_SPREAD, **_CURVES},
        "DPMSolverMultistepScheduler": {
            **_SPREAD,
            **_DPM_VP,
            "euler_at_final": False,
            "use_lu_lambdas": False,
        },
        # It has no such key, and always spaces its timesteps so.
        "DPMSolverSinglestepScheduler": {**_SPREAD, **_DPM_VP, "lower_order_final": False},
        "DPMSolverSDEScheduler": {
            **_LATENT,
            **_SPREAD,
            **_CURVES,
            "noise_sampler_seed": None,
        },
        "DEISMultistepScheduler": {
            **_SPREAD,
            **_SOLVER,
            **_CURVES,
            **_FLOWS,
            "algorithm_type": "deis",
            "solver_type": "logrho",
        },
        "UniPCMultistepScheduler": {
            **_SPREAD,
            **_SOLVER,
            **_CURVES,
            **_FLOWS,
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": [],
            "solver_p": None,
            "final_sigmas_type": "zero",
            "shift_terminal": None,
        },
        "SASolverScheduler": {
            **_SPREAD,
            **_CURVES,
            "use_flow_sigmas": False,
            "thresholding": False,
            "predictor_order": 2,
            "corrector_order": 2,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "lambda_min_clipped": float("-inf"),
            "variance_type": None,
        },
        "LCMScheduler": _DISTILLED,
        "TCDScheduler": _DISTILLED,
        "EDMEulerScheduler": {"final_sigmas_type": "zero", "sigma_min": 0.002, "sigma_max": 80.0},
        "EDMDPMSolverMultistepScheduler": {
            **_DPM,
            "euler_at_final": False,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
        },
    }
)


def read_scheduler_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give every key of a scheduler's file its verdict.

    Args:
        config: content of a ``scheduler_config.json`` with its ``_class_name``.

    Returns:
        The config with what its class assumes of missing keys, where that is not what NoiseSchedule
        assumes; and a line for each setting that is not taken over.

    Raises:
        ConfigError: the class or a key is not known, or a value is not implemented.
    """
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError.for_field(
            "scheduler._class_name",
            kind,
            f"one of {', '.join(CLASSES)}",
            "Schedulers of other noise processes are not implemented.",
        )
    defaults = CLASSES[kind]
    for key in config:
        if not key.startswith("_") and not _is_known(key) and config[key] is not None:
            raise ConfigError.for_field(
                f"scheduler.{key}",
                config[key],
                "a key of diffusers' schedulers",
                f"If it changes nothing, override it: scheduler {key}=null.",
            )
    not_taken_over = []
    for key, default in defaults.items():
        value = config.get(key, default)
        if key in ONLY:
            _check_only(kind, key, value)
        elif key in NOT_TAKEN_OVER and value != _OURS.get(key, default):
            not_taken_over.append(f"scheduler.{key} {value!r} of {kind}: {NOT_TAKEN_OVER[key]}")
    missing = {k: v for k, v in defaults.items() if k in USED and k not in config}
    return {**config, **missing}, not_taken_over


def _is_known(key: str) -> bool:
    return key in USED or key in HARMLESS or key in ONLY or key in NOT_TAKEN_OVER


def _check_only(kind: str, key: str, value: object) -> None:
    only, reason = ONLY[key]
    if value != only:
        shown = "null" if only is None else str(only).lower()
        raise ConfigError.for_field(
            f"scheduler.{key}",
            value,
            f"{shown} of a {kind}; {reason}",
            f"Override it to sample without: scheduler {key}={shown}.",
        )
