"""Renaming: what the tensors of files are called in the networks here.

Everything follows from how many levels and layers there are: where the original implementations
count blocks through, diffusers counts levels and blocks of a level, so that a block's number is
taken apart by the blocks a level has. An unknown name is passed on and refused as a tensor that the
network does not know.

Source: the state dicts of the published checkpoints of Stable Diffusion 1, 2, XL and of OpenCLIP,
and those of diffusers and transformers; a name on the left and a name on the right are each what
their implementation's modules are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_OUTSIDE_BLOCKS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_MIDDLE = {
    "0": "mid_block.resnets.0",
    "1": "mid_block.attentions.0",
    "2": "mid_block.resnets.1",
}
_UNET_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d{1,4})\.([012])\.(.+)")
_UNET_MIDDLE_BLOCK = re.compile(r"middle_block\.([012])\.(.+)")

_VAE_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d{1,3})\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_([12])\.(.+)")
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}

# Names that old files use for the same parameters.
_RENAMED_VAE_ATTENTION = {
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",
    "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm",
}  # fmt: skip
_OPENCLIP_OUTSIDE_BLOCKS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPENCLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d{1,4})\.(.+)")
_TRANSFORMERS_BLOCK = re.compile(r"text_model\.encoder\.layers\.(\d{1,4})\.(.+)")


@dataclass(frozen=True)
class Piece:
    """Say what of a stored tensor a network's tensor is.

    Args:
        name: in the network.
        part, parts: the rows to take, where a file fuses several matrices into one.
        transposed: the file holds the matrix the other way round.
    """

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


# Gives what a stored tensor is in the network: its name, pieces, or None to leave it out.
Renamer = Callable[[str], "str | Sequence[Piece] | None"]


def unet_names(layers: Sequence[int]) -> Renamer:
    """Return the renamer of a U-Net, or of its way down alone, by its levels' numbers of layers."""
    # In the file blocks are counted through; a level's downsampler is a block of its own.
    down_places = [(level, index) for level, n in enumerate(layers) for index in range(n + 1)]
    up_places = [(level, index) for level, n in enumerate(layers[::-1]) for index in range(n + 1)]

    def rename(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in UNET_OUTSIDE_BLOCKS:
            return f"{UNET_OUTSIDE_BLOCKS[stem]}.{kind}"
        if middle := _UNET_MIDDLE_BLOCK.fullmatch(name):
            return f"{UNET_MIDDLE[middle[1]]}.{_replaced(middle[2], UNET_RESNET)}"
        block = _UNET_BLOCK.fullmatch(name)
        if block is None:
            return name
        down = block[1] == "input_blocks"
        # Input block 0 is the first convolution, which belongs to no level.
        places, number = (down_places, int(block[2]) - 1) if down else (up_places, int(block[2]))
        if not 0 <= number < len(places):
            return name
        level, index = places[number]
        place, rest = f"{'down' if down else 'up'}_blocks.{level}", block[4]
        if down and rest.startswith("op."):
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if not down and rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
        if block[3] == "0":
            return f"{place}.resnets.{index}.{_replaced(rest, UNET_RESNET)}"
        return f"{place}.attentions.{index}.{rest}"

    return rename


def vae_names(levels: int) -> Renamer:
    """Return the renamer of what follows ``first_stage_model.``, by the number of its levels."""
    last = levels - 1

    def rename(name: str) -> str:
        if middle := _VAE_MIDDLE.fullmatch(name):
            half, kind, number, rest = middle.groups()
            if kind == "attn":
                return f"{half}.mid_block.attentions.0.{_replaced(rest, _VAE_ATTENTION)}"
            return f"{half}.mid_block.resnets.{int(number) - 1}.{_vae_resnet(rest)}"
        if level := _VAE_LEVEL.fullmatch(name):
            half, way, number, rest = level.groups()
            # The decoder's levels are counted by resolution there, and by their order here.
            index = int(number) if way == "down" else last - int(number)
            rest = rest.replace("block.", "resnets.", 1) if rest.startswith("block.") else rest
            rest = rest.replace("downsample.", "downsamplers.0.", 1)
            rest = rest.replace("upsample.", "upsamplers.0.", 1)
            return f"{half}.{way}_blocks.{index}.{_vae_resnet(rest)}"
        return name.replace(".norm_out.", ".conv_norm_out.")

    return rename


def clip_names(with_projection: bool) -> Renamer:
    """Return the renamer of CLIP's encoder, whose names are those of transformers."""

    def rename(name: str) -> str | None:
        if name == "text_projection.weight":
            return name if with_projection else None
        return name if name.startswith("text_model.") else f"text_model.{name}"

    return rename


def openclip_names(layers: int, with_projection: bool) -> Renamer:
    """Return the renamer of OpenCLIP's encoder, whose names may be those of transformers too.

    Its query, key and value matrices lie on one another in one tensor, and its projection is
    multiplied from the other side. Layers after those that it has here are left out:
    Stable Diffusion 2 is conditioned by the last but one.
    """

    def rename(name: str) -> str | tuple[Piece, ...] | None:
        if name in _OPENCLIP_OUTSIDE_BLOCKS:
            return _OPENCLIP_OUTSIDE_BLOCKS[name]
        if name == "text_projection":
            piece = Piece("text_projection.weight", transposed=True)
            return (piece,) if with_projection else None
        if name == "text_projection.weight":
            return name if with_projection else None
        original = _OPENCLIP_BLOCK.fullmatch(name)
        block = original or _TRANSFORMERS_BLOCK.fullmatch(name)
        if block is None:
            return name
        if int(block[1]) >= layers and not with_projection:
            return None
        if original is None:
            return name
        place = f"text_model.encoder.layers.{int(block[1])}"
        if block[2].startswith("attn.in_proj_"):
            kind = block[2].removeprefix("attn.in_proj_")
            return tuple(
                Piece(f"{place}.self_attn.{matrix}_proj.{kind}", part, 3)
                for part, matrix in enumerate("qkv")
            )
        return f"{place}.{_replaced(block[2], OPENCLIP_LAYER)}"

    return rename


def current_name(part: str, name: str) -> str:
    """Return what a tensor of a diffusers file is called today."""
    if part in TEXT_ENCODERS and not name.startswith("text_"):
        return f"text_model.{name}"  # some versions of transformers leave the prefix out
    if part == "vae" and ".attentions." in name:
        head, _, kind = name.rpartition(".")
        stem, _, last = head.rpartition(".")
        return f"{stem}.{_RENAMED_VAE_ATTENTION.get(last, last)}.{kind}"
    return name


def _replaced(name: str, table: dict[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{table.get(stem, stem)}.{kind}"


def _vae_resnet(name: str) -> str:
    return name.replace("nin_shortcut.", "conv_shortcut.")
