"""Sensitivity of layers: how far each errs in each precision, on the inputs that it really gets.

The network runs in fp32, one operation after the other; what each linear layer and convolution read
is then given to the same layer alone in bf16 and in 8 bits, and the results are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.backends.native.layout import Program, lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import choose_methods
from sdengine.backends.native.operations import PRODUCTS
from sdengine.backends.native.packing import pack, plan_packing
from sdengine.backends.native.prepare import BF16_ISA, DTYPES
from sdengine.backends.native.projections import JOINT
from sdengine.backends.native.step import Step
from sdengine.machine import usable_processors

Array = NDArray[Any]
PRECISIONS = ("bf16", "int8")
# A layer whose error is larger is computed plainly. In bf16 the rounding of inputs and results
# alone is 2.4e-3; in 8 bits an even distribution gives about 1e-2.
MAX_ERROR = {"bf16": 1e-2, "int8": 5e-2, "fp8": 8e-2}


@dataclass(frozen=True)
class LayerError:
    """What one layer errs in one precision.

    Args:
        output: the step's output, which names it.
        name: of the node that it comes from.
        precision: "bf16" or "int8".
        method: what multiplied: "bfloat16", "int16", "int8", or "winograd int16".
        error: root mean square, relative to the result in fp32.
    """

    output: str
    name: str
    precision: str
    method: str
    error: float

    @property
    def is_exact(self) -> bool:
        """Whether it is too large, so that the layer is computed plainly."""
        return not self.error <= MAX_ERROR[self.precision]


@dataclass(frozen=True)
class Product:
    """One linear layer or convolution of a run, as the network met it.

    Args:
        step: what it is; projections of the same tokens are one, see `join_projections`.
        read: maps [n,h,w,c] fp32 by role; "x" is what is multiplied.
        out: what it made, [n,h,w,c] fp32.
    """

    step: Step
    read: Mapping[str, Array]
    out: Array


class Walk:
    """A network in fp32 that runs one operation after the other and shows its products.

    Args:
        graph: a network, as it was imported.
        weights: its tensors.
        shapes: of the inputs, by name.
    """

    def __init__(
        self, graph: Graph, weights: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.sizes = map_sizes(graph, shapes)
        chosen = _chosen(graph, shapes, "fp32")
        self.products = tuple(step for step in chosen.steps if step.kind in PRODUCTS)
        self._laid_out, self._program = _laid_out(chosen, shapes, weights, "float32")

    @property
    def outputs(self) -> Mapping[str, Array]:
        """What the last run made, by name; the next one overwrites it."""
        return self._laid_out.outputs

    def run(self, inputs: Mapping[str, Array]) -> Iterator[Product]:
        """Run the network, and stop after each product.

        Args:
            inputs: by name, of the shapes.
        """
        self._laid_out.write(inputs)
        network = self._laid_out.network
        products = iter(self.products)
        for index, record in enumerate(self._program.records):
            if record["kind"] not in PRODUCTS:
                network.run_one(index)
                continue
            maps = {role: network.view(one) for role, one in record["maps"].items()}
            out = maps.pop("out")
            read = {role: values.copy() for role, values in maps.items()}
            network.run_one(index)
            yield Product(next(products), read, out.copy())


def layer_errors(
    graph: Graph, weights: Mapping[str, Array], inputs: Mapping[str, Array]
) -> list[LayerError]:
    """Compare every linear layer and convolution in low precision with itself in fp32.

    Args:
        graph: a network, as it was imported.
        weights: its tensors.
        inputs: by name, at the shapes to compare at.
    """
    shapes = {name: array.shape for name, array in inputs.items()}
    by_output = {
        precision: {step.output: step for step in _chosen(graph, shapes, precision).steps}
        for precision in PRECISIONS
    }
    found: list[LayerError] = []
    for product in Walk(graph, weights, shapes).run(inputs):
        step = product.step
        for precision in PRECISIONS:
            low = by_output[precision].get(step.output)
            if low is not None:
                error = error_alone(low, product, weights, DTYPES[precision])
                method = f"{'winograd ' if low.tile else ''}{low.weight_kind}"
                found.append(LayerError(step.output, step.name, precision, method, error))
    return found


def _chosen(graph: Graph, shapes: Mapping[str, tuple[int, ...]], precision: str) -> Graph:
    sizes = map_sizes(graph, shapes)
    return choose_methods(graph, sizes, precision, int16=chosen_isa() != BF16_ISA)


def _laid_out(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Array], dtype: str
) -> tuple[LaidOutNetwork, Program]:
    packed_graph, packing = plan_packing(graph, map_sizes(graph, shapes), weights)
    program = lay_out(packed_graph, shapes, dtype)
    packed = dict(pack(packing, weights))
    return LaidOutNetwork(program, packed, usable_processors().threads), program


def error_alone(
    step: Step, product: Product, weights: Mapping[str, Array], dtype: str = "float32"
) -> float:
    """Return the root mean square error of a step alone, relative to what a product made.

    Args:
        step: the same layer in another method; or in the same, where what it reads was changed.
        product: what it reads, and what it should make.
        weights: its tensors, by name.
        dtype: of the maps that it computes on.
    """
    read, truth = product.read, product.out
    alone = step.model_copy(update={"inputs": {role: role for role in read}, "output": "out"})
    graph = Graph(
        version=1,
        network="alone",
        inputs=tuple(_port(role, array.shape[3]) for role, array in read.items()),
        outputs=(_port("out", truth.shape[3]),),
        steps=(alone,),
    )
    arrays = {role: array.transpose(0, 3, 1, 2) for role, array in read.items()}
    shapes = {role: array.shape for role, array in arrays.items()}
    laid_out, _ = _laid_out(graph, shapes, weights, dtype)
    laid_out.write(arrays)
    laid_out.network.run()
    found = laid_out.outputs["out"].transpose(0, 2, 3, 1).astype(np.float64)
    power = float(np.mean(truth.astype(np.float64) ** 2))
    return float(np.sqrt(np.mean((found - truth) ** 2) / (power or 1.0)))


def _port(name: str, channels: int) -> Port:
    return Port(name=name, value=name, rank=4, layout="image", dtype="float32", channels=channels)


def exact_steps(errors: list[LayerError]) -> dict[str, list[str]]:
    """Return, by precision, the outputs of the steps that are to be computed plainly."""
    exact: dict[str, list[str]] = {precision: [] for precision in PRECISIONS}
    for layer in errors:
        if layer.is_exact:  # projections may have been joined
            exact[layer.precision] += layer.output.split(JOINT)
    return {precision: names for precision, names in exact.items() if names}
