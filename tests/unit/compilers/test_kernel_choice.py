"""Native kernels or ours, node by node, from times that are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from sdengine.compilers.tensorrt.builder import BuilderFailure
from sdengine.compilers.tensorrt.kernel_choice import (
    NATIVE,
    TRITON,
    Case,
    Group,
    Timing,
    choose,
    group_nodes,
    single_node,
)
from sdengine.compilers.tensorrt.kernel_timing import PHASE, time_cases
from sdengine.export.fused_functions import DOMAIN

SMALL = Case("group_norm", "float16", (("epsilon", 1e-5), ("num_groups", 4)), ((1, 8, 4, 4),))
LARGE = Case("group_norm", "float16", (("epsilon", 1e-5), ("num_groups", 4)), ((1, 8, 9, 9),))


def graph(side: int) -> onnx.ModelProto:
    """Two equal normalisations, one of other groups, one that has no plugin."""

    def norm(name: str, source: str, groups: int) -> onnx.NodeProto:
        return helper.make_node(
            "group_norm",
            [source, "weight", "bias"],
            [f"{name}.out"],
            name=name,
            domain=DOMAIN,
            num_groups=groups,
            epsilon=1e-5,
        )

    nodes = [norm("a", "x", 4), norm("b", "a.out", 4), norm("c", "b.out", 2), norm("d", "x", 8)]
    shape = [1, 8, side, side]
    infos = [
        helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT16, shape) for name in "abcd"
    ]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT16, [8], [1.0] * 8) for name in ("weight", "bias")
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        infos[2:],
        weights,
        value_info=infos[:2],
    )
    return helper.make_model(made)


def test_equal_nodes_are_one_decision_over_all_profiles() -> None:
    groups = group_nodes([graph(4), graph(9)], "bfloat16", lambda node: node.name != "d")
    assert [group.nodes for group in groups] == [("a", "b"), ("c",)]
    first, second = groups[0].cases
    assert (first.op, first.dtype) == ("group_norm", "bfloat16")
    assert dict(first.attributes) == {"num_groups": 4, "epsilon": pytest.approx(1e-5)}
    assert first.shapes == ((1, 8, 4, 4), (8,), (8,))
    assert second.shapes == ((1, 8, 9, 9), (8,), (8,))
    assert groups[1].cases[0] != first


@pytest.mark.parametrize(
    ("native", "triton", "chosen"),
    [
        ((1.0, 1.0), (0.9, 0.9), TRITON),
        ((1.0, 1.0), (0.96, 0.96), NATIVE),  # faster, but not by the margin
        ((1.0, 1.0), (1.1, 1.1), NATIVE),
        ((1.0, 9.0), (2.0, 3.0), TRITON),  # the larger size counts more
        ((1.0, 1.0), (None, 0.1), NATIVE),
        ((None, 1.0), (5.0, 5.0), TRITON),
        ((None, None), (None, None), NATIVE),
    ],
)
def test_the_faster_is_kept(
    native: tuple[float | None, ...], triton: tuple[float | None, ...], chosen: str
) -> None:
    asked: list[Sequence[Case]] = []

    def measure(cases: Sequence[Case]) -> dict[tuple[Case, str], Timing]:
        asked.append(cases)
        return {
            (case, kernels): Timing(ms, "" if ms is not None else f"{kernels} failed")
            for kernels, times in ((NATIVE, native), (TRITON, triton))
            for case, ms in zip((SMALL, LARGE), times, strict=True)
        }

    groups = [Group(("a", "b"), (SMALL, LARGE)), Group(("c",), (SMALL, LARGE))]
    choices = choose(groups, measure)
    assert asked == [[SMALL, LARGE]]
    assert [choice.chosen for choice in choices] == [chosen, chosen]
    record = json.loads(json.dumps(choices[0].to_record(["64x64", "72x72"])))
    assert (record["chosen"], record["nodes"], record["op"]) == (chosen, ["a", "b"], "group_norm")
    assert record["shapes"] == {"64x64": [[1, 8, 4, 4]], "72x72": [[1, 8, 9, 9]]}
    assert record["ms"] == {
        "native": dict(zip(("64x64", "72x72"), native, strict=True)),
        "triton": dict(zip(("64x64", "72x72"), triton, strict=True)),
    }
    failed = {k for k, times in (("native", native), ("triton", triton)) if None in times}
    assert record.get("problems", {}).keys() == failed


def test_no_nodes_are_no_choices() -> None:
    assert choose([], lambda cases: {}) == []


def test_a_single_node_is_what_the_target_gets() -> None:
    case = Case(
        "group_norm_silu",
        "float16",
        (("epsilon", 1e-5), ("num_groups", 4)),
        ((1, 8, 4, 4), (8,), (8,)),
    )
    native, ours = single_node(case, NATIVE), single_node(case, TRITON)
    onnx.checker.check_model(native, full_check=True)
    assert [n.op_type for n in native.graph.node] == ["GroupNormalization", "Sigmoid", "Mul"]
    (plugin,) = ours.graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in plugin.attribute}
    assert plugin.op_type == "group_norm_silu" and attributes["plugin_namespace"] == b"sdengine"
    assert (attributes["divisor"], attributes["most_positions"]) == (16, 16)
    for model in (native, ours):
        assert [port.name for port in model.graph.input] == ["x0"]
        assert [port.name for port in model.graph.output] == ["y"]
        assert [tensor.name for tensor in model.graph.initializer] == ["x1", "x2"]
    shapes = ((2, 16, 4, 40), (2, 77, 4, 40), (2, 77, 4, 40))
    three = Case("attention", "bfloat16", (("scale", 0.125),), shapes)
    onnx.checker.check_model(single_node(three, NATIVE), full_check=True)
    assert [port.name for port in single_node(three, TRITON).graph.input] == ["x0", "x1", "x2"]


def test_a_large_normalisation_is_two_plugins() -> None:
    shapes = ((2, 320, 64, 96), (320,), (320,))
    attributes = (("epsilon", 1e-5), ("num_groups", 32))
    ours = single_node(Case("group_norm_silu", "float16", attributes, shapes), TRITON)
    first, second = ours.graph.node
    assert (first.op_type, second.op_type) == ("group_norm_statistics", "group_norm_silu_apply")
    assert list(first.input) == ["x0"] and list(second.output) == ["y"]
    assert list(second.input) == ["x0", "x1", "x2", *first.output]
    for node in (first, second):
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert found["divisor"] == found["most_positions"] == 64 * 96
        assert found["chunk"] == 64


CASES = [
    {"graphs": {"native": f"{n}-native", "triton": f"{n}-triton"}, "tensors": {"x0": [n], "y": [n]}}
    for n in range(3)
]


def test_candidates_are_built_and_timed_together() -> None:
    told: list[tuple[str, int, int]] = []
    timed: list[tuple[list[str], dict[str, list[int]]]] = []

    def build(path: str) -> str:
        if path == "1-triton":
            raise BuilderFailure("no")
        return f"engine of {path}"

    def timer(engines: Sequence[Any], tensors: dict[str, list[int]]) -> list[float]:
        timed.append((list(engines), tensors))
        if tensors["y"] == [2]:
            raise RuntimeError("fell off the bus")
        return [float(index) for index in range(len(engines))]

    def tell(*what: Any) -> bool:
        told.append(what)
        return True

    assert time_cases(CASES, build, timer, tell) == [
        {"native": {"ms": 0.0}, "triton": {"ms": 1.0}},
        {"native": {"ms": 0.0}, "triton": {"ms": None, "problem": "no"}},
        {
            "native": {"ms": None, "problem": "fell off the bus"},
            "triton": {"ms": None, "problem": "fell off the bus"},
        },
    ]
    assert timed[0] == (["engine of 0-native", "engine of 0-triton"], {"x0": [0], "y": [0]})
    assert told == [(PHASE, 0, 3), (PHASE, 1, 3), (PHASE, 2, 3)]


def test_timing_ends_when_nobody_listens() -> None:
    with pytest.raises(BuilderFailure, match="cancelled"):
        time_cases(CASES, lambda path: path, lambda engines, tensors: [1.0], lambda *_: False)
