"""Separate autoencoder, in place of the one that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdengine.adapters.sources.layouts import VAE_PREFIX
from sdengine.adapters.sources.renaming import current_name, vae_names
from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.diffusers_folder import open_folder_weights, part_config
from sdengine.checkpoints.formats.tensor_files import TensorFile
from sdengine.checkpoints.ldm_configs import vae_config
from sdengine.checkpoints.no_parameters import open_parameters
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.vae import VAEConfig
from sdengine.storage.checkpoint_folder import CheckpointFolder

_DIFFUSERS_MARK = "encoder.mid_block.resnets.0.conv1.weight"


def with_separate_vae(checkpoint: Checkpoint, place: Path) -> Checkpoint:
    """Return the checkpoint with another autoencoder.

    Args:
        checkpoint: what the autoencoder is for; a file takes scaling factor and group size of its.
        place: a diffusers folder (of an autoencoder or a whole checkpoint), or a file with
            diffusers' names or the original ones, with or without "first_stage_model.".

    Raises:
        CheckpointError: there is no autoencoder, it is damaged, or its latents have another number
            of channels.
    """
    try:
        config, open_vae = (_of_folder if place.is_dir() else _of_file)(checkpoint, place)
    except ConfigError as error:
        raise CheckpointError(f"{place}: its tensors are of no known shape: {error}") from None
    wanted = checkpoint.unet_config.out_channels
    if config.latent_channels != wanted:
        raise CheckpointError(
            f"{place}: its latents have {config.latent_channels} channels; the U-Net of "
            f"{checkpoint.name} makes {wanted}."
        )
    before = checkpoint.open_weights
    return replace(
        checkpoint,
        vae_config=config,
        open_weights=lambda part: open_vae() if part == "vae" else before(part),
    )


def _of_folder(checkpoint: Checkpoint, place: Path) -> tuple[VAEConfig, Callable[[], Weights]]:
    folder = CheckpointFolder(place)
    subfolder = "vae" if folder.find("vae/config.json") else "."
    config = part_config(folder, subfolder, VAEConfig.from_dict)
    return config, lambda: open_folder_weights(folder, "vae", subfolder, None)


def _of_file(checkpoint: Checkpoint, place: Path) -> tuple[VAEConfig, Callable[[], Weights]]:
    file = open_parameters(place)
    known = checkpoint.vae_config
    if _DIFFUSERS_MARK in file.names():
        # Its names do not depend on the configuration; the shapes are checked against the family's.
        return known, lambda: Weights([place], lambda name: current_name("vae", name))
    prefix = VAE_PREFIX if any(n.startswith(VAE_PREFIX) for n in file.names()) else ""
    config = _config(place, file, prefix, checkpoint)
    rename = vae_names(len(config.block_out_channels))
    return config, lambda: Weights([place], rename, prefix)


def _config(place: Path, file: TensorFile, prefix: str, checkpoint: Checkpoint) -> VAEConfig:
    shapes = {n.removeprefix(prefix): file.shape(n) for n in file.names() if n.startswith(prefix)}
    known = checkpoint.vae_config
    try:
        found = vae_config(shapes, checkpoint.family, known.sample_size, known.norm_num_groups)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: not an autoencoder: {error}.") from None
    return replace(found, scaling_factor=known.scaling_factor)
