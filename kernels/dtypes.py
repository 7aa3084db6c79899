"""Data types of kernels: names, sizes and pointers; imports neither torch nor triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
POINTER_TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's data type as kernels name it, such as float16."""
    return str(tensor.dtype).removeprefix("torch.")
