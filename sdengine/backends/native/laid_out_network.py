"""Network laid out in memory of its own: a program's kernels, its constants and its maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.layout import Program
from sdengine.storage.tensor_file import to_bf16_bits

Array = NDArray[Any]


class LaidOutNetwork:
    """A program that can run.

    Args:
        program: a network's operations and where its maps lie.
        weights: packed tensors by name.
        threads: that run it.
        place: whose pool of threads they are of; who runs it is bound to the same processors.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Array], threads: int, place: str = ""
    ) -> None:
        self._weights = weights
        self._read = {name for record in program.records for name in record["weights"].values()}
        read = {name: weights[name] for name in self._read if name in weights}
        self.network = _native.Network(program.records, read, threads, chosen_isa(), place)
        self._constants = program.constants
        for one, name in program.constants:
            self._fill(self.network.view(one), weights[name])
        self.inputs = {name: self.network.view(one) for name, one in program.inputs.items()}
        self.outputs = {
            name: self.network.view(one).reshape(shape)
            for name, (one, shape) in program.outputs.items()
        }

    def bind(self, weights: Mapping[str, Array]) -> None:
        """Compute with other weights from now on; its maps stay where they are."""
        if weights is self._weights:
            return
        before = self._weights
        other = {name: weights[name] for name in self._read if weights[name] is not before[name]}
        if other:
            self.network.rebind(other)
        self._weights = weights
        for one, name in self._constants:
            if weights[name] is not before[name]:
                self._fill(self.network.view(one), weights[name])

    def write(self, inputs: Mapping[str, Array]) -> None:
        """Copy inputs, each of as many values as its map, to where the network reads them."""
        for name, target in self.inputs.items():
            np.copyto(target, inputs[name].reshape(target.shape), casting="same_kind")

    @staticmethod
    def _fill(target: Array, values: Array) -> None:
        """Write fp32 values into a map, rounded where it holds the bits of bf16."""
        shaped = values.reshape(target.shape)
        target[...] = to_bf16_bits(shaped) if target.dtype == np.uint16 else shaped
