"""Convolutions of the native CPU runtime against torch in fp64, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import native_ops as ops
from support.native_op_checks import DTYPES, ISAS, RULE, check, draw, image, rms, rows, wide

from sdengine.errors import BundleError
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES)]


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
