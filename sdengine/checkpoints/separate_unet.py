"""Separate U-Net, with everything else from another checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdengine.adapters.sources.layouts import (
    DIFFUSERS_MARK,
    ORIGINAL_MARK,
    UNET_LAYOUTS,
    UNET_PREFIX,
)
from sdengine.adapters.sources.parameters import said_prediction
from sdengine.adapters.sources.renaming import unet_names
from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.diffusers_folder import (
    distilled_defaults,
    open_folder_weights,
    part_config,
)
from sdengine.checkpoints.guesses import Guess
from sdengine.checkpoints.ldm_configs import unet_config
from sdengine.checkpoints.no_parameters import ParameterFile, open_parameters
from sdengine.checkpoints.schedules import noise_schedule_config
from sdengine.checkpoints.single_file import refuse_foreign
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.unet import UNetConfig
from sdengine.storage.checkpoint_folder import CheckpointFolder

_GUIDANCE = "time_embedding.cond_proj.weight"  # that of distilled models


def with_separate_unet(base: Checkpoint, place: Path, variant: str | None) -> Checkpoint:
    """Return a checkpoint with another U-Net; its noise schedule stays unless the file says one.

    Args:
        base: whose text encoders, autoencoder, tokenizer and noise schedule are taken.
        place: a diffusers folder (of a U-Net or a whole checkpoint), or a file with the original
            names, with or without "model.diffusion_model.", or with those of diffusers.
        variant: which of a folder's sets of weights; None for the plain one.

    Raises:
        CheckpointError: there is no U-Net, it is damaged, or does not fit the rest.
    """
    scheduler = base.scheduler_config
    said = None
    try:
        if place.is_dir():
            config, open_unet = _of_folder(place, variant)
        else:
            file = open_parameters(place)
            refuse_foreign(place, file.names())
            config, open_unet = _of_file(base, place, file)
            said = said_prediction(file)
            if said is not None:
                scheduler = noise_schedule_config(said, zero_snr="ztsnr" in file.names())
    except ConfigError as error:
        raise CheckpointError(f"{place}: its tensors are of no known shape: {error}") from None
    before = base.open_weights
    return replace(
        base,
        root=place,
        name=place.resolve().stem[:200] or "checkpoint",
        unet_config=config,
        scheduler_config=scheduler,
        defaults=distilled_defaults(config, scheduler) or base.defaults,
        guesses=base.guesses if said else (*_without_prediction(base), _as_base(base)),
        open_weights=lambda part: open_unet() if part == "unet" else before(part),
    )


def _without_prediction(base: Checkpoint) -> list[Guess]:
    return [guess for guess in base.guesses if guess.what != "prediction type"]


def _as_base(base: Checkpoint) -> Guess:
    return Guess(
        "prediction type",
        str(base.scheduler_config.get("prediction_type", "epsilon")),
        f"the U-Net says nothing, and {base.name} predicts it",
        "--prediction-type",
    )


def _of_folder(place: Path, variant: str | None) -> tuple[UNetConfig, Callable[[], Weights]]:
    folder = CheckpointFolder(place)
    subfolder = "unet" if folder.find("unet/config.json") else "."
    kind = folder.json(f"{subfolder}/config.json").get("_class_name")
    if kind != "UNet2DConditionModel":
        raise CheckpointError(
            f"{place}: {str(kind)[:80]!r} is not a UNet2DConditionModel, which --base completes."
        )
    config = part_config(folder, subfolder, UNetConfig.from_dict)
    return config, lambda: open_folder_weights(folder, "unet", subfolder, variant)


def _of_file(
    base: Checkpoint, place: Path, file: ParameterFile
) -> tuple[UNetConfig, Callable[[], Weights]]:
    names = set(file.names())
    found = next(((p, mark) for p, mark in UNET_LAYOUTS if f"{p}{mark}" in names), None)
    if found is None:
        raise CheckpointError(
            f"{place}: there is no U-Net, neither {UNET_PREFIX}{ORIGINAL_MARK} nor "
            f"{DIFFUSERS_MARK}; --base gives the rest of a checkpoint to a U-Net."
        )
    prefix, mark = found
    if mark == ORIGINAL_MARK:
        config = _read_off(base, place, file, prefix)
        return config, lambda: Weights([place], unet_names(config.num_layers), prefix)
    # The names of diffusers do not depend on the configuration; shapes are checked against it.
    shape = (*file.shape(f"{prefix}{mark}"), 0, 0)
    guidance = f"{prefix}{_GUIDANCE}"
    same = replace(
        base.unet_config,
        in_channels=shape[1],
        time_cond_proj_dim=file.shape(guidance)[-1] if guidance in names else None,
    )
    return same, lambda: Weights([place], lambda name: name, prefix)


def _read_off(base: Checkpoint, place: Path, file: ParameterFile, prefix: str) -> UNetConfig:
    shapes = {n.removeprefix(prefix): file.shape(n) for n in file.names() if n.startswith(prefix)}
    pooled = [c.projection_dim for c in base.text_encoder_configs.values() if c.with_projection]
    try:
        return unet_config(
            shapes, base.family, pooled[-1] if pooled else 0, base.unet_config.sample_size
        )
    except CheckpointError as error:
        raise CheckpointError(f"{place}: not a U-Net of {base.family}: {error}.") from None
