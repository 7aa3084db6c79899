"""Configurations of an original checkpoint's networks, read off the shapes of its tensors.

Shapes do not tell how many heads an attention has, nor what an activation is: there the published
checkpoints of the family are followed, and a configuration folder can say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sdengine.errors import CheckpointError
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_DIM = 64  # everywhere but in the U-Net of Stable Diffusion 1, which has 8 heads
_SD1_HEADS = 8
_SDXL_TIME_IDS = {"sdxl": 6, "sdxl-refiner": 5}
_SCALING_FACTORS = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl-refiner": 0.13025}
# OpenCLIP-H has 24 layers; the last is not used, and some files leave it out.
_OPENCLIP_H_USED = 23


def unet_config(shapes: Shapes, family: str, pooled_dim: int, sample_size: int) -> UNetConfig:
    """Read a U-Net's configuration off the shapes of its tensors.

    Args:
        shapes: by the names that follow ``model.diffusion_model.``.
        family: "sd1", "sd2", "sdxl" or "sdxl-refiner".
        pooled_dim: width of the pooled embedding that the U-Net reads, or 0.
        sample_size: side of the latents that it was trained at.

    Raises:
        CheckpointError: tensors that every U-Net of the family has are missing.
        ConfigError: what they say cannot be built.
    """
    layers = 0
    while f"input_blocks.{layers + 1}.0.in_layers.0.weight" in shapes:
        layers += 1
    starts = [1]
    while f"input_blocks.{starts[-1] + layers}.0.op.weight" in shapes and layers:
        starts.append(starts[-1] + layers + 1)
    widths = tuple(_dim(shapes, f"input_blocks.{n}.0.out_layers.3.weight", 0) for n in starts)
    depths = [_depth(shapes, f"input_blocks.{n}.1") for n in starts]
    middle = _depth(shapes, "middle_block.1")
    attends = [depth > 0 for depth in depths]
    first = next((n for n, yes in zip(starts, attends, strict=True) if yes), starts[-1])
    place = f"input_blocks.{first}.1"
    linear = len(_shape(shapes, f"{place}.proj_in.weight")) == 2
    # The middle is as deep as the last level's entry says, even where that level does not attend.
    entries = [depth or 1 for depth in depths[:-1]] + [middle]
    same = {depth for depth in [*depths, middle] if depth}
    down = tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends)
    up = tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends))
    added = "label_emb.0.0.weight" in shapes
    if added != (family in _SDXL_TIME_IDS) or "label_emb.weight" in shapes:
        raise CheckpointError(
            "the U-Net reads class labels or image embeddings (an upscaler or unCLIP), which is "
            "not supported"
            if family not in _SDXL_TIME_IDS
            else "the U-Net lacks SDXL's added conditioning"
        )
    added_dim = _dim(shapes, "label_emb.0.0.weight", 1) if added else None
    cond_proj = shapes.get("time_embed.cond_proj.weight")
    return UNetConfig(
        sample_size=sample_size,
        in_channels=_dim(shapes, "input_blocks.0.0.weight", 1),
        out_channels=_dim(shapes, "out.2.weight", 0),
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=layers,
        cross_attention_dim=_dim(shapes, f"{place}.transformer_blocks.0.attn2.to_k.weight", 1),
        attention_head_dim=tuple(w // _HEAD_DIM for w in widths) if linear else _SD1_HEADS,
        transformer_layers_per_block=same.pop() if len(same) == 1 else tuple(entries),
        use_linear_projection=linear,
        addition_embed_type="text_time" if added else None,
        addition_time_embed_dim=(
            None if added_dim is None else (added_dim - pooled_dim) // _SDXL_TIME_IDS[family]
        ),
        projection_class_embeddings_input_dim=added_dim,
        time_cond_proj_dim=None if cond_proj is None else cond_proj[-1],
    )


def vae_config(shapes: Shapes, family: str, sample_size: int, num_groups: int = 32) -> VAEConfig:
    """Read an autoencoder's configuration off the shapes of its tensors.

    Args:
        shapes: by the names that follow ``first_stage_model.``.
        family: whose scaling factor is taken.
        sample_size: side of the images that the model was trained at, in pixels.
        num_groups: of its group norms.

    Raises:
        CheckpointError: tensors that every autoencoder has are missing.
        ConfigError: what they say cannot be built.
    """
    levels = _count(shapes, r"encoder\.down\.(\d{1,3})\.block\.0\.conv1\.weight")
    return VAEConfig(
        in_channels=_dim(shapes, "encoder.conv_in.weight", 1),
        out_channels=_dim(shapes, "decoder.conv_out.weight", 0),
        block_out_channels=tuple(
            _dim(shapes, f"encoder.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ),
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d{1,3})\.conv1\.weight"),
        latent_channels=_dim(shapes, "post_quant_conv.weight", 1),
        norm_num_groups=num_groups,
        sample_size=sample_size,
        scaling_factor=_SCALING_FACTORS[family],
    )


def absent_vae_config(family: str, sample_size: int) -> VAEConfig:
    """Return the configuration of the published autoencoder, for a file that leaves it out."""
    return VAEConfig(sample_size=sample_size, scaling_factor=_SCALING_FACTORS[family])


def clip_config(shapes: Shapes) -> TextEncoderConfig:
    """Read the configuration of CLIP's text encoder off the shapes of its tensors.

    Args:
        shapes: by transformers' names, with or without ``text_model.``.
    """
    plain = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    tokens, width = _pair(plain, "embeddings.token_embedding.weight")
    return TextEncoderConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=_dim(plain, "encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=_count(plain, r"encoder\.layers\.(\d{1,4})\.mlp\.fc1\.weight"),
        num_attention_heads=max(width // _HEAD_DIM, 1),
        max_position_embeddings=_dim(plain, "embeddings.position_embedding.weight", 0),
        projection_dim=width,
    )


def openclip_config(shapes: Shapes, *, projects: bool) -> TextEncoderConfig:
    """Read the configuration of OpenCLIP's text encoder off the shapes of its tensors.

    Args:
        shapes: by OpenCLIP's names.
        projects: the pooled embedding is projected and used (SDXL); if not, the last layer is not
            used either (Stable Diffusion 2).
    """
    tokens, width = _pair(shapes, "token_embedding.weight")
    layers = _count(shapes, r"transformer\.resblocks\.(\d{1,4})\.mlp\.c_fc\.weight")
    if not projects and layers != _OPENCLIP_H_USED:
        layers -= 1
    return TextEncoderConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=_dim(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 0),
        num_hidden_layers=layers,
        num_attention_heads=max(width // _HEAD_DIM, 1),
        max_position_embeddings=_dim(shapes, "positional_embedding", 0),
        # The published SD2 configuration says 512 of a projection that it does not have.
        projection_dim=_dim(shapes, "text_projection", 1) if projects else 512,
        hidden_act="gelu",
        with_projection=projects,
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"tensor {name!r} is missing")
    return shapes[name]


def _dim(shapes: Shapes, name: str, index: int) -> int:
    shape = _shape(shapes, name)
    if index >= len(shape):
        raise CheckpointError(f"tensor {name!r} has shape {list(shape)}")
    return shape[index]


def _pair(shapes: Shapes, name: str) -> tuple[int, int]:
    return _dim(shapes, name, 0), _dim(shapes, name, 1)


def _depth(shapes: Shapes, place: str) -> int:
    escaped = re.escape(place)
    return _count(shapes, rf"{escaped}\.transformer_blocks\.(\d{{1,3}})\.attn2\.to_k\.weight")


def _count(shapes: Shapes, pattern: str) -> int:
    """Return one more than the largest number that the pattern finds among the names."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)
