"""Configurations of an original checkpoint's networks, read off the shapes of its tensors.

Shapes do not tell how many heads an attention has, nor what an activation is: there the published
checkpoints of the family are followed, and a configuration folder can say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

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
    levels, outputs = down_levels(shapes), _up_levels(shapes)
    if [len(blocks) + 1 for blocks in reversed(levels)] != [len(blocks) for blocks in outputs]:
        raise CheckpointError("its levels have other numbers of layers on the way up than down")
    widths = tuple(
        dim_of(shapes, f"input_blocks.{blocks[0]}.0.out_layers.3.weight", 0) for blocks in levels
    )
    downs = [[f"input_blocks.{n}.1" for n in blocks] for blocks in levels]
    ups = [[f"output_blocks.{n}.1" for n in blocks] for blocks in outputs]
    attends, attends_up = _attends(shapes, downs), _attends(shapes, ups)
    place = next((p for level in downs for p in level if _is_attention(shapes, p)), downs[-1][0])
    linear = len(_shape(shapes, f"{place}.proj_in.weight")) == 2
    middle = depth_of(shapes, "middle_block.1") if _is_attention(shapes, "middle_block.1") else None
    entries = [_entry(shapes, level) for level in downs]
    if middle is not None and not attends[-1]:
        # The middle is as deep as the last level's entry says, even where that does not attend.
        entries[-1] = middle
    elif middle is not None and middle != _first(entries[-1]):
        raise CheckpointError("the middle is deeper or less deep than the level before it")
    reverse = tuple(_entry(shapes, level) for level in ups)
    usual = tuple(reversed(entries))
    same = {e for e, yes in zip(entries, attends, strict=True) if yes} | {_first(entries[-1])}
    goes_back = all(a == b for a, b, yes in zip(reverse, usual, attends_up, strict=True) if yes)
    nested = any(isinstance(entry, tuple) for entry in entries)
    layers = tuple(len(blocks) for blocks in levels)
    down = tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends)
    up = tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in attends_up)
    added = "label_emb.0.0.weight" in shapes
    if added != (family in _SDXL_TIME_IDS) or "label_emb.weight" in shapes:
        raise CheckpointError(
            "the U-Net reads class labels or image embeddings (an upscaler or unCLIP), which is "
            "not supported"
            if family not in _SDXL_TIME_IDS
            else "the U-Net lacks SDXL's added conditioning"
        )
    added_dim = dim_of(shapes, "label_emb.0.0.weight", 1) if added else None
    cond_proj = shapes.get("time_embed.cond_proj.weight")
    return UNetConfig(
        sample_size=sample_size,
        in_channels=dim_of(shapes, "input_blocks.0.0.weight", 1),
        out_channels=dim_of(shapes, "out.2.weight", 0),
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=layers[0] if len(set(layers)) == 1 else layers,
        cross_attention_dim=dim_of(shapes, f"{place}.transformer_blocks.0.attn2.to_k.weight", 1),
        attention_head_dim=tuple(w // _HEAD_DIM for w in widths) if linear else _SD1_HEADS,
        transformer_layers_per_block=(
            _first(entries[-1]) if len(same) == 1 and not nested else tuple(entries)
        ),
        reverse_transformer_layers_per_block=None if goes_back and not nested else reverse,
        mid_block_type=_middle_type(shapes, middle),
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
    levels = count_of(shapes, r"encoder\.down\.(\d{1,3})\.block\.0\.conv1\.weight")
    return VAEConfig(
        in_channels=dim_of(shapes, "encoder.conv_in.weight", 1),
        out_channels=dim_of(shapes, "decoder.conv_out.weight", 0),
        block_out_channels=tuple(
            dim_of(shapes, f"encoder.down.{level}.block.0.conv1.weight", 0)
            for level in range(levels)
        ),
        layers_per_block=count_of(shapes, r"encoder\.down\.0\.block\.(\d{1,3})\.conv1\.weight"),
        latent_channels=dim_of(shapes, "decoder.conv_in.weight", 1),
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
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
        intermediate_size=dim_of(plain, "encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=count_of(plain, r"encoder\.layers\.(\d{1,4})\.mlp\.fc1\.weight"),
        num_attention_heads=max(width // _HEAD_DIM, 1),
        max_position_embeddings=dim_of(plain, "embeddings.position_embedding.weight", 0),
        projection_dim=width,
    )


def openclip_config(shapes: Shapes, *, projects: bool) -> TextEncoderConfig:
    """Read the configuration of OpenCLIP's text encoder off the shapes of its tensors.

    Args:
        shapes: by OpenCLIP's names, or by those of transformers.
        projects: the pooled embedding is projected and used (SDXL); if not, the last layer is not
            used either (Stable Diffusion 2).
    """
    if any(name.startswith("text_model.") for name in shapes):
        found = clip_config(shapes)
    else:
        tokens, width = _pair(shapes, "token_embedding.weight")
        found = TextEncoderConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=dim_of(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 0),
            num_hidden_layers=count_of(
                shapes, r"transformer\.resblocks\.(\d{1,4})\.mlp\.c_fc\.weight"
            ),
            num_attention_heads=max(width // _HEAD_DIM, 1),
            max_position_embeddings=dim_of(shapes, "positional_embedding", 0),
        )
    layers = found.num_hidden_layers
    if not projects and layers != _OPENCLIP_H_USED:
        layers -= 1
    # The published SD2 configuration says 512 of a projection that it does not have.
    projection = 512
    if projects and "text_projection.weight" in shapes:
        projection = dim_of(shapes, "text_projection.weight", 0)
    elif projects:
        projection = dim_of(shapes, "text_projection", 1)
    return replace(
        found,
        num_hidden_layers=layers,
        projection_dim=projection,
        hidden_act="gelu",
        with_projection=projects,
    )


def down_levels(shapes: Shapes) -> list[list[int]]:
    """Return the numbers of the input blocks of each level; a downsampler ends one.

    Raises:
        CheckpointError: the first one is missing.
    """
    levels: list[list[int]] = [[]]
    block = 1
    while True:
        if f"input_blocks.{block}.0.in_layers.0.weight" in shapes:
            levels[-1].append(block)
        elif f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            break
        block += 1
    if not all(levels):
        raise CheckpointError("tensor 'input_blocks.1.0.in_layers.0.weight' is missing")
    return levels


def _up_levels(shapes: Shapes) -> list[list[int]]:
    """Return the numbers of the output blocks of each level; the last of one enlarges the map."""
    levels: list[list[int]] = [[]]
    block = 0
    while f"output_blocks.{block}.0.in_layers.0.weight" in shapes:
        levels[-1].append(block)
        if any(f"output_blocks.{block}.{place}.conv.weight" in shapes for place in (1, 2)):
            levels.append([])
        block += 1
    return levels


def _is_attention(shapes: Shapes, place: str) -> bool:
    return f"{place}.proj_in.weight" in shapes


def _attends(shapes: Shapes, levels: list[list[str]]) -> list[bool]:
    found = [{_is_attention(shapes, place) for place in places} for places in levels]
    if any(len(each) != 1 for each in found):
        raise CheckpointError("a level attends in some of its layers only")
    return [each.pop() for each in found]


def _entry(shapes: Shapes, places: list[str]) -> int | tuple[int, ...]:
    """Return the transformer blocks of a level's layers: one number where they are the same."""
    depths = tuple(depth_of(shapes, place) or 1 for place in places)
    return depths[0] if len(set(depths)) == 1 else depths


def _first(entry: int | tuple[int, ...]) -> int:
    return entry if isinstance(entry, int) else entry[0]


def _middle_type(shapes: Shapes, depth: int | None) -> str | None:
    if depth is not None:
        return UNetConfig.mid_block_type
    return "UNetMidBlock2D" if "middle_block.0.in_layers.0.weight" in shapes else None


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"tensor {name!r} is missing")
    return shapes[name]


def dim_of(shapes: Shapes, name: str, index: int) -> int:
    """Return one side of a tensor.

    Raises:
        CheckpointError: it is missing, or has fewer sides.
    """
    shape = _shape(shapes, name)
    if index >= len(shape):
        raise CheckpointError(f"tensor {name!r} has shape {list(shape)}")
    return shape[index]


def _pair(shapes: Shapes, name: str) -> tuple[int, int]:
    return dim_of(shapes, name, 0), dim_of(shapes, name, 1)


def depth_of(shapes: Shapes, place: str) -> int:
    """Return how many transformer blocks an attention has; 0 where there is none."""
    escaped = re.escape(place)
    return count_of(shapes, rf"{escaped}\.transformer_blocks\.(\d{{1,3}})\.attn2\.to_k\.weight")


def count_of(shapes: Shapes, pattern: str) -> int:
    """Return one more than the largest number that the pattern finds among the names."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)
