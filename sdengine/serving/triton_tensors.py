"""Tensors of a model of Triton Inference Server: names, types and shapes, as its clients send them.

Two spellings are in use: capitals, without batches (`PROMPT`, `SAMPLES`, `IMAGES`), and small
letters, in batches (`prompt`, `generated_image`). Which of them a model has, and whether in
batches, its `config.pbtxt` says.

Source: of names and types, the Stable Diffusion models and clients of
triton-inference-server/tutorials and kamalkraj/stable-diffusion-tritonserver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Spelling = Literal["capitals", "small"]
SPELLINGS: tuple[Spelling, ...] = ("capitals", "small")

# Of what is one value for each picture; a request without batches has a row of them.
_ONE_EACH = (1,)
_ROW = (-1,)
_NUMPY: Mapping[str, type[np.generic]] = MappingProxyType(
    {
        "TYPE_STRING": np.object_,
        "TYPE_UINT8": np.uint8,
        "TYPE_INT32": np.int32,
        "TYPE_INT64": np.int64,
        "TYPE_FP16": np.float16,
        "TYPE_FP32": np.float32,
    }
)


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Args:
        name: in capitals.
        data_type: as `config.pbtxt` calls it.
        dims: of one element of a batch; -1 is any size.
        unbatched_dims: of all of a request, where there are no batches; None as `dims`.
        field: of a request, that an input sets.
        small_name: where it is not the same in small letters.
        is_optional: an input may be left out.
        unbatched_only: it says how many pictures there are, which a batch says itself.
    """

    name: str
    data_type: str
    dims: tuple[int, ...] = _ONE_EACH
    unbatched_dims: tuple[int, ...] | None = None
    field: str = ""
    small_name: str = ""
    is_optional: bool = True
    unbatched_only: bool = False

    def spelled(self, spelling: Spelling) -> str:
        """Return the name."""
        return self.name if spelling == "capitals" else self.small_name or self.name.lower()

    def dims_of(self, is_batched: bool) -> tuple[int, ...]:
        """Return the dimensions in `config.pbtxt`, which leaves out that of the batch."""
        if is_batched or self.unbatched_dims is None:
            return self.dims
        return self.unbatched_dims


INPUTS: tuple[Tensor, ...] = (
    Tensor("PROMPT", "TYPE_STRING", _ONE_EACH, _ROW, field="prompt", is_optional=False),
    Tensor("NEGATIVE_PROMPT", "TYPE_STRING", _ONE_EACH, _ROW, field="negative_prompt"),
    Tensor("SAMPLES", "TYPE_INT32", field="samples", unbatched_only=True),
    Tensor("SEED", "TYPE_INT64", _ONE_EACH, _ROW, field="seed"),
    Tensor("STEPS", "TYPE_INT32", field="steps"),
    Tensor("GUIDANCE_SCALE", "TYPE_FP32", field="guidance_scale"),
    Tensor("GUIDANCE_RESCALE", "TYPE_FP32", field="guidance_rescale"),
    Tensor("WIDTH", "TYPE_INT32", field="width"),
    Tensor("HEIGHT", "TYPE_INT32", field="height"),
    Tensor("SCHEDULER", "TYPE_STRING", field="scheduler"),
    Tensor("SAMPLER", "TYPE_STRING", field="sampler"),
    Tensor("SCHEDULE", "TYPE_STRING", field="schedule"),
    Tensor("ETA", "TYPE_FP32", field="eta"),
    Tensor("CLIP_SKIP", "TYPE_INT32", field="clip_skip"),
    Tensor("IMAGE", "TYPE_UINT8", (-1, -1, -1), field="image"),
    Tensor("STRENGTH", "TYPE_FP32", field="strength"),
    Tensor("MASK", "TYPE_UINT8", (-1, -1), field="mask"),
    Tensor("MASK_BLUR", "TYPE_FP32", field="mask_blur"),
)
IMAGES = Tensor("IMAGES", "TYPE_UINT8", (-1, -1, 3), (-1, -1, -1, 3), small_name="generated_image")
SEEDS = Tensor("SEEDS", "TYPE_INT64", _ONE_EACH, _ROW)
METADATA = Tensor("METADATA", "TYPE_STRING", _ONE_EACH, _ROW)
WARNINGS = Tensor("WARNINGS", "TYPE_STRING", _ONE_EACH, _ROW)
OUTPUTS = (IMAGES, SEEDS, METADATA, WARNINGS)
# What pixels may be: 0 to 255, or fractions of 1.
PIXEL_TYPES: Mapping[str, str] = MappingProxyType(
    {"uint8": "TYPE_UINT8", "fp16": "TYPE_FP16", "fp32": "TYPE_FP32"}
)


def inputs_of(is_batched: bool) -> tuple[Tensor, ...]:
    """Return the inputs of a model with or without batches."""
    return tuple(one for one in INPUTS if not (is_batched and one.unbatched_only))


def numpy_type(data_type: str) -> type[np.generic]:
    """Return what elements of a type of `config.pbtxt` are in NumPy; strings are bytes objects."""
    return _NUMPY[data_type]


def spelling_of(inputs: Sequence[Mapping[str, Any]]) -> Spelling | None:
    """Return the spelling of a configuration's inputs; None where no prompt is among them."""
    names = {one.get("name") for one in inputs}
    known = (spelling for spelling in SPELLINGS if INPUTS[0].spelled(spelling) in names)
    return next(known, None)
