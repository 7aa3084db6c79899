"""Fusion: each attention and each GroupNorm with SiLU of an exported graph becomes one node.

The nodes belong to the domain `sdengine` and come with functions of standard operators, so that any
runtime computes the fused graph. `lowering.py` turns them into what a target has.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sdengine.export.fused_functions import DOMAIN, DOMAIN_VERSION, functions_for

_OPENING, _CLOSING = [0, 2, 1, 3], [0, 2, 1, 3]
_KEYS = [0, 2, 3, 1]


@dataclass
class FusionReport:
    """What a pass found and did.

    Args:
        found: by kind, "attention" or "group_norm", what the graph has.
        replaced: by fused operator, such as "group_norm_silu".
        left: name of each that stayed as it was, and why.
        head_dims: numbers of each head in the attentions that were replaced, by the node's name.
    """

    found: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    left: dict[str, str] = field(default_factory=dict)
    head_dims: dict[str, int] = field(default_factory=dict)


class _NoMatch(Exception):
    """Say why a pattern does not apply."""


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FusionReport]:
    """Return a graph with fused nodes, and what was replaced.

    Args:
        model: as `export_network` writes it, in any precision, with symbolic or fixed shapes;
            left as it is. Its weights may be external.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    report = FusionReport()
    graph = _Graph(fused.graph, report)
    for kind, op_type, replace in (
        ("attention", "Softmax", _fuse_attention),
        ("group_norm", "InstanceNormalization", _fuse_group_norm),
    ):
        for node in [node for node in fused.graph.node if node.op_type == op_type]:
            report.found[kind] += 1
            try:
                report.replaced[replace(graph, node)] += 1
            except _NoMatch as reason:
                report.left[node.name or node.output[0]] = str(reason)
    graph.rebuild()
    used = {node.op_type for node in fused.graph.node if node.domain == DOMAIN}
    if used:
        fused.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        fused.functions.extend(functions_for(used, _default_opset(model)))
    return fused, report


class _Graph:
    """A graph with its edges looked up; nodes are replaced, and dead ones left out at the end."""

    def __init__(self, graph: onnx.GraphProto, report: FusionReport) -> None:
        self.graph = graph
        self.report = report
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self._added: dict[str, onnx.NodeProto] = {}

    def producer(self, name: str, *op_types: str) -> onnx.NodeProto:
        """Return the node that makes a tensor, of one of the types."""
        node = self.producers.get(name)
        if node is None or node.op_type not in op_types:
            found = "an input" if node is None else node.op_type
            raise _NoMatch(f"{found} where {' or '.join(op_types)} was expected")
        return node

    def only_reader(self, name: str, *op_types: str) -> onnx.NodeProto:
        """Return the only node that reads a tensor, of one of the types."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs or readers[0].op_type not in op_types:
            raise _NoMatch(f"a result is read by {[node.op_type for node in readers]}")
        return readers[0]

    def constant(self, name: str) -> np.ndarray:
        """Return a value that follows from constants: of Constant, Sqrt and Cast nodes."""
        node = self.producer(name, "Constant", "Sqrt", "Cast", "Unsqueeze")
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is None:
                raise _NoMatch("a constant of an unknown kind")
            return np.asarray(numpy_helper.to_array(value))
        inner = self.constant(node.input[0])
        return np.sqrt(inner.astype(np.float64)) if node.op_type == "Sqrt" else inner

    def permutation(self, node: onnx.NodeProto, expected: list[int]) -> None:
        """Refuse a transposition that is another."""
        found = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        if found != expected:
            raise _NoMatch(f"a transposition by {found}")

    def add(self, node: onnx.NodeProto) -> None:
        """Let a node make what another one made; that one is left out."""
        self._added[node.output[0]] = node

    def rebuild(self) -> None:
        """Put added nodes into the places of those that they replace; drop what nobody reads."""
        nodes = []
        for node in self.graph.node:
            added = [self._added.pop(name) for name in node.output if name in self._added]
            nodes += added or [node]
        wanted = set(self.outputs)
        kept = []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))


def _fuse_attention(graph: _Graph, softmax: onnx.NodeProto) -> str:
    """Replace transpositions, scaled product, softmax and product by one node of [B,S,heads,D]."""
    scores = graph.producer(softmax.input[0], "MatMul", "Add")
    causal = scores.op_type == "Add"
    if causal:
        product, mask = (graph.producers.get(name) for name in scores.input)
        if product is None or product.op_type != "MatMul":
            raise _NoMatch("an addition to something else than scores")
        scores = product
        _require_causal(graph, mask)
    query_scale, query = _scaled(graph, scores.input[0])
    key_scale, key = _scaled(graph, scores.input[1])
    graph.permutation(query, _OPENING)
    graph.permutation(key, _KEYS)
    weighted = graph.only_reader(softmax.output[0], "MatMul")
    if weighted.input[0] != softmax.output[0]:
        raise _NoMatch("the weights are multiplied from the other side")
    value = graph.producer(weighted.input[1], "Transpose")
    graph.permutation(value, _OPENING)
    closing = graph.only_reader(weighted.output[0], "Transpose")
    graph.permutation(closing, _CLOSING)
    op_type = "causal_attention" if causal else "attention"
    graph.report.head_dims[softmax.name] = _head_dim(graph, query.input[0])
    graph.add(
        helper.make_node(
            op_type,
            [query.input[0], key.input[0], value.input[0]],
            list(closing.output),
            name=softmax.name,
            domain=DOMAIN,
            scale=query_scale * key_scale,
        )
    )
    return op_type


def _scaled(graph: _Graph, name: str) -> tuple[float, onnx.NodeProto]:
    """Return the factor on a tensor and the transposition that makes it."""
    product = graph.producer(name, "Mul")
    scale = graph.constant(product.input[1])
    if scale.size != 1:
        raise _NoMatch("a factor that is no number")
    return float(scale.reshape(())), graph.producer(product.input[0], "Transpose")


def _head_dim(graph: _Graph, name: str) -> int:
    """Return the last size of what a reshape to [B,S,heads,D] makes."""
    shape = graph.producer(graph.producer(name, "Reshape").input[1], "Concat", "Constant")
    parts = shape.input if shape.op_type == "Concat" else shape.output
    for part in reversed(parts):
        made = graph.producers.get(part)
        if made is not None and made.op_type == "Constant":
            sizes = graph.constant(part)
            if sizes.size > 1 and sizes.reshape(-1)[-1] > 0:
                return int(sizes.reshape(-1)[-1])
    raise _NoMatch("heads of an unknown size")


def _require_causal(graph: _Graph, mask: onnx.NodeProto | None) -> None:
    """Accept minus infinity above the diagonal only."""
    if mask is None or mask.op_type != "Trilu":
        raise _NoMatch("a mask that is not causal")
    upper = next((a.i for a in mask.attribute if a.name == "upper"), 1)
    diagonal = graph.constant(mask.input[1]) if len(mask.input) > 1 else np.array(0)
    filled = graph.producers.get(mask.input[0])
    while filled is not None and filled.op_type in ("Expand", "Cast"):
        filled = graph.producers.get(filled.input[0])
    value = None
    if filled is not None and filled.op_type in ("ConstantOfShape", "Constant"):
        value = next(
            (numpy_helper.to_array(a.t) for a in filled.attribute if a.name == "value"), None
        )
    if upper != 1 or int(diagonal) != 1 or value is None or not np.all(value == -np.inf):
        raise _NoMatch("a mask that is not causal")


def _fuse_group_norm(graph: _Graph, norm: onnx.NodeProto) -> str:
    """Replace both reshapes, the normalisation, scale, shift and SiLU by one node."""
    grouped = graph.producer(norm.input[0], "Reshape")
    shape = graph.constant(grouped.input[1])
    if shape.shape != (3,) or shape[0] != 0 or shape[2] != -1:
        raise _NoMatch(f"a reshape to {shape.tolist()}")
    for name, expected in ((norm.input[1], 1.0), (norm.input[2], 0.0)):
        if not np.all(graph.constant(name) == expected):
            raise _NoMatch("an instance normalisation with weights of its own")
    restored = graph.only_reader(norm.output[0], "Reshape")
    scaled = graph.only_reader(restored.output[0], "Mul")
    shifted = graph.only_reader(scaled.output[0], "Add")
    weight = _per_channel(graph, scaled, restored.output[0])
    bias = _per_channel(graph, shifted, scaled.output[0])
    epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
    op_type, output = "group_norm", shifted.output[0]
    product = _silu_product(graph, shifted)
    if product is not None:
        op_type, output = "group_norm_silu", product
    graph.add(
        helper.make_node(
            op_type,
            [grouped.input[0], weight, bias],
            [output],
            name=norm.name,
            domain=DOMAIN,
            num_groups=int(shape[1]),
            epsilon=epsilon,
        )
    )
    return op_type


def _per_channel(graph: _Graph, node: onnx.NodeProto, other: str) -> str:
    """Return the weight of each channel that a map is multiplied by or added to."""
    name = next(name for name in node.input if name != other)
    unsqueezed = graph.producer(name, "Unsqueeze")
    axes = graph.constant(unsqueezed.input[1])
    if axes.tolist() != [1, 2]:
        raise _NoMatch(f"weights along axes {axes.tolist()}")
    return str(unsqueezed.input[0])


def _silu_product(graph: _Graph, shifted: onnx.NodeProto) -> str | None:
    """Return what x * sigmoid(x) is called, if that is all that happens to x."""
    name = shifted.output[0]
    readers = graph.readers.get(name, [])
    if name in graph.outputs or sorted(node.op_type for node in readers) != ["Mul", "Sigmoid"]:
        return None
    product = next(node for node in readers if node.op_type == "Mul")
    sigmoid = next(node for node in readers if node.op_type == "Sigmoid")
    if set(product.input) != {name, sigmoid.output[0]}:
        return None
    if len(graph.readers.get(sigmoid.output[0], [])) != 1:
        return None
    return str(product.output[0])


def _default_opset(model: onnx.ModelProto) -> int:
    return next(int(opset.version) for opset in model.opset_import if not opset.domain)
