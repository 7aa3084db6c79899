"""Architecture of a checkpoint as the manifest describes it, and the defaults of its requests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from sdengine.bundle.architecture import TASKS, Architecture, extra_channels
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.bundle.manifest import Defaults
from sdengine.checkpoints import Checkpoint
from sdengine.checkpoints.added_tokens import ADDED
from sdengine.checkpoints.controlnet import ControlCheckpoint
from sdengine.checkpoints.diffusers_folder import EXTRAS_FILE
from sdengine.checkpoints.image_encoder import ImageEncoderCheckpoint
from sdengine.checkpoints.tokenizer_files import MERGES, VOCAB
from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.export.sizes import check_batch, parse_sizes
from sdengine.models.contracts import size_multiple
from sdengine.models.controlnet_union import ControlNetUnionConfig
from sdengine.models.t2i_adapter import T2IAdapterConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.samplers import NoiseSchedule, build_program, read_scheduler_keys


def describe(
    checkpoint: Checkpoint,
    controls: Mapping[str, ControlCheckpoint] = MappingProxyType({}),
    image_encoder: ImageEncoderCheckpoint | None = None,
) -> Architecture:
    """Return what the run time must know about the networks.

    Args:
        checkpoint: with its U-Net.
        controls: that steer it, by name.
        image_encoder: for IP-Adapters, if any.

    Raises:
        CheckpointError: the parts do not fit together, or ask for what requests cannot give yet.
    """
    _check_parts_fit(checkpoint)
    unet, vae = checkpoint.unet_config, checkpoint.vae_config
    scheduler, not_taken_over = _scheduler(checkpoint)
    has_sizes = unet.addition_embed_type is not None
    kind = "aesthetic" if checkpoint.requires_aesthetic_score else "size"
    content = {
        "family": checkpoint.family,
        "text_encoders": [
            _text_encoder(checkpoint, part) for part in checkpoint.text_encoder_configs
        ],
        "pooled_from": list(checkpoint.text_encoder_configs)[-1] if has_sizes else None,
        "zero_empty_negative": checkpoint.zero_empty_negative,
        "unet": {
            "in_channels": unet.in_channels,
            "cross_attention_dim": unet.cross_attention_dim,
            "size_conditioning": kind if has_sizes else "none",
            "guidance_embed_dim": unet.time_cond_proj_dim,
            "config": unet.to_dict(),
        },
        "vae": {
            "scaling_factor": vae.scaling_factor,
            "latent_channels": vae.latent_channels,
            "downscale": vae.downscale,
            "compute_fp32": has_sizes,  # the values of SDXL's published autoencoder leave fp16
            "config": vae.to_dict(),
        },
        "scheduler": scheduler,
        "controls": {name: _control(control) for name, control in controls.items()},
        "tiny_vae": checkpoint.tiny_vae_config and checkpoint.tiny_vae_config.to_dict(),
        "image_encoder": image_encoder and _image_encoder(image_encoder),
        "not_taken_over": [*checkpoint.not_taken_over, *not_taken_over],
    }
    try:
        return Architecture.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint.root}: {_first(error)}.") from None


def _scheduler(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """Return the scheduler's configuration, and what of it is not taken over."""
    try:
        config, not_taken_over = read_scheduler_keys(checkpoint.scheduler_config)
        NoiseSchedule.from_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.root}/scheduler: {error}") from None
    return config, not_taken_over


def token_table_file(part: str) -> str:
    """Return the file in a bundle that holds a text encoder's token table."""
    return f"token_table{part.removeprefix('text_encoder')}.safetensors"


def _text_encoder(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    config = checkpoint.text_encoder_configs[part]
    tokenizer, length = tokenizer_of(checkpoint, part), checkpoint.prompt_length(part)
    # SDXL was trained on the last layer but one, as it is; the others on the normed last one.
    reads_inner = checkpoint.unet_config.addition_embed_type is not None
    state = {"index": -2, "kind": "raw"} if reads_inner else {"index": -1, "kind": "normed"}
    return {
        "network": part,
        "token_table": token_table_file(part),
        "max_length": config.max_position_embeddings,
        "prompt_length": None if length == config.max_position_embeddings else length,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "hidden_state": state,
        "pad_token": checkpoint.pad_tokens[part],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "config": config.to_dict(),
    }


def _image_encoder(encoder: ImageEncoderCheckpoint) -> dict[str, Any]:
    config = encoder.config_of_encoder
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "projection_dim": config.projection_dim,
        "source": encoder.name,
        "sha256": encoder.part_sha256(IMAGE_ENCODER),
        "config": config.to_dict(),
    }


def _control(control: ControlCheckpoint) -> dict[str, Any]:
    config = control.control_config
    (part,) = control.parts
    common = {
        "source": control.name,
        "sha256": control.part_sha256(part),
        "config": config.to_dict(),
    }
    if isinstance(config, T2IAdapterConfig):
        own = {
            "kind": "t2i_adapter",
            "conditioning_channels": config.in_channels,
            "cell": config.downscale_factor,
            "residuals": len(config.features),
        }
        return {**own, **common}
    union = config if isinstance(config, ControlNetUnionConfig) else None
    return {
        "kind": "controlnet" if union is None else "controlnet_union",
        "control_types": 0 if union is None else union.num_control_type,
        "conditioning_channels": config.conditioning_channels,
        "residuals": len(config.unet.residual_channels) + 1,
        "global_pool": config.global_pool_conditions,
        **common,
    }


def own_size(unet: UNetConfig, vae: VAEConfig) -> tuple[int, int]:
    """Return width and height in pixels of what a U-Net was trained at."""
    multiple = size_multiple(unet, vae.downscale)
    side = max(1, round(unet.sample_size * vae.downscale / multiple)) * multiple
    return side, side


def sizes_to_build(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Return the sizes that a bundle is built for where none are named.

    Raises:
        CheckpointError: what the checkpoint says is invalid.
    """
    if not checkpoint.resolutions:
        return [own_size(checkpoint.unet_config, checkpoint.vae_config)]
    try:
        check_batch(checkpoint.batch)
        return parse_sizes(checkpoint.resolutions)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.root}/{EXTRAS_FILE}: {error}") from None


def choose_defaults(checkpoint: Checkpoint, sizes: list[tuple[int, int]]) -> Defaults:
    """Return the values of a request that names none.

    The size is the checkpoint's own if it is among those built, else the first of them.

    Raises:
        CheckpointError: the checkpoint's own defaults are invalid.
    """
    own = own_size(checkpoint.unet_config, checkpoint.vae_config)
    width, height = own if own in sizes else sizes[0]
    try:
        given: dict[str, Any] = {"width": width, "height": height, **checkpoint.defaults}
        defaults = Defaults.model_validate(given)
        schedule = NoiseSchedule.from_config(_scheduler(checkpoint)[0])
        build_program(defaults.sampler, defaults.schedule, defaults.steps, schedule)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint.root}: defaults: {_first(error)}.") from None
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.root}: defaults: {error}") from None
    return defaults


def _check_parts_fit(checkpoint: Checkpoint) -> None:
    unet, vae = checkpoint.unet_config, checkpoint.vae_config
    encoders = checkpoint.text_encoder_configs
    width = sum(config.hidden_size for config in encoders.values())
    if unet.cross_attention_dim != width:
        raise CheckpointError(
            f"{checkpoint.root}: the U-Net reads text embeddings of width "
            f"{unet.cross_attention_dim}, {' and '.join(encoders)} give {width}."
        )
    if unet.addition_embed_type is not None:
        last = list(encoders.values())[-1]
        pooled = last.projection_dim if last.with_projection else last.hidden_size
        sizes = (5 if checkpoint.requires_aesthetic_score else 6) * (
            unet.addition_time_embed_dim or 0
        )
        if unet.projection_class_embeddings_input_dim != pooled + sizes:
            raise CheckpointError(
                f"{checkpoint.root}: the U-Net's projection_class_embeddings_input_dim is "
                f"{unet.projection_class_embeddings_input_dim}; {list(encoders)[-1]} gives a "
                f"pooled width of {pooled}, and sizes take {sizes}."
            )
    latent = vae.latent_channels
    read = {extra_channels(task, latent) + latent: task for task in TASKS}
    if unet.out_channels != latent or unet.in_channels not in read:
        known = ", ".join(f"{channels} ({task})" for channels, task in read.items())
        raise CheckpointError(
            f"{checkpoint.root}: the U-Net maps {unet.in_channels} channels to "
            f"{unet.out_channels}; expected to {latent}, from one of {known}."
        )


def tokenizer_of(checkpoint: Checkpoint, part: str) -> ClipTokenizer:
    """Return a checkpoint's tokenizer as one of its text encoders uses it.

    Raises:
        CheckpointError: its files are damaged, or of another text encoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, content in checkpoint.tokenizer_files().items():
            paths[name] = Path(folder) / name
            paths[name].write_bytes(content)
        try:
            tokenizer = ClipTokenizer(
                paths[VOCAB],
                paths[MERGES],
                pad_token=checkpoint.pad_tokens[part],
                added_file=paths.get(ADDED),
            )
        except BundleError as error:
            raise CheckpointError(f"{checkpoint.root}/tokenizer: {error}") from None
    table = checkpoint.text_encoder_configs[part].vocab_size
    if tokenizer.vocab_size > table:
        raise CheckpointError(
            f"{checkpoint.root}: the tokenizer knows {tokenizer.vocab_size} tokens, the last one "
            f"{tokenizer.token(tokenizer.vocab_size - 1)!r}; {part}'s token table has {table} "
            "rows. The tokenizer's files or the text encoder's are of another fine-tune."
        )
    return tokenizer


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
