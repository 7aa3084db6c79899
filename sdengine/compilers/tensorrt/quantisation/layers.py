"""Layers in eight bits: the scales that one computes with, and how it then errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.native.projections import JOINT
from sdengine.backends.native.step import Step
from sdengine.compilers.native.sensitivity import LayerError, Product, error_alone
from sdengine.compilers.tensorrt.quantisation.formats import INT8, NumberFormat

Array = NDArray[Any]
# A layer is smoothed if that leaves less than this share of its error.
_WORTH_SMOOTHING = 0.9


@dataclass(frozen=True)
class LayerScales:
    """How one layer computes in eight bits.

    Args:
        scale: of what it reads.
        smoothing: factors [channels] on what it reads, whose inverses are in the weight; None for
            none.
        error: of the layer alone; see `LayerError`.
    """

    scale: float
    smoothing: Array | None = None
    error: float = 0.0


class Layer:
    """One layer, or projections of the same tokens, with the scales that it may have.

    Args:
        step: in fp32.
        number_format: that it may compute in.
        weights: of the network.
        largest: magnitude of what it reads, by channel.
    """

    def __init__(
        self,
        step: Step,
        number_format: NumberFormat,
        weights: Mapping[str, Array],
        largest: Array,
    ) -> None:
        self.step = step
        self.names = weight_names(step)
        self._format = number_format
        self._weights = weights
        plain = LayerScales(float(number_format.scale(largest.max())))
        self._errors = {"": 0.0}
        self._scales = {"": plain}
        if number_format is INT8:  # a float keeps its digits beside loud channels
            factors = _smoothing(largest, [weights[name] for name in self.names])
            scale = float(number_format.scale((largest * factors).max()))
            self._errors["smoothed"] = 0.0
            self._scales["smoothed"] = LayerScales(scale, factors)

    @property
    def _way(self) -> str:
        smoothed = self._errors.get("smoothed", np.inf)
        return "smoothed" if smoothed < _WORTH_SMOOTHING * self._errors[""] else ""

    def best(self) -> LayerScales:
        """Return the scales that are worth it."""
        return replace(self._scales[self._way], error=self._errors[self._way])

    def measure(self, product: Product) -> None:
        """Compare the layer with itself in fp32 on what it read."""
        for way, scales in self._scales.items():
            x = product.read["x"]
            weights = {n: np.asarray(self._weights[n], np.float32) for n in self.names}
            if scales.smoothing is not None:
                x = x * scales.smoothing
                weights = {n: smoothed(w, scales.smoothing) for n, w in weights.items()}
            x = self._format.rounded(x, np.float32(scales.scale))
            weights = {
                n: self._format.rounded_weight(np.asarray(w, np.float32))
                for n, w in weights.items()
            }
            given = replace(product, read={**product.read, "x": x})
            error = error_alone(self.step, given, {**self._weights, **weights})
            self._errors[way] = max(self._errors[way], error)

    def error(self) -> LayerError:
        """Return the largest error that was measured, of the better scales."""
        name, way = self._format.name, self._way
        method = f"{name} {way}".strip()
        return LayerError(self.step.output, self.step.name, name, method, self._errors[way])


def weight_names(step: Step) -> list[str]:
    """Return the weights of a layer: of projections of the same tokens one each."""
    return step.weights["weight"].split(JOINT)


def _smoothing(largest: Array, weights: Sequence[Array]) -> Array:
    """Return factors that make loud channels quieter and their weights larger, half of each.

    Source: "SmoothQuant" (Xiao et al. 2023), equation 4, with a strength of 0.5.
    """
    columns = [np.abs(np.asarray(w, np.float32)).max(axis=(0, *range(2, w.ndim))) for w in weights]
    of_weights = np.max(columns, axis=0)
    loud = (largest > 0) & (of_weights > 0)
    factors = np.ones_like(largest)
    factors[loud] = np.sqrt(of_weights[loud] / largest[loud])
    factors /= np.sqrt(factors.max() * factors.min())
    return factors.astype(np.float16).astype(np.float32)


def smoothed(weight: Array, factors: Array) -> Array:
    """Return a weight [out, in, ...] for what was multiplied by factors [in]."""
    spread = factors.reshape(-1, *(1,) * (weight.ndim - 2))
    return np.asarray(weight, np.float32) / spread
