"""Bundles' own parameters, and what a bundle built of a checkpoint would hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdengine.adapters.sources.own import Own
from sdengine.building.architecture import describe
from sdengine.checkpoints import load_checkpoint
from sdengine.inputs.models import PARTS

Array = NDArray[Any]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def stored(tensor: torch.Tensor, precision: str = "fp16") -> Array:
    """Return a parameter as a native bundle holds it: vectors in fp32, bf16 as its bits."""
    rounded = tensor.float() if tensor.ndim < 2 else tensor.float().to(TYPES[precision])
    bits = rounded.view(torch.uint16) if rounded.dtype == torch.bfloat16 else rounded
    array: Array = bits.contiguous().numpy()
    return array


def held(checkpoint: Path, precision: str = "fp16", **options: Any) -> dict[str, dict[str, Array]]:
    """Return the parameters of a checkpoint's parts as a bundle built of it holds them."""
    opened = load_checkpoint(checkpoint, **options)
    return {
        part: {name: stored(tensor, precision) for name, tensor in opened.tensors(part)}
        for part in opened.parts
        if part in PARTS
    }


def own_of(checkpoint: Path, precision: str = "fp16") -> Own:
    """Return what a bundle of a checkpoint has, without building one."""
    return Own(describe(load_checkpoint(checkpoint)), held(checkpoint, precision))


def same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Say whether all parameters are the same bits."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and np.array_equal(found[name].view(np.uint8), array.view(np.uint8))
        if array.flags.c_contiguous and found[name].flags.c_contiguous
        else np.array_equal(found[name], array)
        for name, array in expected.items()
    )
