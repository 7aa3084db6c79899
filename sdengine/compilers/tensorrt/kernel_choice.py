"""Kernel choice: TensorRT's own kernels or ours for each node, from measured times.

Nodes that compute the same on the same shapes are measured once. Each is timed alone, so what its
neighbours would be fused with does not show; a plugin, which ends such fusions, must be faster by a
margin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sdengine.export.fused_functions import DOMAIN
from sdengine.export.lowering import to_plugins, to_standard

NATIVE, TRITON = "native", "triton"
# The share of the native kernel's time that ours may take at most.
MARGIN = 0.95

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """What is measured once: an operation on given shapes.

    Args:
        op: of the domain `sdengine`, such as "group_norm_silu".
        dtype: "float16" or "bfloat16".
        attributes: name and value of each.
        shapes: of the inputs.
    """

    op: str
    dtype: str
    attributes: tuple[tuple[str, float | int], ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Group:
    """Nodes of a graph that compute the same.

    Args:
        nodes: their names.
        cases: by profile.
    """

    nodes: tuple[str, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Timing:
    """How long a case took, in milliseconds; or why it could not be measured."""

    ms: float | None
    problem: str = ""


@dataclass(frozen=True)
class Choice:
    """What was decided for some nodes.

    Args:
        group: the nodes.
        chosen: "native" or "triton".
        timings: by kernels and profile.
    """

    group: Group
    chosen: str
    timings: Mapping[str, tuple[Timing, ...]]

    def to_record(self, profiles: Sequence[str]) -> dict[str, Any]:
        """Return what a manifest says about it; profiles are named as image sizes are."""
        case = self.group.cases[0]
        record: dict[str, Any] = {
            "op": case.op,
            "dtype": case.dtype,
            "nodes": list(self.group.nodes),
            "chosen": self.chosen,
            "shapes": {
                name: [list(shape) for shape in case.shapes]
                for name, case in zip(profiles, self.group.cases, strict=True)
            },
            "ms": {
                kernels: {
                    name: timing.ms if timing.ms is None else round(timing.ms, 5)
                    for name, timing in zip(profiles, timings, strict=True)
                }
                for kernels, timings in self.timings.items()
            },
        }
        problems = {
            kernels: next((t.problem[:300] for t in timings if t.problem), "")
            for kernels, timings in self.timings.items()
        }
        if any(problems.values()):
            record["problems"] = {name: text for name, text in problems.items() if text}
        return record


# Measures each case with both kernels: (case, kernels) -> timing.
Measure = Callable[[Sequence[Case]], Mapping[tuple[Case, str], Timing]]


def group_nodes(
    graphs: Sequence[onnx.ModelProto], dtype: str, supported: Callable[[onnx.NodeProto], bool]
) -> list[Group]:
    """Return the fused nodes that have a choice, those that compute the same together.

    Args:
        graphs: one network as `fuse` returns it, with the fixed shapes of each profile.
        dtype: that it computes in.
        supported: says for which nodes there is a plugin.
    """
    cases: dict[str, list[Case]] = {}
    for graph in graphs:
        shapes = _shapes(graph.graph)
        for node in graph.graph.node:
            if node.domain == DOMAIN and supported(node):
                case = Case(
                    node.op_type,
                    dtype,
                    tuple(sorted(_attributes(node).items())),
                    tuple(shapes[name] for name in node.input),
                )
                cases.setdefault(node_name(node), []).append(case)
    names: dict[tuple[Case, ...], list[str]] = {}
    for name, found in cases.items():
        names.setdefault(tuple(found), []).append(name)
    return [Group(tuple(nodes), found) for found, nodes in names.items()]


def choose(groups: Sequence[Group], measure: Measure) -> list[Choice]:
    """Decide for each group, by the sum over the profiles.

    Native kernels are kept where ours cannot be measured, and ours taken where the others cannot.

    Args:
        groups: as `group_nodes` returns them.
        measure: times every case; asked once, for the distinct ones.
    """
    cases = list(dict.fromkeys(case for group in groups for case in group.cases))
    measured = measure(cases)
    choices = []
    for group in groups:
        timings = {
            kernels: tuple(measured[case, kernels] for case in group.cases)
            for kernels in (NATIVE, TRITON)
        }
        native_ms, triton_ms = (_total(timings[kernels]) for kernels in (NATIVE, TRITON))
        ours = triton_ms is not None and (native_ms is None or triton_ms < MARGIN * native_ms)
        choices.append(Choice(group, TRITON if ours else NATIVE, timings))
    return choices


def single_node(case: Case, kernels: str) -> onnx.ModelProto:
    """Return a graph of one node, as a target gets it: inputs x0, x1, ..., output y.

    Scale and shift of a normalisation are weights, as they are in a network.
    """
    kind = getattr(onnx.TensorProto, case.dtype.upper())
    names = [f"x{index}" for index in range(len(case.shapes))]
    rng = np.random.default_rng(0)
    weights = [
        helper.make_tensor(name, kind, shape, rng.uniform(0.5, 1.5, shape))
        for name, shape in zip(names, case.shapes, strict=True)
        if len(shape) == 1
    ]
    attributes: dict[str, Any] = dict(case.attributes)
    node = helper.make_node(case.op, names, ["y"], name="node", domain=DOMAIN, **attributes)
    known = {tensor.name for tensor in weights}
    graph = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(name, kind, shape)
            for name, shape in zip(names, case.shapes, strict=True)
            if name not in known
        ],
        [helper.make_tensor_value_info("y", kind, case.shapes[0])],
        weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    if kernels != TRITON:
        return to_standard(model)
    return to_plugins(model, lambda node: True, {"node": case.shapes[:1]})


def node_name(node: onnx.NodeProto) -> str:
    """Return what a node is called, or what it makes."""
    return str(node.name or node.output[0])


def _total(timings: Sequence[Timing]) -> float | None:
    known = [timing.ms for timing in timings if timing.ms is not None]
    return sum(known) if len(known) == len(timings) else None


def _attributes(node: onnx.NodeProto) -> dict[str, float | int]:
    return {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                found[node.output[0]] = tuple(numpy_helper.to_array(value).shape)
    for info in (*graph.input, *graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[info.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return found
