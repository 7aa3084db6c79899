"""Describe a checkpoint to the run time: the manifest's architecture and defaults."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sdengine.bundle.manifest import Architecture, Defaults
from sdengine.checkpoints import Checkpoint
from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.export.networks import size_multiple
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.samplers import NoiseSchedule, build_program


def describe(checkpoint: Checkpoint) -> Architecture:
    """Return what the run time must know about the networks.

    Raises:
        CheckpointError: the parts do not fit together, or ask for what requests cannot give yet.
    """
    _check_parts_fit(checkpoint)
    text, unet, vae = checkpoint.text_encoder_config, checkpoint.unet_config, checkpoint.vae_config
    tokenizer = _tokenizer(checkpoint)
    try:
        NoiseSchedule.from_config(checkpoint.scheduler_config)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.root}/scheduler: {error}") from None
    content = {
        "family": checkpoint.family,
        "text_encoder": {
            "max_length": text.max_position_embeddings,
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "hidden_state": {"index": -1, "kind": "normed"},
            "pad_token": checkpoint.pad_token,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "config": text.to_dict(),
        },
        "unet": {
            "in_channels": unet.in_channels,
            "cross_attention_dim": unet.cross_attention_dim,
            "config": unet.to_dict(),
        },
        "vae": {
            "scaling_factor": vae.scaling_factor,
            "latent_channels": vae.latent_channels,
            "downscale": vae.downscale,
            "config": vae.to_dict(),
        },
        "scheduler": checkpoint.scheduler_config,
    }
    try:
        return Architecture.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint.root}: {_first(error)}.") from None


def choose_defaults(checkpoint: Checkpoint, sizes: list[tuple[int, int]]) -> Defaults:
    """Return the values of a request that names none.

    The size is the checkpoint's own if it is among those built, else the first of them.

    Raises:
        CheckpointError: the checkpoint's own defaults are invalid.
    """
    side = checkpoint.unet_config.sample_size * checkpoint.vae_config.downscale
    width, height = (side, side) if (side, side) in sizes else sizes[0]
    try:
        given: dict[str, Any] = {"width": width, "height": height, **checkpoint.defaults}
        defaults = Defaults.model_validate(given)
        schedule = NoiseSchedule.from_config(checkpoint.scheduler_config)
        build_program(defaults.sampler, defaults.schedule, defaults.steps, schedule)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint.root}: defaults: {_first(error)}.") from None
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.root}: defaults: {error}") from None
    return defaults


def check_sizes(checkpoint: Checkpoint, sizes: list[tuple[int, int]]) -> None:
    """Refuse sizes in pixels that the U-Net's levels do not fit into.

    Raises:
        ConfigError: a side is not a multiple of what the U-Net needs.
    """
    multiple = size_multiple(checkpoint.unet_config, checkpoint.vae_config.downscale)
    for width, height in sizes:
        if width % multiple or height % multiple:
            raise ConfigError.for_field(
                "resolutions",
                f"{width}x{height}",
                f"multiples of {multiple} pixels for this checkpoint",
                f"The nearest is {_nearest(width, multiple)}x{_nearest(height, multiple)}.",
            )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def _check_parts_fit(checkpoint: Checkpoint) -> None:
    text, unet, vae = checkpoint.text_encoder_config, checkpoint.unet_config, checkpoint.vae_config
    if unet.cross_attention_dim != text.hidden_size:
        raise CheckpointError(
            f"{checkpoint.root}: the U-Net reads text embeddings of width "
            f"{unet.cross_attention_dim}, the text encoder gives {text.hidden_size}."
        )
    if unet.addition_embed_type is not None:
        raise CheckpointError(
            f"{checkpoint.root}: the U-Net asks for {unet.addition_embed_type} conditioning, which "
            "requests do not carry; Stable Diffusion 1 and 2 checkpoints need none."
        )
    if unet.out_channels != vae.latent_channels or unet.in_channels != vae.latent_channels:
        raise CheckpointError(
            f"{checkpoint.root}: the U-Net maps {unet.in_channels} channels to "
            f"{unet.out_channels}; text to image needs {vae.latent_channels} to "
            f"{vae.latent_channels}. Checkpoints for inpainting (9) and depth (5) are not built."
        )


def _tokenizer(checkpoint: Checkpoint) -> ClipTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, content in checkpoint.tokenizer_files().items():
            paths[name] = Path(folder) / name
            paths[name].write_bytes(content)
        try:
            tokenizer = ClipTokenizer(
                paths["vocab.json"], paths["merges.txt"], pad_token=checkpoint.pad_token
            )
        except BundleError as error:
            raise CheckpointError(f"{checkpoint.root}/tokenizer: {error}") from None
    table = checkpoint.text_encoder_config.vocab_size
    if tokenizer.vocab_size > table:
        raise CheckpointError(
            f"{checkpoint.root}: the tokenizer knows {tokenizer.vocab_size} tokens, the text "
            f"encoder {table}."
        )
    return tokenizer


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
