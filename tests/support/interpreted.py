"""Run the Triton kernels in Triton's interpreter, on the CPU, and judge what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")

from sdengine.kernels.launching import interprets

if not interprets():
    pytest.skip("TRITON_INTERPRET is 0, so triton compiles", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_close_as_torch(
    op: str, actual: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor
) -> None:
    """Accept an error within the row of TOLERANCES and, at 16 bits, within twice torch's own.

    In float32 both are a few units in the last place, and which is luckier says nothing.

    Args:
        op: name of the operation.
        actual: what the kernel computed; its data type names the row.
        torchs: what torch computes from the same arguments in the same data type.
        truth: the same in float64.
    """
    assert_close(op, str(actual.dtype).removeprefix("torch."), actual, truth)
    if actual.dtype != torch.float32:
        assert_within_twice(actual, torchs, truth)


def assert_within_twice(actual: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor) -> None:
    """Accept an error of at most twice torch's own at that precision."""
    assert actual.dtype == torchs.dtype
    assert actual.shape == torchs.shape == truth.shape
    assert actual.isfinite().all()
    ours = float((actual.double() - truth).abs().max())
    theirs = float((torchs.double() - truth).abs().max())
    # Where torch is right to the last digit, rounding the truth is the least that can be asked.
    least = float((truth.to(actual.dtype).double() - truth).abs().max())
    assert ours <= 2 * max(theirs, least), f"error {ours:.3g}, torch's {theirs:.3g}"


@pytest.fixture
def hardware_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round and multiply bfloat16 as GPUs do.

    It keeps bfloat16 as integers, cuts off digits where GPUs round to the nearest even number, and
    multiplies the integers in a matrix product.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def rounding_cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
            return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return cast(self, source, target)

    def widening_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = cast(self, a, tl.float32), cast(self, b, tl.float32)
        return dot(self, a, b, *others)

    monkeypatch.setattr(builder, "cast_impl", rounding_cast)
    monkeypatch.setattr(builder, "create_dot", widening_dot)
