"""Layer normalisation and the gated activation, interpreted, against torch in float64."""

from __future__ import annotations

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
from sdengine.kernels.geglu import VARIANTS, geglu
from sdengine.kernels.layer_norm import LayerNormShape, add_layer_norm, layer_norm, variants
from sdengine.kernels.variants import Variant

__all__ = ["hardware_bfloat16"]
EPS = 1e-5

pytestmark = pytest.mark.usefixtures("hardware_bfloat16")


def made(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def normed(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 320), (3, 640), (7, 768), (1, 1), (1, 5), (2, 3, 1280)])
def test_layer_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight, bias = made(dtype, shape, shape[-1:], shape[-1:])
    truth = normed(x, weight, bias, torch.float64)
    for variant in variants(LayerNormShape(x.numel() // shape[-1], shape[-1]), "float32", None):
        actual = layer_norm(x, weight, bias, EPS, variant=variant)
        assert_close_as_torch("layer_norm", actual, normed(x, weight, bias, dtype), truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype: torch.dtype) -> None:
    x, residual, weight, bias = made(dtype, (2, 5, 320), (2, 5, 320), (320,), (320,))
    truth = x.double() + residual.double()
    out, total = add_layer_norm(x, residual, weight, bias, EPS)
    assert_close_as_torch("layer_norm", total, x + residual, truth)
    torchs = normed(x + residual, weight, bias, dtype)
    assert_close_as_torch("layer_norm", out, torchs, normed(truth, weight, bias, torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "deviation"), [(1000.0, 1.0), (0.0, 1e-4), (0.0, 1e4), (3, 0)])
def test_layer_norm_of_extreme_rows(dtype: torch.dtype, mean: float, deviation: float) -> None:
    x, weight, bias = made(dtype, (3, 320), (320,), (320,))
    x = (x.double() * deviation + mean).to(dtype)
    x[1, 7] *= 2
    truth = normed(x, weight, bias, torch.float64)
    actual = layer_norm(x, weight, bias, EPS)
    if dtype != torch.float32:
        assert_within_twice(actual, normed(x, weight, bias, dtype), truth)
        return
    # No fp32 sum holds a mean more exactly than this; eps keeps constant rows in bounds.
    ulp = torch.finfo(dtype).eps * abs(mean) / max(deviation, EPS**0.5)
    allowed = 2 * ulp + 1e-5 * truth.abs().max()
    assert (actual.double() - truth).abs().max() <= allowed


def gated(x: torch.Tensor) -> torch.Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("shape", [(2, 5, 96), (1, 2), (3, 2560), (5, 2050)])
def test_geglu(dtype: torch.dtype, variant: Variant, shape: tuple[int, ...]) -> None:
    (x,) = made(dtype, shape)
    actual = geglu(x, variant=variant)
    assert_close_as_torch("geglu", actual, gated(x), gated(x.double()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu_of_large_gates(dtype: torch.dtype) -> None:
    (x,) = made(dtype, (4, 64))
    x *= 30
    assert_within_twice(geglu(x), gated(x), gated(x.double()))


def test_empty() -> None:
    assert geglu(torch.zeros(0, 8)).shape == (0, 4)
    assert layer_norm(torch.zeros(0, 8), torch.ones(8), torch.ones(8), EPS).shape == (0, 8)


def test_refuses() -> None:
    for x in (torch.zeros(3, 5), torch.zeros(3, 0), torch.zeros(4, 6).T, torch.zeros(())):
        with pytest.raises(ConfigError, match=r"^x: .* \[\.\.\.,2N\]"):
            geglu(x)
    x, ones = torch.zeros(2, 6), torch.ones(6)
    with pytest.raises(ConfigError, match=r"^weight: .* expected \[6\] of type float32"):
        layer_norm(x, ones[:5], ones, EPS)
    with pytest.raises(ConfigError, match=r"^residual: "):
        add_layer_norm(x, x[:1], ones, ones, EPS)
    with pytest.raises(ConfigError, match=r"^x: "):
        layer_norm(torch.zeros(2, 0), ones[:0], ones[:0], EPS)
    with pytest.raises(ConfigError, match=r"layer_norm: rows of 8193; 1 to 8192"):
        layer_norm(torch.zeros(1, 8193), torch.ones(8193), torch.ones(8193), EPS)
