"""Importer of exported ONNX graphs: read as steps of the native target.

Feature maps are NHWC in the native runtime and tokens are pixels in a row, so reshapes and
transpositions between [n,c,h,w], [n,h*w,c] and [n,h*w,heads,d] move nothing: they disappear here,
and with them everything that computes their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.operations import OPERATIONS
from sdengine.backends.native.step import Step
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.native.constants import attributes, evaluate
from sdengine.compilers.native.drafts import Draft, Drafts
from sdengine.compilers.native.fusing import fuse_drafts
from sdengine.compilers.native.import_state import UNKNOWN, Array, ImportState
from sdengine.compilers.native.operators import OPERATORS
from sdengine.errors import ExportError
from sdengine.export.fusion import fuse

# They lay values out anew, and change no number.
_VIEWS = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Identity")


@dataclass(frozen=True)
class Imported:
    """A network as the native target runs it.

    Args:
        graph: its steps.
        constants: tensors that no checkpoint holds, by the names that steps read them under.
    """

    graph: Graph
    constants: dict[str, NDArray[np.float32]]


def import_graph(
    model: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    network: str = "network",
) -> Imported:
    """Turn an exported graph into steps.

    Args:
        model: as `export_network` writes it, in fp32 with symbolic shapes; its weights may be
            external.
        inputs, outputs: the contract's.
        network: its name.

    Raises:
        ExportError: an operator has no step; the message names the node.
    """
    fused, report = fuse(model)
    state = ImportState(fused, inputs, network, report.head_dims)
    for node in fused.graph.node:
        _visit(state, node)
    missing = [spec.name for spec in outputs if spec.name not in state.values]
    if missing:
        raise ExportError(f"{network}: nothing makes the output {missing[0]!r}.")
    drafts = state.drafts
    drafts.outputs = {state.values[spec.name] for spec in outputs}
    fuse_drafts(drafts, state.row_inputs)
    graph = Graph(
        version=1,
        network=network,
        inputs=tuple(_port(state, spec, spec.name) for spec in inputs),
        outputs=tuple(_port(state, spec, state.values[spec.name]) for spec in outputs),
        steps=tuple(_step(drafts, draft) for draft in drafts.all),
    )
    return Imported(graph, drafts.constants)


def _step(drafts: Drafts, draft: Draft) -> Step:
    if draft.kind not in OPERATIONS:
        drafts.refuse(draft)
    return Step(
        kind=draft.kind,
        name=draft.name,
        inputs=draft.inputs,
        output=draft.output,
        weights=draft.weights,
        **draft.fields,
    )


def _port(state: ImportState, spec: TensorSpec, value: str) -> Port:
    rank = len(spec.shape)
    image = rank == 4 and value not in state.layers
    return Port(
        name=spec.name,
        value=value,
        rank=rank,
        layout="image" if image else "rows",
        dtype="int64" if spec.dtype == "int64" else "float32",
        channels=state.channels[value],
    )


def _visit(state: ImportState, node: onnx.NodeProto) -> None:
    """Draft what a node computes, or remember what is known of its output."""
    names = [name for name in node.input if name]
    if node.op_type == "Transpose" and names[0] in state.shapes:
        state.transposed[node.output[0]] = names[0]
    elif node.op_type == "Slice" and names[0] in state.shapes:
        _first_rows(state, node)
    elif all(name in state.known for name in names):
        _evaluate(state, node, [state.known[name] for name in names])
    elif node.op_type == "Shape" or not any(name in state.values for name in names):
        state.known[node.output[0]] = UNKNOWN
    elif node.op_type in _VIEWS:
        state.values[node.output[0]] = state.values[node.input[0]]
    elif node.op_type in OPERATORS:
        OPERATORS[node.op_type](state, node, attributes(node))
    else:
        state.refuse(node)


def _evaluate(state: ImportState, node: onnx.NodeProto, inputs: list[Array]) -> None:
    unknown = any(value is UNKNOWN for value in inputs)
    value = None if unknown else evaluate(node, inputs)
    for name in node.output:
        state.known[name] = UNKNOWN if value is None else value


def _first_rows(state: ImportState, node: onnx.NodeProto) -> None:
    """Take the first rows of a table of positions; as many as there are, tokens fill them."""
    source = node.input[0]
    count, channels = state.shapes[source]
    draft = Draft("constant", "", {}, f"{source}.rows", node.op_type, {"values": source})
    draft.fields = {"channels": channels, "first": count}
    state.known[node.output[0]] = UNKNOWN
    state.values[node.output[0]] = draft.output
    state.channels[draft.output] = channels
    state.pending[draft.output] = draft
