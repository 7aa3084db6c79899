"""The Triton kernels run on a GPU, every variant, against fp32 and torch's own error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from sdengine.kernels import attention, geglu, group_norm, layer_norm, reference

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16]


def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def made(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes]


def assert_close_as_torch(
    op: str, actual: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor
) -> None:
    """Accept an error within the row of TOLERANCES and within twice torch's own."""
    assert_close(op, str(actual.dtype).removeprefix("torch."), actual.cpu(), truth.cpu())
    ours, theirs = ((x.double() - truth).square().mean().sqrt() for x in (actual, torchs))
    assert float(ours) <= 2 * float(theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", attention.HEAD_DIMS)
@pytest.mark.parametrize(("queries", "keys"), [(4096, 4096), (1000, 77), (77, 231)])
def test_attention(
    queries: int, keys: int, head_dim: int, causal: bool, dtype: torch.dtype
) -> None:
    keys = queries if causal else keys
    q, k, v = made((2, 3, queries, head_dim), *((2, 3, keys, head_dim),) * 2, dtype=dtype)
    truth = reference.attention(q.double(), k.double(), v.double(), None, causal)
    torchs = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    shape = attention.AttentionShape(2, 3, queries, keys, head_dim, causal)
    for variant in attention.variants(shape, str(dtype)[6:], capability()):
        actual = attention.attention(q, k, v, causal=causal, variant=variant)
        assert_close_as_torch("attention", actual, torchs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 320, 64, 64), (2, 1280, 8, 8), (1, 128, 512, 512)])
def test_group_norm_silu(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    x, weight, bias = made(shape, shape[1:2], shape[1:2], dtype=dtype)
    x = x * 3 + 5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    arguments = (x.double(), weight.double(), bias.double())
    truth = reference.group_norm_silu(*arguments, 32, 1e-5)
    torchs = F.silu(F.group_norm(x, 32, weight, bias, 1e-5))
    sizes = group_norm.GroupNormShape(shape[0], shape[1], shape[2] * shape[3], 32, channels_last)
    for variant in group_norm.variants(sizes, str(dtype)[6:], capability()):
        actual = group_norm.group_norm_silu(x, weight, bias, 32, 1e-5, variant=variant)
        assert_close_as_torch("group_norm_silu", actual, torchs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(dtype: torch.dtype) -> None:
    x, weight, bias = made((4096, 640), (640,), (640,), dtype=dtype)
    truth = F.layer_norm(x.double(), (640,), weight.double(), bias.double(), 1e-5)
    torchs = F.layer_norm(x, (640,), weight, bias, 1e-5)
    actual = layer_norm.layer_norm(x, weight, bias, 1e-5)
    assert_close_as_torch("layer_norm", actual, torchs, truth)
    value, gate = x.chunk(2, dim=-1)
    truth = value.double() * F.gelu(gate.double())
    assert_close_as_torch("geglu", geglu.geglu(x), value * F.gelu(gate), truth)
