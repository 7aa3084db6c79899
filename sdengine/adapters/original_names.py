"""Original names of modules: what the first implementations call the modules of diffusers.

Where diffusers counts levels and the blocks of a level, the original counts blocks through. Which
levels have how many blocks is seen from the modules themselves.

Source: the state dicts of the published checkpoints of Stable Diffusion 1, 2, XL and of OpenCLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdengine.adapters.sources.renaming import (
    OPENCLIP_LAYER,
    UNET_MIDDLE,
    UNET_OUTSIDE_BLOCKS,
    UNET_RESNET,
)

_RESNET = {theirs: original for original, theirs in UNET_RESNET.items()}
_OUTSIDE_BLOCKS = {theirs: original for original, theirs in UNET_OUTSIDE_BLOCKS.items()}
_MIDDLE = {path.removeprefix("mid_block."): number for number, path in UNET_MIDDLE.items()}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d{1,2})\.(resnets|attentions)\.(\d{1,2})\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d{1,2})\.(?:down|up)samplers\.0\.conv")
_MIDDLE_PATH = re.compile(r"mid_block\.((?:resnets|attentions)\.\d)\.(.+)")
_TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d{1,4})\.(.+)")
_OPENCLIP = {theirs: original for original, theirs in OPENCLIP_LAYER.items()}
_OPENCLIP_FUSED = {f"self_attn.{matrix}_proj": "attn.in_proj" for matrix in "qkv"}


def unet_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return the original path of each of a U-Net's module paths that has one."""
    paths = list(paths)
    blocks = [match for path in paths if (match := _BLOCK.fullmatch(path))]
    resnets: dict[tuple[str, int], int] = {}
    attending = {(m[1], int(m[2])) for m in blocks if m[3] == "attentions"}
    for match in blocks:
        if match[3] == "resnets":
            place = match[1], int(match[2])
            resnets[place] = max(resnets.get(place, 0), int(match[4]) + 1)

    def number(way: str, level: int, index: int) -> int:
        before = sum(resnets.get((way, lower), 0) for lower in range(level))
        # A level's downsampler is a block of its own; the first block is the first convolution.
        return before + index + (level + 1 if way == "down" else 0)

    found = {}
    for path in paths:
        if path in _OUTSIDE_BLOCKS:
            found[path] = _OUTSIDE_BLOCKS[path]
        elif middle := _MIDDLE_PATH.fullmatch(path):
            if middle[1] in _MIDDLE:
                inner = _RESNET.get(middle[2], middle[2])
                found[path] = f"middle_block.{_MIDDLE[middle[1]]}.{inner}"
        elif block := _BLOCK.fullmatch(path):
            way, level = block[1], int(block[2])
            half = "input_blocks" if way == "down" else "output_blocks"
            start = f"{half}.{number(way, level, int(block[4]))}"
            if block[3] == "resnets":
                found[path] = f"{start}.0.{_RESNET.get(block[5], block[5])}"
            else:
                found[path] = f"{start}.1.{block[5]}"
        elif sampler := _SAMPLER.fullmatch(path):
            way, level = sampler[1], int(sampler[2])
            count = resnets.get((way, level), 0)
            if way == "down":
                found[path] = f"input_blocks.{number(way, level, count)}.0.op"
            else:
                index = 2 if (way, level) in attending else 1
                found[path] = f"output_blocks.{number(way, level, count - 1)}.{index}.conv"
    return found


def openclip_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return the original paths of a text encoder's modules; query, key and value share one."""
    found = {}
    for path in paths:
        if path == "text_model.final_layer_norm":
            found[path] = "ln_final"
        elif path == "text_projection":
            found[path] = path
        elif layer := _TEXT_LAYER.fullmatch(path):
            inner = _OPENCLIP.get(layer[2]) or _OPENCLIP_FUSED.get(layer[2])
            if inner:
                found[path] = f"transformer.resblocks.{layer[1]}.{inner}"
    return found
