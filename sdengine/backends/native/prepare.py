"""Preparation of a network: read from a bundle's files, with methods and packing decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.native.graph import Graph, read_graph
from sdengine.backends.native.hypernetwork_graph import with_hypernetworks
from sdengine.backends.native.image_prompt_graph import with_image_prompts
from sdengine.backends.native.layout import Program, lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import choose_methods, wrapping
from sdengine.backends.native.packing import Packing, plan_packing
from sdengine.backends.native.projections import additive_inputs, without_inputs
from sdengine.bundle.reader import Bundle
from sdengine.errors import BundleError
from sdengine.storage.content_hash import HashedFile
from sdengine.storage.tensor_file import map_open_tensors

BF16_ISA = "avx512_bf16"  # the only one with products of bf16
# What maps hold between steps, by precision.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "bfloat16"}
_NO_PROMPTS: Mapping[str, tuple[int, ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Prepared:
    """A network whose steps and weights are decided.

    Args:
        graph: what is computed, reading packed weights.
        shapes: shape of every input, by name.
        dtype: of the maps.
        packing: what the weights become.
        weights: the bundle's own tensors, mapped, and those of hypernetworks.
        source: their file, hashed.
        wraps: the axes along which the edges of its maps meet; "none", "x", "y" or "xy".
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    packing: Packing
    weights: Mapping[str, NDArray[Any]]
    source: HashedFile
    wraps: str = "none"

    def program(self) -> Program:
        """Lay out all of it."""
        return lay_out(self.graph, self.shapes, self.dtype)

    def additive(self) -> frozenset[str]:
        """Return the inputs that may be left out where they are zero."""
        return additive_inputs(self.graph)

    def program_without(
        self, names: frozenset[str], prompts: Mapping[str, tuple[int, ...]] = _NO_PROMPTS
    ) -> Program:
        """Lay out what is left without some additive inputs.

        Args:
            names: of these.
            prompts: shapes of the keys and values that it reads of pictures, by name.
        """
        graph = without_inputs(self.graph, names)
        if prompts:
            graph = with_image_prompts(graph, prompts)
        return lay_out(graph, {**self.shapes, **prompts}, self.dtype)


def prepare(
    bundle: Bundle,
    network: str,
    shapes: Mapping[str, tuple[int, ...]],
    precision: str,
    isa: str,
    weight_bytes: int | None = None,
    weight_set: WeightSet = PRISTINE,
    wraps: str = "none",
) -> Prepared:
    """Read a network's files and decide how it is computed.

    Args:
        bundle: of target native.
        network: its name.
        shapes: shape of every input, by name.
        precision: a key of DTYPES.
        isa: the instruction set whose kernels will run.
        weight_bytes: the most that packed weights may take, as far as they can shrink.
        weight_set: of which hypernetworks become part of the graph, and of its inputs; LoRAs are
            merged by who packs the weights.
        wraps: of what is prepared.

    Raises:
        BundleError: the files are damaged, or do not fit each other or the shapes.
    """
    entry = bundle.network(network)
    files = entry.files
    graphs = [path for path in files if path.endswith(".graph.json")]
    tensors = [path for path in files if path.endswith(".safetensors")]
    if len(graphs) != 1 or len(tensors) != 1:
        raise BundleError(f"{network}: expected a graph and a file of weights, found {files}.")
    graph = read_graph(bundle.path(graphs[0]))
    with bundle.open(tensors[0]) as file:
        source = bundle.hashed(tensors[0], file)
        weights: Mapping[str, NDArray[Any]] = map_open_tensors(file, source.path)
    exact = entry.options.exact.get(precision, [])
    if applied := weight_set.applied(network):
        changed = with_hypernetworks(graph, shapes, applied)
        graph, shapes = changed.graph, changed.shapes
        weights = {**weights, **changed.weights}
        exact = [*exact, *changed.exact]
    sizes = map_sizes(graph, shapes)
    chosen = choose_methods(
        graph,
        sizes,
        precision,
        int16=isa != BF16_ISA,
        exact=exact,
        weight_bytes=weight_bytes,
    )
    graph, packing = plan_packing(chosen, sizes, weights)
    graph = wrapping(graph, wraps)
    return Prepared(graph, shapes, DTYPES[precision], packing, weights, source, wraps)
