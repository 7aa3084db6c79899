"""Every operation of the native CPU runtime against torch in fp64, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import native_ops as ops
from tolerances import assert_close

from sdengine import _native
from sdengine.backends.native.packing import interleave_gated
from sdengine.errors import BundleError
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

ISAS = _native.instruction_sets()
DTYPES = ("float32", "bfloat16")
# Of torch's own error at the same precision, at most so much.
RULE = 2.0

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]


def draw(seed: int, *shape: int, dtype: str = "float32", scale: float = 1.0) -> Any:
    """Return normal numbers that the data type holds exactly."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * scale
    return to_float32(to_bf16_bits(values)) if dtype == "bfloat16" else values


def wide(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))


def image(values: Any) -> torch.Tensor:
    """[n,h,w,c] as torch's [n,c,h,w]."""
    return wide(values).permute(0, 3, 1, 2)


def rows(values: torch.Tensor) -> torch.Tensor:
    return values.permute(0, 2, 3, 1)


def rms(found: Any, truth: torch.Tensor) -> float:
    error = wide(found) - truth
    return float((error.square().mean() / truth.square().mean()).sqrt())


def check(op: str, dtype: str, found: Any, truth: torch.Tensor, torchs: torch.Tensor) -> None:
    """Compare with the truth, and with torch's own result in bf16."""
    assert_close(op, dtype, found, truth)
    if dtype == "bfloat16":
        assert torchs.dtype == torch.bfloat16
        assert rms(found, truth) <= RULE * rms(torchs.double().numpy(), truth)


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


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "doubled", "channels", "out_channels"),
    [
        (3, 1, 1, False, 4, 320),
        (3, 1, 1, False, 64, 4),
        (3, 2, 1, False, 40, 70),
        (3, 1, 1, True, 40, 33),
        (1, 1, 0, False, 9, 16),
        (1, 2, 0, False, 8, 8),
        (5, 1, 2, False, 3, 8),
    ],
)
def test_conv(
    isa: str,
    dtype: str,
    kernel: int,
    stride: int,
    padding: int,
    doubled: bool,
    channels: int,
    out_channels: int,
) -> None:
    x = draw(0, 2, 6, 9, channels, dtype=dtype)
    weight, bias = (
        draw(1, out_channels, channels, kernel, kernel, dtype=dtype),
        draw(2, out_channels),
    )
    found = ops.conv(
        x, weight, bias, dtype=dtype, stride=stride, padding=padding, upsample=doubled
    ).run(isa=isa)

    def compute(kind: torch.dtype) -> torch.Tensor:
        source = image(x).to(kind)
        if doubled:
            source = F.interpolate(source, scale_factor=2.0)
        return rows(F.conv2d(source, wide(weight).to(kind), wide(bias).to(kind), stride, padding))

    check("native conv", dtype, found, compute(torch.float64), compute(torch.bfloat16))


def test_conv_with_zeros_behind_only(isa: str, dtype: str) -> None:
    x, weight = draw(0, 2, 6, 8, 16, dtype=dtype), draw(1, 16, 16, 3, 3, dtype=dtype)
    found = ops.conv(x, weight, dtype=dtype, stride=2, padding=0, out_size=(3, 4)).run(isa=isa)
    truth = rows(F.conv2d(F.pad(image(x), (0, 1, 0, 1)), wide(weight), stride=2))
    check("native conv", dtype, found, truth, truth.bfloat16())


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    ("height", "width", "channels", "out_channels", "doubled"),
    [(8, 8, 32, 32, False), (5, 7, 40, 70, False), (6, 3, 33, 32, True), (40, 36, 64, 64, False)],
)
def test_winograd(
    isa: str,
    dtype: str,
    tile: int,
    height: int,
    width: int,
    channels: int,
    out_channels: int,
    doubled: bool,
) -> None:
    x = draw(0, 2, height, width, channels, dtype=dtype)
    weight = draw(1, out_channels, channels, 3, 3, dtype=dtype, scale=(9 * channels) ** -0.5)
    bias, row = draw(2, out_channels), draw(3, 2, 1, 1, out_channels, dtype=dtype)
    factor = 2 if doubled else 1
    residual = draw(4, 2, height * factor, width * factor, out_channels, dtype=dtype)
    kind = "int16" if dtype == "bfloat16" else "float32"
    found = ops.winograd(
        x, weight, bias, dtype=dtype, kind=kind, tile=tile, upsample=doubled,
        residual=residual, per_image=row,
    ).run(isa=isa)  # fmt: skip

    def compute(to: torch.dtype) -> torch.Tensor:
        source = image(x).to(to)
        if doubled:
            source = F.interpolate(source, scale_factor=2.0)
        sums = rows(F.conv2d(source, wide(weight).to(to), wide(bias).to(to), padding=1))
        return sums + wide(row).to(to) + wide(residual).to(to)

    check("native conv", dtype, found, compute(torch.float64), compute(torch.bfloat16))


def around(x: Any, wraps: str, margin: int, doubled: bool = False, behind: bool = False) -> Any:
    """Return [n,h,w,c] doubled, then with wrapped margins on some axes and zeros on the others."""
    if doubled:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    for axis, name in ((1, "y"), (2, "x")):
        widths = [(0, 0)] * 4
        widths[axis] = (0, margin) if behind else (margin, margin)
        x = np.pad(x, widths, mode="wrap" if name in wraps else "constant")
    return x


@pytest.mark.parametrize("wraps", ["x", "y", "xy"])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride", "doubled", "channels"),
    [
        (6, 9, 3, 1, False, 4),
        (1, 1, 3, 1, False, 8),
        (6, 8, 3, 2, False, 40),
        (5, 3, 3, 1, True, 12),
        (3, 7, 5, 1, False, 3),
        (2, 5, 7, 1, True, 5),
    ],
)
def test_conv_whose_edges_meet(
    isa: str,
    dtype: str,
    wraps: str,
    height: int,
    width: int,
    kernel: int,
    stride: int,
    doubled: bool,
    channels: int,
) -> None:
    x, weight = (
        draw(0, 2, height, width, channels, dtype=dtype),
        draw(1, 34, channels, kernel, kernel, dtype=dtype),
    )
    padding = kernel // 2
    found = ops.conv(
        x, weight, dtype=dtype, stride=stride, padding=padding, upsample=doubled, wraps=wraps
    ).run(isa=isa)
    source = image(around(x, wraps, padding, doubled))
    truth, low = (
        rows(F.conv2d(source.to(kind), wide(weight).to(kind), stride=stride))
        for kind in (torch.float64, torch.bfloat16)
    )
    check("native conv", dtype, found, truth, low)


@pytest.mark.parametrize("wraps", ["x", "y", "xy"])
def test_conv_with_padding_behind_whose_edges_meet(isa: str, dtype: str, wraps: str) -> None:
    x, weight = draw(0, 2, 6, 8, 16, dtype=dtype), draw(1, 16, 16, 3, 3, dtype=dtype)
    found = ops.conv(x, weight, dtype=dtype, stride=2, padding=0, out_size=(3, 4), wraps=wraps).run(
        isa=isa
    )
    truth = rows(F.conv2d(image(around(x, wraps, 1, behind=True)), wide(weight), stride=2))
    check("native conv", dtype, found, truth, truth.bfloat16())


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("wraps", ["x", "y", "xy"])
@pytest.mark.parametrize(
    ("height", "width", "doubled"),
    [(8, 8, False), (5, 7, False), (6, 3, True), (1, 2, False), (1, 1, True), (20, 36, False)],
)
def test_winograd_whose_edges_meet(
    isa: str, dtype: str, tile: int, wraps: str, height: int, width: int, doubled: bool
) -> None:
    x = draw(0, 2, height, width, 33, dtype=dtype)
    weight, bias = draw(1, 40, 33, 3, 3, dtype=dtype, scale=1 / 17), draw(2, 40)
    kind = "int16" if dtype == "bfloat16" else "float32"
    options: dict[str, Any] = {"dtype": dtype, "kind": kind, "tile": tile, "upsample": doubled}
    found = ops.winograd(x, weight, bias, **options, wraps=wraps).run(isa=isa)
    source = image(around(x, wraps, 1, doubled))
    truth, low = (
        rows(F.conv2d(source.to(to), wide(weight).to(to), wide(bias).to(to)))
        for to in (torch.float64, torch.bfloat16)
    )
    check("native conv", dtype, found, truth, low)


def test_edges_that_meet_are_named_by_their_axes(isa: str, dtype: str) -> None:
    x, weight = draw(0, 1, 4, 4, 32, dtype=dtype), draw(1, 32, 32, 3, 3)
    for made in (ops.conv, ops.winograd):
        kind = "int16" if dtype == "bfloat16" else "float32"
        operation = made(x, weight, dtype=dtype, kind=kind, wraps="yx")
        with pytest.raises(BundleError, match="has no 'wraps' that is known"):
            operation.run(isa=isa)


@pytest.mark.parametrize("loud", ["channel", "pixel", "everything"])
def test_winograd_in_16_bits_bears_outliers(isa: str, dtype: str, loud: str) -> None:
    # Against what the same arithmetic would be without rounding the result to the map's type.
    x = draw(0, 1, 16, 16, 64, dtype=dtype)
    weight = draw(1, 64, 64, 3, 3, scale=1 / 24)
    if loud == "channel":
        x[..., 5] *= 100.0
    elif loud == "pixel":
        x[:, 3, 4] *= 1000.0
    else:
        x *= 1e6
    if dtype == "bfloat16":
        x = to_float32(to_bf16_bits(x))
    found = ops.winograd(x, weight, dtype=dtype, kind="int16").run(isa=isa)
    truth = rows(F.conv2d(image(x), wide(weight), padding=1))
    plain = rows(F.conv2d(image(x).bfloat16(), wide(weight).bfloat16(), padding=1))
    assert rms(found, truth) <= RULE * rms(plain.double().numpy(), truth)


def test_winograd_passes_on_what_is_not_finite(isa: str, dtype: str) -> None:
    x, weight = draw(0, 1, 8, 8, 32, dtype=dtype), draw(1, 32, 32, 3, 3)
    x[0, 1, 1, 0] = np.nan
    found = ops.winograd(x, weight, dtype=dtype, kind="int16").run(isa=isa)
    assert np.isnan(found[0, 0:3, 0:3]).all()
    assert np.isfinite(found[0, 5:, 5:]).all()


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_with_relu(isa: str, dtype: str, tile: int) -> None:
    x = draw(0, 1, 7, 6, 32, dtype=dtype)
    weight, bias = draw(1, 40, 32, 3, 3, dtype=dtype, scale=0.06), draw(2, 40)
    kind = "int16" if dtype == "bfloat16" else "float32"
    options: dict[str, Any] = {"dtype": dtype, "kind": kind, "tile": tile}
    plain = ops.winograd(x, weight, bias, **options).run(isa=isa)
    found = ops.winograd(x, weight, bias, **options, activation="relu").run(isa=isa)
    assert plain.min() < 0
    np.testing.assert_array_equal(found, np.maximum(plain, 0))
    x[0, 3, 3] = np.nan
    assert np.isnan(ops.winograd(x, weight, **options, activation="relu").run(isa=isa)).any()


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
