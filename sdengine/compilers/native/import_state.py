"""State of an import: values, constants and drafts that an ONNX graph's nodes have made so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray

from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.native.drafts import Draft, Drafts

Array = NDArray[Any]
UNKNOWN: Array = np.empty(0)  # a shape that only a request decides


class ImportState:
    """What is known when a node is visited.

    Args:
        model: the graph.
        inputs: the contract's.
        network: its name.
        head_dims: channels of a head, by the node of its attention.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Sequence[TensorSpec],
        network: str,
        head_dims: dict[str, int],
    ) -> None:
        self.head_dims = head_dims
        self.shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self.transposed: dict[str, str] = {}  # weights seen as [in, out]
        self.known: dict[str, Array] = {}
        self.values = {spec.name: spec.name for spec in inputs}
        self.channels = {spec.name: _channels(spec) for spec in inputs}
        self.layers: dict[str, int] = {}  # of values that stack several
        self.row_inputs = {spec.name for spec in inputs if len(spec.shape) < 3}
        # An output that is another value seen otherwise is that value.
        self.drafts = Drafts(network, ())
        self.pending: dict[str, Draft] = {}  # constants that nothing has read yet

    def make(
        self,
        kind: str,
        node: onnx.NodeProto,
        inputs: dict[str, str],
        channels: int,
        /,
        **fields: Any,
    ) -> Draft:
        """Draft what a node computes.

        Args:
            kind: of the draft.
            node: whose first output it makes.
            inputs: names of the ONNX graph, by role.
            channels: of what it makes.
            fields: the draft's.
        """
        draft = Draft(
            kind,
            node.name or node.output[0],
            {role: self.values[name] for role, name in inputs.items()},
            node.output[0],
            node.op_type,
            fields=fields,
        )
        self.drafts.add(draft)
        self.values[node.output[0]] = node.output[0]
        self.channels[node.output[0]] = channels
        return draft

    def channels_of(self, name: str) -> int:
        """Return the channels of a name of the ONNX graph."""
        return self.channels[self.values[name]]

    def refuse(self, node: onnx.NodeProto, *reason: str) -> NoReturn:
        """Raise an ExportError that names the node."""
        name = node.name or node.output[0]
        self.drafts.refuse(Draft("", name, {}, node.output[0], node.op_type), *reason)


def _channels(spec: TensorSpec) -> int:
    rank = len(spec.shape)
    return 1 if rank == 1 else int(spec.shape[1 if rank in (2, 4) else 2])
