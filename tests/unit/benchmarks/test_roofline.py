"""The roofline model: what it counts is what the architectures hold."""

from __future__ import annotations

import pytest

from sdengine.benchmarks.roofline import H100, Kernel, list_kernels, summary
from sdengine.models.configs import SD15, SDXL, ModelArchitecture


@pytest.mark.parametrize(
    ("model", "size", "tflop"), [(SD15, 512, 1.61), (SDXL, 1024, 13.5)], ids=["sd15", "sdxl"]
)
def test_arithmetic_of_the_full_networks(model: ModelArchitecture, size: int, tflop: float) -> None:
    """Against sums over the layers by hand: design figures of the two architectures."""
    plain = summary(list_kernels(model.unet, size, fused=False), H100, fused=False)
    fused = summary(list_kernels(model.unet, size, fused=True), H100, fused=True)
    assert sum(plain["tflop"].values()) == pytest.approx(tflop, rel=0.01)
    assert fused["tflop"] == plain["tflop"]
    assert fused["kernels"] < plain["kernels"]
    assert fused["gigabytes"] < plain["gigabytes"]
    assert plain["least_ms"] < fused["model_ms"] < plain["model_ms"]


def test_half_the_rows_have_half_the_arithmetic() -> None:
    one, two = (list_kernels(SD15.unet, 512, fused=True, rows=rows) for rows in (1, 2))
    assert 2 * sum(k.flops for k in one) == pytest.approx(sum(k.flops for k in two), rel=1e-3)
    weights = 2 * 859_520_964  # bytes that both read, whatever their rows
    moved_one, moved_two = (
        sum(k.read + k.written for k in kernels if k.kind in ("convolution", "product"))
        for kernels in (one, two)
    )
    assert 2 * moved_one - moved_two == pytest.approx(weights, rel=0.01)


def test_attention_of_each_transformer_block_is_one_kernel() -> None:
    for model, size, blocks in ((SD15, 512, 16), (SDXL, 1024, 70)):
        kernels = list_kernels(model.unet, size, fused=True)
        assert sum(k.kind == "attention" for k in kernels) == 2 * blocks


def test_a_kernel_takes_the_longer_of_arithmetic_and_bytes() -> None:
    full_wave = H100.processors
    busy = Kernel("product", "product", 10**12, 10**6, 10**6, full_wave)
    assert busy.seconds(H100, 0.0) == pytest.approx(10**12 / (H100.flops * 0.72))
    half = Kernel("product", "product", 10**12, 10**6, 10**6, full_wave + 1)
    assert half.seconds(H100, 0.0) == pytest.approx(
        2 * full_wave / (full_wave + 1) * busy.seconds(H100, 0.0)
    )
    moving = Kernel("add", "pointwise", 0, 10**9, 10**9)
    assert moving.seconds(H100, 0.0) == pytest.approx(2 * 10**9 / H100.memory)
    assert moving.seconds(H100, 1e-6) == pytest.approx(2 * 10**9 / H100.memory + 1e-6)
