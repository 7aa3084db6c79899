"""Names and configuration of a control network in a single file.

The original implementation counts blocks through where diffusers counts levels and blocks of a
level; names are brought into the second form, and the configuration is read off the shapes under
these. Shapes do not tell how many heads an attention has: there the U-Net is followed that the
network is for, or the published ones.

Source: the state dictionaries of the published networks of either form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.adapters.sources.renaming import Piece, Renamer, unet_names
from sdengine.checkpoints.ldm_configs import Shapes, count_of, depth_of, dim_of, down_levels
from sdengine.models.controlnet import ControlNetConfig
from sdengine.models.controlnet_union import ControlNetUnionConfig
from sdengine.models.unet import UNetConfig

_HINT = re.compile(r"input_hint_block\.(\d{1,3})\.(weight|bias)")
_ZERO = re.compile(r"zero_convs\.(\d{1,3})\.0\.(weight|bias)")
_MIDDLE = re.compile(r"middle_block_out\.0\.(weight|bias)")
_JOINT = re.compile(r"(transformer_layes\.\d{1,3}\.attn\.)in_proj_(weight|bias)")
_ADDED_WIDTH = 256  # of each size that SDXL reads
_HEAD_DIM, _SD1_HEADS, _TRANS_HEADS = 64, 8, 8


def original_names(shapes: Shapes) -> Renamer:
    """Return the renamer of a network in the names of the original implementation.

    Args:
        shapes: of the file's tensors, by their names without ``control_model.``.

    Raises:
        CheckpointError: there is no first block.
    """
    encoder = unet_names(tuple(len(blocks) for blocks in down_levels(shapes)))
    last_hint = count_of(shapes, r"input_hint_block\.(\d{1,3})\.weight") - 1

    def rename(name: str) -> str | Sequence[Piece] | None:
        if name == "difference":
            return None
        if hint := _HINT.fullmatch(name):
            # Every second layer is an activation.
            place, number = "controlnet_cond_embedding", int(hint[1])
            if number in (0, last_hint):
                return f"{place}.conv_{'out' if number else 'in'}.{hint[2]}"
            return f"{place}.blocks.{number // 2 - 1}.{hint[2]}"
        if zero := _ZERO.fullmatch(name):
            return f"controlnet_down_blocks.{int(zero[1])}.{zero[2]}"
        if middle := _MIDDLE.fullmatch(name):
            return f"controlnet_mid_block.{middle[1]}"
        return encoder(name)

    return rename


def union_names(name: str) -> str | tuple[Piece, ...]:
    """Rename a tensor of a union ControlNet in the names of diffusers.

    Of the matrix of queries, keys and values the values alone count: see `ControlNetUnionModel`.
    """
    if name == "task_embedding":
        return (Piece("task_embedding.weight", transposed=True),)
    if joint := _JOINT.fullmatch(name):
        return (Piece(f"{joint[1]}v_proj.{joint[2]}", 2, 3),)
    return name


def controlnet_config(shapes: Shapes, like: UNetConfig | None) -> ControlNetConfig:
    """Read a ControlNet's configuration off the shapes of its tensors.

    Args:
        shapes: by the names of diffusers.
        like: the U-Net that it is for, which tells what shapes do not; None for the published ones.

    Raises:
        CheckpointError: tensors that every ControlNet has are missing.
        ConfigError: what they say cannot be built.
    """
    levels = count_of(shapes, r"down_blocks\.(\d{1,3})\.resnets\.0\.conv1\.weight")
    places = [f"down_blocks.{level}" for level in range(levels)]
    widths = tuple(dim_of(shapes, f"{place}.resnets.0.conv1.weight", 0) for place in places)
    layers = tuple(
        count_of(shapes, rf"down_blocks\.{n}\.resnets\.(\d{{1,3}})\.conv1\.weight")
        for n in range(levels)
    )
    attends = [f"{place}.attentions.0.proj_in.weight" in shapes for place in places]
    first = next((p for p, yes in zip(places, attends, strict=True) if yes), "mid_block")
    linear = len(shapes.get(f"{first}.attentions.0.proj_in.weight", ())) == 2
    depths = tuple(depth_of(shapes, f"{place}.attentions.0") or 1 for place in places)
    middle = depth_of(shapes, "mid_block.attentions.0")
    if middle and depths:
        depths = (*depths[:-1], middle)
    values: dict[str, Any] = {
        "in_channels": dim_of(shapes, "conv_in.weight", 1),
        "down_block_types": [f"{'CrossAttn' * yes}DownBlock2D" for yes in attends],
        "block_out_channels": list(widths),
        "layers_per_block": list(layers),
        "cross_attention_dim": dim_of(
            shapes, f"{first}.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1
        ),
        "attention_head_dim": _heads(widths, linear, like),
        "transformer_layers_per_block": list(depths),
        "use_linear_projection": linear,
        "norm_num_groups": 32 if like is None else like.norm_num_groups,
        "conditioning_channels": dim_of(shapes, "controlnet_cond_embedding.conv_in.weight", 1),
        "conditioning_embedding_out_channels": _hint_widths(shapes),
    }
    if "add_embedding.linear_1.weight" in shapes:
        known = None if like is None else like.addition_time_embed_dim
        values["addition_embed_type"] = "text_time"
        values["addition_time_embed_dim"] = known or _ADDED_WIDTH
        values["projection_class_embeddings_input_dim"] = dim_of(
            shapes, "add_embedding.linear_1.weight", 1
        )
    if "task_embedding" not in shapes:
        return ControlNetConfig.from_dict(values)
    kinds, width = (dim_of(shapes, "task_embedding", axis) for axis in (0, 1))
    values["num_control_type"], values["num_trans_channel"] = kinds, width
    values["num_proj_channel"] = dim_of(shapes, "spatial_ch_projs.weight", 0)
    values["num_trans_layer"] = count_of(
        shapes, r"transformer_layes\.(\d{1,3})\.attn\.in_proj_weight"
    )
    values["num_trans_head"] = math.gcd(width, _TRANS_HEADS)
    sines = dim_of(shapes, "control_add_embedding.linear_1.weight", 1)
    values["addition_time_embed_dim"] = sines // max(kinds, 1)
    return ControlNetUnionConfig.from_dict(values)


def _heads(widths: tuple[int, ...], linear: bool, like: UNetConfig | None) -> list[int]:
    if like is not None and like.block_out_channels == widths:
        return list(like.num_heads)
    return [max(width // _HEAD_DIM, 1) if linear else _SD1_HEADS for width in widths]


def _hint_widths(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    place = "controlnet_cond_embedding"
    blocks = count_of(shapes, rf"{place}\.blocks\.(\d{{1,3}})\.weight")
    wide = [dim_of(shapes, f"{place}.blocks.{n}.weight", 0) for n in range(1, blocks, 2)]
    return [dim_of(shapes, f"{place}.conv_in.weight", 0), *wide]
