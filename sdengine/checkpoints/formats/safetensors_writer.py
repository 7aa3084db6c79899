"""Write a safetensors file one tensor at a time, so that a network never lies in memory whole.

Source: the safetensors format: 8 bytes with the header's length, little-endian, the header in JSON,
then the tensors in a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sdengine.checkpoints.weights import Shapes, bytes_of
from sdengine.errors import CheckpointError

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
DTYPES = tuple(_NAMES)
_ALIGNMENT = 8


def write_tensors(
    path: Path,
    shapes: Shapes,
    tensors: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """Write tensors as they come, converted to one data type.

    Args:
        path: the new file.
        shapes: of all tensors, in the order in which they will come.
        tensors: names and values; each is let go of before the next is asked for.
        dtype: one of DTYPES.

    Raises:
        CheckpointError: a value is not finite in this data type.
        OSError: the file cannot be written.
    """
    header, end = _header(shapes, dtype)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in tensors:
            converted = tensor.detach().to(device="cpu", dtype=dtype)
            if not torch.isfinite(converted).all():
                raise CheckpointError(
                    f"{path.parent.name}: tensor {name!r} is not finite in {dtype}; its largest "
                    f"absolute value is {tensor.abs().max().item():.3g}. Save in torch.bfloat16 or "
                    "torch.float32."
                )
            file.write(bytes_of(converted))
        written = file.tell() - 8 - len(header)
    if written != end:
        raise ValueError(f"{path}: {written} bytes of tensors came where shapes ask for {end}")


def _header(shapes: Shapes, dtype: torch.dtype) -> tuple[bytes, int]:
    """Return the header and the number of bytes that follow it."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * dtype.itemsize
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        content[name] = entry
        place = end
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT), place
