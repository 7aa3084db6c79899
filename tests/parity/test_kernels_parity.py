"""The kernels' references against torch's own operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from sdengine.kernels.reference import attention, geglu, group_norm_silu, layer_norm


def made(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("S", "T", "D", "E"), [(64, 64, 40, 40), (256, 77, 64, 64), (1, 1, 8, 8), (5, 9, 16, 3)]
)
@pytest.mark.parametrize("scale", [None, 0.3, 1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(S: int, T: int, D: int, E: int, scale: float | None, causal: bool) -> None:
    q, k, v = made((2, 3, S, D), (2, 3, T, D), (2, 3, T, E))
    expected = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), scale=scale, is_causal=causal
    )
    assert_close("attention", "float32", attention(q, k, v, scale, causal), expected)


def test_attention_stays_finite_at_large_scores() -> None:
    q, k, v = made((1, 1, 8, 16), (1, 1, 8, 16), (1, 1, 8, 16))
    q, k = q * 100, k * 100
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert_close("attention", "float32", attention(q, k, v), expected)


@pytest.mark.parametrize("shape", [(2, 32, 9, 7), (1, 64, 1, 1), (3, 320, 16, 16), (2, 8, 5)])
@pytest.mark.parametrize("num_groups", [1, 8])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_silu(shape: tuple[int, ...], num_groups: int, silu: bool) -> None:
    x, weight, bias = made(shape, shape[1:2], shape[1:2], seed=1)
    x = x * 3 + 50  # far from zero, where a variance from squares would lose its digits
    expected = F.group_norm(x.double(), num_groups, weight.double(), bias.double(), 1e-5)
    if silu:
        expected = F.silu(expected)
    actual = group_norm_silu(x, weight, bias, num_groups, 1e-5, silu)
    assert_close("group_norm_silu", "float32", actual, expected)


def test_group_norm_silu_adds_before() -> None:
    x, residual, embedding, weight, bias = made((2, 8, 5, 3), (2, 8, 5, 3), (2, 8), (8,), (8,))
    total = x.double() + residual.double() + embedding.double()[:, :, None, None]
    expected = F.silu(F.group_norm(total, 2, weight.double(), bias.double(), 1e-5))
    actual = group_norm_silu(x, weight, bias, 2, 1e-5, residual=residual, time_embedding=embedding)
    assert_close("group_norm_silu", "float32", actual, expected)


@pytest.mark.parametrize("adds", [False, True])
def test_layer_norm(adds: bool) -> None:
    x, residual, weight, bias = made((2, 5, 320), (2, 5, 320), (320,), (320,))
    total = x.double() + residual.double() if adds else x.double()
    expected = F.layer_norm(total, (320,), weight.double(), bias.double(), 1e-5)
    actual = layer_norm(x, weight, bias, 1e-5, residual if adds else None)
    assert_close("layer_norm", "float32", actual, expected)


def test_geglu() -> None:
    (x,) = made((3, 7, 48))
    value, gate = x.double().chunk(2, dim=-1)
    assert_close("geglu", "float32", geglu(x), value * F.gelu(gate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_arguments_are_computed_in_fp32(dtype: torch.dtype) -> None:
    q, k, v = (tensor.to(dtype) for tensor in made((1, 2, 16, 8), (1, 2, 16, 8), (1, 2, 16, 8)))
    assert torch.equal(attention(q, k, v), attention(q.float(), k.float(), v.float()))
    x, weight, bias = (tensor.to(dtype) for tensor in made((1, 8, 4, 4), (8,), (8,)))
    expected = group_norm_silu(x.float(), weight.float(), bias.float(), 2, 1e-5)
    assert torch.equal(group_norm_silu(x, weight, bias, 2, 1e-5), expected)
