"""Read an exported ONNX graph as steps of the native target.

Feature maps are NHWC in the native runtime and tokens are pixels in a row, so reshapes and
transpositions between [n,c,h,w], [n,h*w,c] and [n,h*w,heads,d] move nothing: they disappear here,
and with them everything that computes their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sdengine.backends.native.graph import Graph, Port, Step
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.native.constants import attributes, evaluate
from sdengine.compilers.native.drafts import Draft, Drafts
from sdengine.compilers.native.fusing import fuse_drafts
from sdengine.errors import ExportError
from sdengine.export.fusion import fuse

Array = NDArray[Any]
# They lay values out anew, and change no number.
_VIEWS = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Identity")
_UNKNOWN = np.empty(0)  # a shape that only a request decides


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
    walk = _Walk(fused, inputs, [spec.name for spec in outputs], network, report.head_dims)
    drafts = walk.drafts
    fuse_drafts(drafts, walk.row_inputs)
    graph = Graph(
        version=1,
        network=network,
        inputs=tuple(walk.port(spec, spec.name) for spec in inputs),
        outputs=tuple(walk.port(spec, walk.values[spec.name]) for spec in outputs),
        steps=tuple(_step(drafts, draft) for draft in drafts.all),
    )
    return Imported(graph, drafts.constants)


def _step(drafts: Drafts, draft: Draft) -> Step:
    known = Step.model_fields["kind"].annotation
    if draft.kind not in getattr(known, "__args__", ()):
        drafts.refuse(draft)
    return Step(
        kind=draft.kind,  # type: ignore[arg-type]
        name=draft.name,
        inputs=draft.inputs,
        output=draft.output,
        weights=draft.weights,
        **draft.fields,
    )


class _Walk:
    """Go through a graph's nodes and draft what each of them computes."""

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        network: str,
        head_dims: dict[str, int],
    ) -> None:
        self.head_dims = head_dims
        self.shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self.transposed: dict[str, str] = {}  # weights seen as [in, out]
        self.known: dict[str, Array] = {}
        self.values = {spec.name: spec.name for spec in inputs}
        self.channels = {s.name: _channels(s) for s in inputs}
        self.layers: dict[str, int] = {}  # of values that stack several
        self.row_inputs = {spec.name for spec in inputs if len(spec.shape) < 3}
        # An output that is another value seen otherwise is that value.
        self.drafts = Drafts(network, ())
        self.pending: dict[str, Draft] = {}  # constants that nothing has read yet
        for node in model.graph.node:
            self._visit(node)
        missing = [name for name in outputs if name not in self.values]
        if missing:
            raise ExportError(f"{network}: nothing makes the output {missing[0]!r}.")
        self.drafts.outputs = {self.values[name] for name in outputs}

    def port(self, spec: TensorSpec, value: str) -> Port:
        """Describe an input or output."""
        rank = len(spec.shape)
        image = rank == 4 and value not in self.layers
        return Port(
            name=spec.name,
            value=value,
            rank=rank,
            layout="image" if image else "rows",
            dtype="int64" if spec.dtype == "int64" else "float32",
            channels=self.channels[value],
        )

    def _visit(self, node: onnx.NodeProto) -> None:
        names = [name for name in node.input if name]
        if node.op_type == "Transpose" and names[0] in self.shapes:
            self.transposed[node.output[0]] = names[0]
        elif node.op_type == "Slice" and names[0] in self.shapes:
            self._first_rows(node)
        elif all(name in self.known for name in names):
            self._evaluate(node, [self.known[name] for name in names])
        elif node.op_type == "Shape" or not any(name in self.values for name in names):
            self.known[node.output[0]] = _UNKNOWN
        elif node.op_type in _VIEWS:
            self._view(node)
        else:
            draft = getattr(self, f"_{node.op_type.lower()}", self._unknown)
            draft(node, attributes(node))

    def _evaluate(self, node: onnx.NodeProto, inputs: list[Array]) -> None:
        unknown = any(value is _UNKNOWN for value in inputs)
        value = None if unknown else evaluate(node, inputs)
        for name in node.output:
            self.known[name] = _UNKNOWN if value is None else value

    def _view(self, node: onnx.NodeProto) -> None:
        source = self.values[node.input[0]]
        self.values[node.output[0]] = source

    def _first_rows(self, node: onnx.NodeProto) -> None:
        """Take the first rows of a table of positions; as many as there are, tokens fill them."""
        source = node.input[0]
        count, width = self.shapes[source]
        draft = Draft("constant", "", {}, f"{source}.rows", node.op_type, {"values": source})
        draft.fields = {"channels": width, "first": count}
        self.known[node.output[0]] = _UNKNOWN
        self.values[node.output[0]] = draft.output
        self.channels[draft.output] = width
        self.pending[draft.output] = draft

    def _make(
        self, kind: str, node: onnx.NodeProto, inputs: dict[str, str], width: int, **fields: Any
    ) -> Draft:
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
        self.channels[node.output[0]] = width
        return draft

    def _of(self, name: str) -> int:
        return self.channels[self.values[name]]

    def _unknown(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        name = node.name or node.output[0]
        self.drafts.refuse(Draft("", name, {}, node.output[0], node.op_type))

    def _refuse(self, node: onnx.NodeProto, reason: str) -> None:
        name = node.name or node.output[0]
        self.drafts.refuse(Draft("", name, {}, node.output[0], node.op_type), reason)

    # One method for each operator, called by its name.

    def _matmul(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        x, other = node.input
        if other not in self.transposed:
            self._refuse(node, "it multiplies no transposed weight")
        weight = self.transposed[other]
        columns = self.shapes[weight][0]
        draft = self._make("linear", node, {"x": x}, columns, channels=columns)
        draft.weights["weight"] = weight

    def _gemm(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        x, weight = node.input[:2]
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
        if weight not in self.shapes or not plain or given.get("transB") != 1:
            self._refuse(node, "it is no linear layer")
        columns = self.shapes[weight][0]
        draft = self._make("linear", node, {"x": x}, columns, channels=columns)
        draft.weights["weight"] = weight
        if len(node.input) > 2:
            draft.weights["bias"] = node.input[2]

    def _conv(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        columns, _, kernel, width = self.shapes[node.input[1]]
        steps, pads = set(given.get("strides", [1])), set(given.get("pads", [0]))
        plain = given.get("group", 1) == 1 and set(given.get("dilations", [1])) == {1}
        if not plain or kernel != width or len(steps) != 1 or len(pads) != 1:
            self._refuse(node, "it has groups, dilations, or differs in height and width")
        (step,), (pad,) = steps, pads
        fields: dict[str, Any] = {"channels": columns}
        kind = "linear"
        if (kernel, step, pad) != (1, 1, 0):
            kind = "conv"
            fields |= {"kernel": kernel, "step": step, "pad": pad}
        draft = self._make(kind, node, {"x": node.input[0]}, columns, **fields)
        draft.weights["weight"] = node.input[1]
        if len(node.input) > 2:
            draft.weights["bias"] = node.input[2]

    def _group_norm(self, node: onnx.NodeProto, given: dict[str, Any], **more: str) -> None:
        fields = {"groups": given["num_groups"], "epsilon": given["epsilon"], **more}
        draft = self._make("group_norm", node, {"x": node.input[0]}, self._of(node.input[0]))
        draft.fields = fields
        draft.weights = {"weight": node.input[1], "bias": node.input[2]}

    def _group_norm_silu(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._group_norm(node, given, activation="silu")

    def _layernormalization(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        if given.get("axis", -1) != -1:
            self._refuse(node, "it runs along another axis than the last")
        x = node.input[0]
        draft = self._make("layer_norm", node, {"x": x}, self._of(x), epsilon=given["epsilon"])
        draft.weights = {"weight": node.input[1], "bias": node.input[2]}
        if self.values[x] in self.layers:
            self.layers[draft.output] = self.layers[self.values[x]]

    def _attention(self, node: onnx.NodeProto, given: dict[str, Any], **more: bool) -> None:
        width = self._of(node.input[0])
        heads = width // self.head_dims[node.name]
        inputs = dict(zip(("q", "k", "v"), node.input, strict=True))
        draft = self._make("attention", node, inputs, width)
        draft.fields = {"heads": heads, "scale": given["scale"], **more}

    def _causal_attention(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._attention(node, given, causal=True)

    def _add(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        vectors = [name for name in node.input if name in self.shapes]
        maps = [name for name in node.input if name in self.values]
        if vectors and len(maps) == 1:
            draft = self._make("bias", node, {"x": maps[0]}, self._of(maps[0]))
            draft.weights["bias"] = vectors[0]
            return
        if len(maps) != 2:
            self._refuse(node, "it adds a number")
        for name in maps:
            self._place_constant(self.values[name], node)
        self._make("add", node, {"a": maps[0], "b": maps[1]}, self._of(maps[0]))

    def _place_constant(self, value: str, node: onnx.NodeProto) -> None:
        """Draft a table of positions before what reads it first, under that one's name."""
        if value in self.pending:
            draft = self.pending.pop(value)
            draft.name = node.name or node.output[0]
            self.drafts.add(draft)

    def _mul(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        numbers = [name for name in node.input if name in self.known]
        maps = [name for name in node.input if name in self.values]
        if not numbers:
            self._make("product", node, {"a": maps[0], "b": maps[1]}, self._of(maps[0]))
            return
        factor = self.known[numbers[0]]
        if factor.size == 1:
            factor = factor.reshape(())
            self._make("scale", node, {"x": maps[0]}, self._of(maps[0]), factor=float(factor))
            return
        count = self._of(maps[0]) * factor.size
        self._make("angles", node, {"x": maps[0]}, count, frequencies=factor.reshape(-1))

    def _sigmoid(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        self._make("sigmoid", node, {"x": node.input[0]}, self._of(node.input[0]))

    def _gelu(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        if given.get("approximate", b"none") != b"none":
            self._refuse(node, "it is an approximation")
        x = node.input[0]
        self._make("activation", node, {"x": x}, self._of(x), activation="gelu")

    def _cos(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        kind = node.op_type.lower()
        self._make(kind, node, {"x": node.input[0]}, self._of(node.input[0]))

    _sin = _cos

    def _split(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        sizes = self.known[node.input[1]].tolist() if len(node.input) > 1 else []
        if given.get("axis", 0) != -1 or len(node.output) != 2 or len(set(sizes)) > 1:
            self._refuse(node, "it does not halve the channels")
        x = node.input[0]
        for index, output in enumerate(node.output):
            half = onnx.NodeProto(op_type="Split", name=node.name, output=[output])
            self._make("half", half, {"x": x}, self._of(x) // 2, index=index)

    def _concat(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        inputs = {f"{index:03}": name for index, name in enumerate(node.input)}
        kinds = [self.drafts.maker.get(self.values[name]) for name in node.input]
        if [made and made.kind for made in kinds] == ["cos", "sin"]:
            self._make("sinusoid", node, inputs, 2 * self._of(node.input[0]))
        elif given["axis"] == 0:
            draft = self._make("stack", node, inputs, self._of(node.input[0]))
            self.layers[draft.output] = len(node.input)
        else:
            self._make("concat", node, inputs, sum(self._of(name) for name in node.input))

    def _gather(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        x, index = node.input
        parts = self.layers.get(self.values[x])
        if parts is None or given.get("axis", 0) != 0 or self.known[index].size != 1:
            self._refuse(node, "it takes no layer")
        first = int(self.known[index].reshape(())) % (parts or 1)
        self._make("slice", node, {"x": x}, self._of(x), first=first, parts=parts)

    def _onehot(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        if self.known[node.input[2]].tolist() != [0, 1]:
            self._refuse(node, "it makes other numbers than 0 and 1")
        self._make("one_hot", node, {"index": node.input[0]}, 1)

    def _reducesum(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        axes = self.known[node.input[1]].tolist() if len(node.input) > 1 else []
        if axes != [1] or given.get("keepdims", 1) != 0:
            self._refuse(node, "it adds up along other axes than tokens")
        self._make("select", node, {"x": node.input[0]}, self._of(node.input[0]))

    def _resize(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        scales = self.known[node.input[2]].tolist() if len(node.input) > 2 else []
        if given.get("mode") != b"nearest" or scales != [1.0, 1.0, 2.0, 2.0]:
            self._refuse(node, "it does not double pixels")
        self._make("double", node, {"x": node.input[0]}, self._of(node.input[0]))

    def _pad(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        amounts = self.known[node.input[1]].tolist()
        if given.get("mode", b"constant") != b"constant" or amounts != [0, 0, 0, 0, 0, 0, 1, 1]:
            self._refuse(node, f"it pads by {amounts}")
        self._make("pad", node, {"x": node.input[0]}, self._of(node.input[0]))


def _channels(spec: TensorSpec) -> int:
    rank = len(spec.shape)
    return 1 if rank == 1 else int(spec.shape[1 if rank in (2, 4) else 2])
