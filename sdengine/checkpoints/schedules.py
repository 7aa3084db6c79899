"""Noise schedule that every published family was trained with."""

from __future__ import annotations

from typing import Any


def noise_schedule_config(prediction_type: str, *, zero_snr: bool = False) -> dict[str, Any]:
    """Return the content of a scheduler_config.json.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
        zero_snr: trained with no signal left at the last timestep, where sampling then starts.

    Source: the scheduler configurations of the published checkpoints; "Common Diffusion Noise
    Schedules and Sample Steps are Flawed" (Lin et al. 2023), sections 3.1 and 3.3.
    """
    config = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config
