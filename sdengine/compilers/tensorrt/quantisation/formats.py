"""Number formats of eight bits: how values and weights are scaled to them, rounded and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sdengine.compilers.tensorrt.gpus import known_gpus
from sdengine.errors import ConfigError

Array = NDArray[Any]
# Scales are stored in fp16; smaller ones would have hardly a digit.
_LEAST_SCALE = 2.0**-20


@dataclass(frozen=True)
class NumberFormat:
    """Eight bits that stand for a number, times a scale.

    Args:
        name: as `--precision` names it.
        onnx_type: in a graph.
        most: the largest number, which values beyond it become.
        reach: what the largest value of a calibration becomes. A float loses no digits by staying
            below `most`, and what is larger than anything that the calibration met still fits.
        capabilities: compute capabilities, times ten, whose tensor cores multiply it.
    """

    name: str
    onnx_type: int
    most: float
    reach: float
    capabilities: tuple[int, ...]

    def scale(self, largest: Array | float) -> Array:
        """Return what numbers are multiplied by: fp32 that fp16 holds, for each largest value."""
        wanted = np.maximum(np.asarray(largest, np.float32) / self.reach, _LEAST_SCALE)
        return np.asarray(wanted.astype(np.float16), np.float32)

    def weight_scale(self, weight: Array) -> Array:
        """Return a scale for each output channel [out] of a weight [out, ...]."""
        return self.scale(np.abs(weight.reshape(len(weight), -1)).max(axis=1))

    def stored(self, values: Array, scale: Array) -> Array:
        """Return the nearest numbers as bytes; `scale` must spread over the values."""
        numbers = np.clip(values / scale, -self.most, self.most).astype(np.float32)
        if self.onnx_type == onnx.TensorProto.INT8:
            whole: Array = np.rint(numbers).astype(np.int8).view(np.uint8)
            return whole
        bits: Array = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return bits

    def rounded(self, values: Array, scale: Array) -> Array:
        """Return what is left of fp32 values once they were stored and read again."""
        bits = self.stored(values, scale)
        if self.onnx_type == onnx.TensorProto.INT8:
            numbers = bits.view(np.int8)
        else:
            numbers = torch.from_numpy(bits).view(torch.float8_e4m3fn).float().numpy()
        return np.asarray(numbers * scale, np.float32)

    def rounded_weight(self, weight: Array) -> Array:
        """Return what is left of a weight [out, ...] with a scale for each output channel."""
        return self.rounded(weight, per_row(self.weight_scale(weight), weight))


def per_row(scale: Array, weight: Array) -> Array:
    """Return scales [out] in a shape that spreads over a weight [out, ...]."""
    return scale.reshape(-1, *(1,) * (weight.ndim - 1))


# E4M3: four bits of exponent, three of mantissa, no infinity (Micikevicius et al. 2022, "FP8
# Formats for Deep Learning"). 7.5 and 8.x before 8.9 have no instructions for it.
FP8 = NumberFormat("fp8", onnx.TensorProto.FLOAT8E4M3FN, 448.0, 224.0, (89, 90, 100, 103, 120, 121))
INT8 = NumberFormat(
    "int8", onnx.TensorProto.INT8, 127.0, 127.0, (75, 80, 86, 89, 90, 100, 103, 120, 121)
)
FORMATS: Mapping[str, NumberFormat] = MappingProxyType({f.name: f for f in (FP8, INT8)})


def check_format(number_format: NumberFormat, capabilities: Iterable[int]) -> None:
    """Refuse GPUs whose tensor cores do not multiply a format.

    Args:
        number_format: of the eight bits.
        capabilities: compute capabilities that are built for, times ten.

    Raises:
        ConfigError: naming the first such GPU, and those that do.
    """
    for cc in capabilities:
        if cc not in number_format.capabilities:
            raise ConfigError.for_field(
                "precision",
                number_format.name,
                f"fp16 or int8 for {known_gpus([cc])}",
                f"GPUs that compute in {number_format.name}: "
                f"{known_gpus(number_format.capabilities)}.",
            )
