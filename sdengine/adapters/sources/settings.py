"""Settings that no shape tells: compared, because weights of others compute something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdengine.adapters.sources.own import Own
from sdengine.adapters.sources.parameters import Parameters, said_prediction
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.models import SCHEDULER_FILE
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.storage.checkpoint_folder import CheckpointFolder

_BUILD = "Build a bundle of it: sdengine build."
# By part, with what diffusers and transformers take where a key is missing.
_TELLING: Mapping[str, Mapping[str, Any]] = {
    "unet": {"attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5},
    "vae": {"norm_num_groups": 32, "scaling_factor": 0.18215, "act_fn": "silu"},
    "text_encoder": {
        "hidden_act": "quick_gelu",
        "num_attention_heads": 8,
        "layer_norm_eps": 1e-5,
    },
}
_ZERO_SNR = 1e-6  # what is left of the signal at the last timestep, at most


def check_said(file: Parameters, own: Own) -> None:
    """Compare what a single file says of its noise schedule.

    Raises:
        CheckpointError: it is not the bundle's.
    """
    schedule = NoiseSchedule.from_config(own.architecture.scheduler)
    _check_prediction(said_prediction(file) or schedule.prediction_type, schedule)
    if "ztsnr" in file.names() and schedule.alphas_cumprod[-1] > _ZERO_SNR:
        raise CheckpointError(
            "the key 'ztsnr' says that it was trained down to no signal at all; this bundle's "
            f"noise schedule (rescale_betas_zero_snr) ends before. {_BUILD}"
        )


def check_folder(folder: CheckpointFolder, places: Mapping[str, str], own: Own) -> None:
    """Compare the configurations of a folder's networks, and its noise schedule if it has one.

    Args:
        folder: of a checkpoint or a U-Net.
        places: the subfolder of each part.
        own: the bundle's.

    Raises:
        CheckpointError: a setting is another; the message has both.
    """
    if "unet" not in places:
        raise CheckpointError("there is no unet/config.json.")
    known: dict[str, Mapping[str, Any]] = {
        "unet": own.architecture.unet.config,
        "vae": own.architecture.vae.config,
    }
    known |= {encoder.network: encoder.config for encoder in own.architecture.text_encoders}
    for part, place in places.items():
        config = folder.json(f"{place}/config.json")
        for key, default in _TELLING["text_encoder" if "text" in part else part].items():
            found, wanted = config.get(key, default), known[part].get(key, default)
            if key in known[part] and not _same(found, wanted):
                raise CheckpointError(
                    f"{part}: {key} is {str(found)[:80]}; this bundle's is {str(wanted)[:80]}. "
                    f"{_BUILD}"
                )
    if folder.find(SCHEDULER_FILE):
        _check_schedule(folder.json(SCHEDULER_FILE), own)


def _same(one: Any, other: Any) -> bool:
    """Compare settings; a list of one number all along is that number."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in (one, other)]
    length = max(map(len, lists))
    lists = [value * length if len(value) == 1 else list(value) for value in lists]
    return lists[0] == lists[1]


def _check_schedule(config: Mapping[str, Any], own: Own) -> None:
    try:
        said = NoiseSchedule.from_config(config)
    except ConfigError as error:
        raise CheckpointError(f"scheduler: {error}") from None
    schedule = NoiseSchedule.from_config(own.architecture.scheduler)
    _check_prediction(said.prediction_type, schedule)
    if said.sigma_data != schedule.sigma_data:
        raise CheckpointError(f"scheduler: it is of another noise process (EDM). {_BUILD}")
    theirs, ours = said.alphas_cumprod, schedule.alphas_cumprod
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-6, atol=1e-9):
        keys = ["num_train_timesteps", "beta_schedule", "beta_start", "beta_end"]
        keys += ["trained_betas", "rescale_betas_zero_snr"]
        known = own.architecture.scheduler
        other = [key for key in keys if config.get(key) != known.get(key)]
        told = ", ".join(
            f"{k} {str(config.get(k))[:40]} for {str(known.get(k))[:40]}" for k in other
        )
        raise CheckpointError(f"scheduler: its noise levels are others ({told}). {_BUILD}")


def _check_prediction(said: str, schedule: NoiseSchedule) -> None:
    if said != schedule.prediction_type:
        raise CheckpointError(
            f"prediction_type: its U-Net predicts {said!r}; this bundle's "
            f"{schedule.prediction_type!r}. {_BUILD}"
        )
