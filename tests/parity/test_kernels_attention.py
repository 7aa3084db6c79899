"""The attention kernel, interpreted, against torch's attention in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.interpreted import (
    DTYPES,
    assert_close_as_torch,
    assert_within_twice,
    hardware_bfloat16,
)

from sdengine.errors import ConfigError
from sdengine.kernels import attention as module
from sdengine.kernels.attention import HEAD_DIMS, VARIANTS, attention
from sdengine.kernels.variants import Variant

__all__ = ["hardware_bfloat16"]


@pytest.fixture(autouse=True)
def every_dtype(hardware_bfloat16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute bfloat16 too, which the interpreter alone would get wrong."""
    supports = module.supports

    def supports_like_gpu(shape: Any, dtype: str, cc: int | None) -> tuple[bool, str]:
        found: tuple[bool, str] = supports(shape, dtype.replace("bfloat16", "float16"), cc)
        return found

    monkeypatch.setattr(module, "supports", supports_like_gpu)


def made(
    dtype: torch.dtype, B: int, heads: int, S: int, T: int, D: int, seed: int = 0
) -> list[torch.Tensor]:
    """Return q, k, v as views of [B,S,heads,D] projections."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, S, heads, D), (B, T, heads, D), (B, T, heads, D)]
    return [torch.randn(s, generator=generator).to(dtype).transpose(1, 2) for s in shapes]


def expected(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return torch's result in the tensors' type and in float64."""
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **options)
    return F.scaled_dot_product_attention(q, k, v, **options), truth


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "heads", "S", "T", "D"),
    [
        (2, 2, 65, 77, 40),
        (1, 2, 33, 154, 64),
        (3, 1, 17, 231, 80),
        (1, 1, 130, 33, 128),
        (1, 2, 9, 77, 160),
        (1, 1, 33, 49, 512),
        (1, 1, 1, 1, 40),
        (1, 1, 1, 2, 64),
        (1, 1, 64, 64, 40),
    ],
)
def test_ragged_sizes(dtype: torch.dtype, B: int, heads: int, S: int, T: int, D: int) -> None:
    q, k, v = made(dtype, B, heads, S, T, D)
    torchs, truth = expected(q, k, v)
    actual = attention(q, k, v)
    assert_close_as_torch("attention", actual, torchs, truth)
    assert actual.transpose(1, 2).is_contiguous()  # as the output projection reads it


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "T"), [(77, 77), (70, 20), (20, 70), (1, 3)])
def test_causal(dtype: torch.dtype, S: int, T: int) -> None:
    q, k, v = made(dtype, 2, 1, S, T, 64)
    torchs, truth = expected(q, k, v, is_causal=True)
    assert_close_as_torch("attention", attention(q, k, v, causal=True), torchs, truth)


@pytest.mark.parametrize(
    ("D", "variant"),
    [(D, variant) for D in HEAD_DIMS for variant in VARIANTS[D]],
    ids=lambda value: value.name if isinstance(value, Variant) else str(value),
)
def test_every_variant(D: int, variant: Variant) -> None:
    q, k, v = made(torch.float16, 1, 2, 65, 77, D)
    torchs, truth = expected(q, k, v)
    assert_close_as_torch("attention", attention(q, k, v, variant=variant), torchs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [30.0, 1e-3])
def test_large_and_small_scores(dtype: torch.dtype, magnitude: float) -> None:
    q, k, v = made(dtype, 1, 1, 40, 77, 40)
    q, k = q * magnitude, k * magnitude
    torchs, truth = expected(q, k, v)
    # Scores of thousands keep few digits in any arithmetic, so torch's own error is the measure.
    assert_within_twice(attention(q, k, v), torchs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_channel_a_hundred_times_the_others(dtype: torch.dtype) -> None:
    q, k, v = made(dtype, 1, 1, 40, 77, 80)
    for tensor in (q, k, v):
        tensor[..., 70] *= 100  # in the tail of the head dimension
    torchs, truth = expected(q, k, v)
    # That channel alone sets the mean size of the reference.
    assert_within_twice(attention(q, k, v), torchs, truth)
    assert_close_as_torch(
        "attention", attention(q, k, v)[..., :70], torchs[..., :70], truth[..., :70]
    )


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_scale(scale: float) -> None:
    q, k, v = made(torch.float16, 1, 2, 33, 33, 40)
    torchs, truth = expected(q, k, v, scale=scale)
    assert_close_as_torch("attention", attention(q, k, v, scale), torchs, truth)


@pytest.mark.parametrize("D", [40, 80, 160])
def test_reads_a_fused_projection_in_place(D: int) -> None:
    qkv = torch.randn(2, 35, 3, 2, D, generator=torch.Generator().manual_seed(0)).half()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    assert q.data_ptr() == qkv.data_ptr()
    torchs, truth = expected(q, k, v)
    assert_close_as_torch("attention", attention(q, k, v), torchs, truth)


def test_reads_any_strides() -> None:
    q, k, v = (torch.randn(1, 2, 33, 43).half()[..., 3:] for _ in range(3))  # on odd addresses
    torchs, truth = expected(q, k, v)
    assert_close_as_torch("attention", attention(q, k, v), torchs, truth)
    q, k, v = made(torch.float16, 2, 2, 5, 6, 40)
    k, v = (tensor[:1].expand(2, -1, -1, -1) for tensor in (k, v))  # a stride of zero
    torchs, truth = expected(q, k, v)
    assert_close_as_torch("attention", attention(q, k, v), torchs, truth)


@pytest.mark.parametrize("D", [40, 80, 160])
def test_reads_nothing_beside_the_tensors(D: int) -> None:
    inner = []
    for rows in (33, 37, 37):
        room = torch.full((1, 1, rows + 70, D + 24), float("nan"), dtype=torch.float16)
        room[:, :, :rows, :D] = torch.randn(1, 1, rows, D)
        inner.append(room[:, :, :rows, :D])
    q, k, v = inner
    torchs, truth = expected(q, k, v)
    assert_close_as_torch("attention", attention(q, k, v), torchs, truth)


def test_no_queries_and_no_images() -> None:
    q, k, v = made(torch.float16, 1, 2, 0, 5, 40)
    assert attention(q, k, v).shape == (1, 2, 0, 40)
    q, k, v = made(torch.float16, 0, 2, 4, 5, 40)
    assert attention(q, k, v).shape == (0, 2, 4, 40)


def test_refuses() -> None:
    q, k, v = made(torch.float16, 1, 2, 4, 5, 40)
    with pytest.raises(ConfigError, match=r"^q, k, v: .* one type"):
        attention(q, k, v.float())
    with pytest.raises(ConfigError, match=r"^q, k, v: "):
        attention(q, k, v[:, :, :4])
    with pytest.raises(ConfigError, match=r"^k\.stride\(\): .* a last one of 1"):
        attention(q, k.transpose(2, 3).contiguous().transpose(2, 3), v)
    with pytest.raises(ConfigError, match=r"attention: there are no keys"):
        attention(q, k[:, :, :0], v[:, :, :0])
    with pytest.raises(ConfigError, match=r"attention: head dimension 39 is none of 40, 64"):
        attention(q[..., :39], k[..., :39], v[..., :39])
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"^scale: "):
            attention(q, k, v, scale)
