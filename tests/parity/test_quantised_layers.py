"""Layers in eight bits: loud channels are smoothed or named, and errors are those of the layer."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.step import Step
from sdengine.compilers.native.sensitivity import Walk
from sdengine.compilers.tensorrt.quantisation.formats import FP8, INT8, NumberFormat
from sdengine.compilers.tensorrt.quantisation.layers import Layer, smoothed


def port(name: str) -> Port:
    return Port(name=name, value=name, rank=4, layout="image", dtype="float32", channels=64)


LAYER = Step(
    kind="linear", name="layer", inputs={"x": "x"}, output="y",
    weights={"weight": "w"}, channels=64,
)  # fmt: skip
GRAPH = Graph(version=1, network="n", inputs=(port("x"),), outputs=(port("y"),), steps=(LAYER,))


def measured(number_format: NumberFormat, x: np.ndarray, weight: np.ndarray) -> Layer:
    """Return the layer y = W x, scaled by x and measured on it; x is [1,64,h,w]."""
    walk = Walk(GRAPH, {"w": weight}, {"x": x.shape})
    (step,) = walk.products
    layer = Layer(step, number_format, {"w": weight}, np.abs(x).max(axis=(0, 2, 3)))
    for product in walk.run({"x": x}):
        layer.measure(product)
    return layer


def drawn(loudness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values with one channel that is so much louder, and a weight that does not use it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 64, 16, 16), dtype=np.float32)
    weight = rng.standard_normal((64, 64), dtype=np.float32) / 8
    x[:, 5] *= loudness
    weight[:, 5] /= loudness
    return x, weight


@pytest.mark.parametrize("number_format", [FP8, INT8], ids=["fp8", "int8"])
def test_the_error_is_that_of_rounded_factors(number_format: NumberFormat) -> None:
    x, weight = drawn(1.0)
    error = measured(number_format, x, weight).error()
    tokens = x[0].reshape(64, -1).T
    scale = number_format.scale(np.abs(x).max())
    low = number_format.rounded(tokens, scale) @ number_format.rounded_weight(weight).T
    truth = tokens @ weight.T
    wanted = np.sqrt(np.mean((low - truth) ** 2) / np.mean(truth**2))
    assert (error.precision, error.method) == (number_format.name, number_format.name)
    assert error.error == pytest.approx(wanted, rel=1e-3)
    assert not error.is_exact


def test_a_loud_channel_is_smoothed_in_int8() -> None:
    x, weight = drawn(300.0)
    layer = measured(INT8, x, weight)
    assert layer.error().method == "int8 smoothed" and not layer.error().is_exact
    factors = layer.best().smoothing
    assert factors is not None and factors[5] < 0.1 * np.delete(factors, 5).min()
    assert np.allclose(smoothed(weight, factors) * factors, weight)
    # What fp8 has beside one loud channel is its own digits.
    assert not measured(FP8, x, weight).error().is_exact


def test_what_smoothing_cannot_help_is_named() -> None:
    x, weight = drawn(1.0)
    # A pixel that is loud in all channels alike, and that the layer does not see.
    weight -= weight.mean(axis=1, keepdims=True)
    x[0, :, 0, 0] = 300.0
    error = measured(INT8, x, weight).error()
    assert error.is_exact and (error.precision, error.output) == ("int8", "y")
