"""Operations of the native CPU runtime but convolutions, against torch in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import native_ops as ops
from support.native_op_checks import DTYPES, ISAS, RULE, check, draw, image, rms, rows, wide
from tolerances import assert_close

from sdengine.backends.native.packing import interleave_gated
from sdengine.errors import BundleError
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]


@pytest.mark.parametrize(
    ("pixels", "in_features", "out_features"),
    [(1, 8, 8), (13, 64, 33), (35, 40, 70), (130, 320, 96), (7, 3, 5)],
)
def test_linear(isa: str, dtype: str, pixels: int, in_features: int, out_features: int) -> None:
    x = draw(0, 2, 1, pixels, in_features, dtype=dtype)
    weight, bias = draw(1, out_features, in_features, dtype=dtype), draw(2, out_features)
    found = ops.linear(x, weight, bias, dtype=dtype).run(isa=isa)
    truth = F.linear(wide(x), wide(weight), wide(bias))
    low = [wide(v).bfloat16() for v in (x, weight, bias)]
    check("native linear", dtype, found, truth, F.linear(*low))


@pytest.mark.parametrize("activation", ["silu", "gelu", "quick_gelu", "relu", "geglu"])
def test_linear_with_what_follows(isa: str, dtype: str, activation: str) -> None:
    x, weight = draw(0, 2, 3, 5, 40, dtype=dtype), draw(1, 96, 40, dtype=dtype, scale=0.2)
    bias = draw(2, 96)
    out_features = 48 if activation == "geglu" else 96
    residual = draw(3, 2, 3, 5, out_features, dtype=dtype)
    row = None if activation == "geglu" else draw(4, 2, 1, 1, 96, dtype=dtype)
    packed = [weight, bias]
    if activation == "geglu":
        packed = [interleave_gated(weight), interleave_gated(bias)]
    found = ops.linear(
        x, *packed, dtype=dtype, activation=activation, residual=residual, per_image=row
    ).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        sums = F.linear(*(wide(v).to(kind) for v in (x, weight, bias)))
        if row is not None:
            sums = sums + wide(row).to(kind)
        if activation == "geglu":
            value, gate = sums.chunk(2, dim=-1)
            return value * F.gelu(gate) + wide(residual).to(kind)
        if activation == "quick_gelu":
            return sums * torch.sigmoid(1.702 * sums) + wide(residual).to(kind)
        activated: torch.Tensor = getattr(F, activation)(sums)
        return activated + wide(residual).to(kind)

    check("native linear", dtype, found, compute(torch.float64), compute(torch.bfloat16))


@pytest.mark.parametrize(
    "name",
    [
        "silu", "gelu", "relu", "leaky_relu", "rrelu", "relu6", "elu", "selu", "hardsigmoid",
        "hardswish", "hardtanh", "tanh", "tanhshrink", "sigmoid", "softplus", "logsigmoid", "mish",
        "softsign", "softshrink", "hardshrink",
    ],
)  # fmt: skip
def test_activation(isa: str, dtype: str, name: str) -> None:
    x = draw(0, 1, 3, 11, 37, dtype=dtype, scale=3.0)
    x[0, 0, 0, :8] = [0.0, -0.0, 0.5, -0.5, 100.0, -100.0, 1e-3, -1e-3]
    x = to_float32(to_bf16_bits(x)) if dtype == "bfloat16" else x
    found = ops.activation(x, name, dtype=dtype).run(isa=isa)
    compute = getattr(F, name)
    check("native activation", dtype, found, compute(wide(x)), compute(wide(x).bfloat16()))
    x[0, 1, 2, 3] = np.nan
    assert np.isnan(ops.activation(x, name, dtype=dtype).run(isa=isa)[0, 1, 2, 3])


def test_scaled_sum(isa: str, dtype: str) -> None:
    a, b = draw(0, 2, 3, 5, 40, dtype=dtype), draw(1, 2, 3, 5, 40, dtype=dtype)
    for scale in (1.0, -0.3):
        found = ops.add(a, b, scale, dtype=dtype).run(isa=isa)
        truth = wide(a) + np.float32(scale) * wide(b)
        check("native activation", dtype, found, truth, truth.bfloat16())
    with pytest.raises(BundleError, match="cannot have 'tanh', which is an operation of its own"):
        ops.linear(a, draw(2, 8, 40), dtype=dtype, activation="tanh").run(isa=isa)


def test_linear_writes_and_reads_slices(isa: str, dtype: str) -> None:
    x, weight = draw(0, 1, 1, 9, 32, dtype=dtype), draw(1, 40, 32, dtype=dtype)
    found = ops.linear(x, weight, dtype=dtype, stride=48).run(isa=isa)
    truth = F.linear(wide(x), wide(weight))
    check("native linear", dtype, found, truth, truth.bfloat16())


def test_linear_in_eight_bits(isa: str, dtype: str) -> None:
    x, weight = draw(0, 2, 1, 50, 100, dtype=dtype), draw(1, 70, 100)
    x[0, 0, 3] *= 1000.0  # every row has its own scale
    bias = draw(2, 70)
    found = ops.linear(x, weight, bias, dtype=dtype, kind="int8").run(isa=isa)
    truth = F.linear(wide(x), wide(weight), wide(bias))
    quiet = np.delete(np.arange(100), 3)
    assert_close(
        "native linear", "int8", found.reshape(100, 70)[quiet], truth.reshape(100, 70)[quiet]
    )


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 8), (5, 7, 40), (20, 30, 70)])
def test_group_norm_in_two_halves(
    isa: str, dtype: str, silu: bool, height: int, width: int, channels: int
) -> None:
    """Moments, and scales and shifts that follow from them, make the same as a group norm."""
    x = draw(0, 1, height, width, channels, dtype=dtype) + np.float32(2)
    if dtype == "bfloat16":
        x = to_float32(to_bf16_bits(x))
    weight, bias = draw(1, channels), draw(2, channels)
    scaled = ops.affine(x, weight[None], bias[None], dtype=dtype, silu=silu)
    found = scaled.network(isa=isa).moments(scaled.record["maps"]["x"])
    pixels = x.reshape(-1, channels).astype(np.float64)
    np.testing.assert_allclose(found[0], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[1], pixels.var(0) * len(pixels), rtol=1e-4, atol=1e-5)

    groups = channels // 2
    mean = found[0].reshape(groups, 2).mean(1)
    between = (found[0].reshape(groups, 2) - mean[:, None]) ** 2 * len(pixels)
    variance = (found[1].reshape(groups, 2) + between).sum(1) / (2 * len(pixels))
    scale = weight * np.repeat((variance + 1e-5) ** -0.5, 2)
    shift = bias - np.repeat(mean, 2) * scale
    halves = ops.affine(x, scale[None], shift[None], dtype=dtype, silu=silu).run(isa=isa)
    whole = ops.group_norm(x, weight, bias, groups, dtype=dtype, silu=silu).run(isa=isa)
    check("native norm", dtype, halves, wide(whole), wide(whole).bfloat16())


def test_moments_of_what_is_no_image(isa: str, dtype: str) -> None:
    op = ops.affine(draw(0, 2, 3, 4, 8), np.ones((2, 8)), np.ones((2, 8)), dtype=dtype)
    network, x = op.network(isa=isa), op.record["maps"]["x"]
    rows = {**x, "images": 1, "height": 1, "offset": x["offset"] + 8 * network.view(x).itemsize}
    np.testing.assert_allclose(  # some rows of it
        network.moments(rows)[0],
        to_float32(network.view(rows)).reshape(-1, 8).mean(0, dtype=np.float64),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    for change in ({}, {"images": 1, "offset": 1 << 20}, {"images": 1, "type": "int64"}):
        with pytest.raises(BundleError):
            network.moments({**x, **change})


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "channels", "groups"),
    [(1, 1, 8, 2), (5, 7, 40, 8), (30, 20, 96, 32), (3, 3, 70, 1)],
)
def test_group_norm(
    isa: str, dtype: str, silu: bool, height: int, width: int, channels: int, groups: int
) -> None:
    x = draw(0, 2, height, width, channels, dtype=dtype)
    weight, bias = draw(1, channels), draw(2, channels)
    found = ops.group_norm(x, weight, bias, groups, dtype=dtype, silu=silu).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        normed = F.group_norm(image(x).to(kind), groups, wide(weight).to(kind), wide(bias).to(kind))
        return rows(F.silu(normed) if silu else normed)

    check("native norm", dtype, found, compute(torch.float64), compute(torch.bfloat16))


def test_group_norm_far_from_zero(isa: str, dtype: str) -> None:
    far = 100.0 if dtype == "bfloat16" else 1e4
    x = draw(0, 1, 20, 20, 32, dtype="float32") + far
    if dtype == "bfloat16":
        x = to_float32(to_bf16_bits(x))
    ones, none = np.ones(32, np.float32), np.zeros(32, np.float32)
    found = ops.group_norm(x, ones, none, 4, dtype=dtype).run(isa=isa)
    truth = rows(F.group_norm(image(x), 4))
    limit = 4e-3 if dtype == "bfloat16" else 2e-3  # 1e4 has 1e-3 behind it in fp32
    assert rms(found, truth) <= limit


@pytest.mark.parametrize("channels", [8, 40, 128, 333])
def test_layer_norm(isa: str, dtype: str, channels: int) -> None:
    x = draw(0, 2, 1, 13, channels, dtype=dtype) + np.float32(3)
    if dtype == "bfloat16":
        x = to_float32(to_bf16_bits(x))
    weight, bias = draw(1, channels), draw(2, channels)
    found = ops.layer_norm(x, weight, bias, dtype=dtype).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        return F.layer_norm(
            wide(x).to(kind), (channels,), wide(weight).to(kind), wide(bias).to(kind)
        )

    check("native norm", dtype, found, compute(torch.float64), compute(torch.bfloat16))


@pytest.mark.parametrize(
    ("heads", "dim", "queries", "keys", "causal"),
    [
        (1, 2, 1, 1, False),
        (3, 40, 77, 77, True),
        (2, 40, 70, 301, False),
        (2, 64, 33, 5, False),
        (1, 160, 32, 128, False),
        (1, 512, 40, 129, False),
        (2, 80, 130, 130, True),
    ],
)
def test_attention(
    isa: str, dtype: str, heads: int, dim: int, queries: int, keys: int, causal: bool
) -> None:
    shapes = (queries, keys, keys)
    q, k, v = (draw(i, 2, 1, n, heads * dim, dtype=dtype) for i, n in enumerate(shapes))
    found = ops.attention(q, k, v, heads, dtype=dtype, causal=causal).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        query, key, value = (
            wide(values).to(kind).reshape(2, -1, heads, dim).transpose(1, 2) for values in (q, k, v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return mixed.transpose(1, 2).reshape(2, 1, queries, heads * dim)

    check("native attention", dtype, found, compute(torch.float64), compute(torch.bfloat16))


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_attention_of_flat_and_of_sharp_scores(isa: str, dtype: str, scale: float) -> None:
    q, k, v = (draw(i, 1, 1, 96, 64, dtype=dtype) for i in range(3))
    found = ops.attention(q, k, v, 1, dtype=dtype, scale=scale).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        query, key, value = (wide(x).to(kind).reshape(1, 1, 96, 64) for x in (q, k, v))
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    truth = compute(torch.float64)
    limit = 2e-5 if dtype == "float32" else RULE * rms(compute(torch.bfloat16).double(), truth)
    assert rms(found, truth) <= limit


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_results_do_not_depend_on_the_threads(isa: str, dtype: str, threads: int) -> None:
    x = draw(0, 2, 20, 20, 64, dtype=dtype)
    kind = "int16" if dtype == "bfloat16" else "float32"
    weight, vector = draw(1, 96, 64, 3, 3), draw(2, 64)
    tokens = x.reshape(2, 1, 400, 64)
    for operation in (
        ops.linear(tokens, weight[:, :, 0, 0], dtype=dtype),
        ops.linear(tokens, weight[:, :, 0, 0], dtype=dtype, kind="int8"),
        ops.conv(x, weight, dtype=dtype, stride=2),
        ops.winograd(x, weight, dtype=dtype, kind=kind),
        ops.group_norm(x, vector, vector, 8, dtype=dtype, silu=True),
        ops.layer_norm(x, vector, vector, dtype=dtype),
        ops.attention(tokens, tokens, tokens, 2, dtype=dtype),
    ):
        alone = operation.run(isa=isa, threads=1)
        assert np.array_equal(alone, operation.run(isa=isa, threads=threads))
