"""Names and configuration of a T2I-Adapter in a single file.

Source: the state dictionaries of the published adapters, of the original implementation and of
diffusers.
"""

from __future__ import annotations

import re

from sdengine.adapters.sources.renaming import Renamer
from sdengine.checkpoints.ldm_configs import Shapes, count_of, dim_of
from sdengine.errors import CheckpointError
from sdengine.models.t2i_adapter import T2IAdapterConfig
from sdengine.models.unet import FEATURES

# One of these is in every adapter's file; "adapter." comes from diffusers.
MARKS = tuple(
    f"{prefix}body.0.{name}.weight"
    for prefix in ("adapter.", "")
    for name in ("resnets.0.block1", "block1", "body.0.block1")
)
_PREFIX = "adapter."
_LIGHT = re.compile(r"body\.(\d{1,3})\.body\.(\d{1,3})\.(.+)")
_FULL = re.compile(r"body\.(\d{1,3})\.((?:in_conv|block1|block2)\.(?:weight|bias))")
# Of what the first convolution reads: picture channels, and pixels along a side of a cell.
_READ = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}


def adapter_names(shapes: Shapes) -> Renamer:
    """Return the renamer of an adapter's tensors, whichever implementation named them."""
    plain = [name.removeprefix(_PREFIX) for name in shapes]
    is_light = any(name.endswith(".out_conv.weight") for name in plain)
    numbers = [int(found[1]) for name in plain if (found := _FULL.fullmatch(name))]
    layers = max((max(numbers, default=0) + 1) // FEATURES, 1)
    is_original = any(".block1." in name and ".resnets." not in name for name in plain)

    def rename(name: str) -> str:
        name = name.removeprefix(_PREFIX)
        if is_original and (light := _LIGHT.fullmatch(name)):
            name = f"body.{light[1]}.resnets.{light[2]}.{light[3]}"
        elif is_original and not is_light and (full := _FULL.fullmatch(name)):
            # Blocks are counted through; the first of a level may bring it to other channels.
            level, index = divmod(int(full[1]), layers)
            inside = full[2] if full[2].startswith("in_conv") else f"resnets.{index}.{full[2]}"
            name = f"body.{level}.{inside}"
        return f"{_PREFIX}{name}"

    return rename


def adapter_config(shapes: Shapes) -> T2IAdapterConfig:
    """Read an adapter's configuration off the shapes of its tensors, by the names of diffusers.

    Raises:
        CheckpointError: tensors that every adapter has are missing, or of no known shape.
        ConfigError: what they say cannot be built.
    """
    is_light = f"{_PREFIX}body.0.out_conv.weight" in shapes
    place = rf"{re.escape(_PREFIX)}body\.(\d{{1,3}})\.resnets\.0\.block1\.weight"
    levels = range(count_of(shapes, place))
    inside = "out_conv" if is_light else "resnets.0.block1"
    channels = tuple(dim_of(shapes, f"{_PREFIX}body.{n}.{inside}.weight", 0) for n in levels)
    first = "body.0.in_conv" if is_light else "conv_in"
    read = dim_of(shapes, f"{_PREFIX}{first}.weight", 1)
    if read not in _READ:
        known = ", ".join(map(str, _READ))
        raise CheckpointError(
            f"its first convolution reads {read} channels; expected one of {known}"
        )
    in_channels, downscale = _READ[read]
    full = "full_adapter_xl" if downscale == 16 else "full_adapter"
    return T2IAdapterConfig(
        in_channels=in_channels,
        channels=channels[:-1] if is_light else channels,
        num_res_blocks=count_of(
            shapes, rf"{re.escape(_PREFIX)}body\.0\.resnets\.(\d{{1,3}})\.block1\.weight"
        ),
        downscale_factor=downscale,
        adapter_type="light_adapter" if is_light else full,
    )
