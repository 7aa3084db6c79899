"""Plugin nodes: which fused nodes of a network become plugins of full TensorRT, and why."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from sdengine.bundle.tensors import resolve_shapes
from sdengine.compilers.tensorrt.kernel_choice import (
    NATIVE,
    TRITON,
    Case,
    Choice,
    Group,
    Timing,
    choose,
    group_nodes,
    node_name,
    single_node,
)
from sdengine.errors import EngineBuildError
from sdengine.export.fused_functions import DOMAIN
from sdengine.export.fusion import FusionReport, fuse
from sdengine.export.static_shapes import fix_shapes

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork

_log = logging.getLogger(__name__)

AUTO = "auto"
KERNELS = (AUTO, NATIVE, TRITON)
_PLUGIN_DTYPES = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}

# Sends a job to the builder's process and returns its result.
Run = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class KernelPlan:
    """Which nodes become plugins.

    Args:
        plugins: their names.
        options: what the manifest says about it.
        summary: for the log.
        maps: by name of a node, the shape of its first input in each profile.
    """

    plugins: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    maps: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


def native_plan(reason: str = "") -> KernelPlan:
    """Return the plan without plugins, with the reason where they were not ruled out by name."""
    options = {"kernels": NATIVE}
    return KernelPlan(options={**options, "kernels_reason": reason} if reason else options)


def dtype_of(model: onnx.ModelProto) -> str | None:
    """Return what a network computes in, if plugins do too."""
    return _PLUGIN_DTYPES.get(model.graph.output[0].type.tensor_type.elem_type)


def supported_nodes(model: onnx.ModelProto, report: FusionReport, cc: int) -> frozenset[str]:
    """Return the fused nodes that there are plugins for, by name.

    Args:
        model: as `fuse` returns it.
        report: what `fuse` says about it.
        cc: compute capability times ten.
    """
    dtype = dtype_of(model)
    if dtype is None:
        return frozenset()
    channels = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    fused = [node for node in model.graph.node if node.domain == DOMAIN]
    return frozenset(node_name(n) for n in fused if _has_plugin(n, channels, report, dtype, cc))


def _has_plugin(
    node: onnx.NodeProto, channels: Mapping[str, int], report: FusionReport, dtype: str, cc: int
) -> bool:
    from sdengine.compilers.tensorrt.group_norm_plugins import group_norm_variants
    from sdengine.compilers.tensorrt.plugins import attention_variants

    if node.name in report.head_dims:
        causal = node.op_type == "causal_attention"
        return bool(attention_variants(report.head_dims[node.name], causal, dtype, cc))
    groups = next(a.i for a in node.attribute if a.name == "num_groups")
    return bool(group_norm_variants(channels[node.input[1]], groups, dtype, cc))


def measured_plan(
    network: ExportedNetwork,
    model: onnx.ModelProto,
    supported: frozenset[str],
    profiles: Mapping[str, Mapping[str, int]],
    run: Run,
) -> KernelPlan:
    """Time both kernels of every node that has a plugin, and take the faster ones.

    Where measuring fails as a whole, no node becomes a plugin, and the plan says why.

    Args:
        network: the network.
        model: its graph, not fused.
        supported: names of the fused nodes that have a plugin.
        profiles: by name, the value of each symbol in the inputs' shapes.
        run: does a job in the builder's process.
    """
    dtype = dtype_of(model)
    if not supported or dtype is None:
        return native_plan("no node of the network has a plugin on this GPU in this precision")
    if find_spec("triton") is None:
        return native_plan("triton, which compiles plugins, is not installed")
    groups = _groups(network, model, supported, profiles, dtype)
    try:
        choices = choose(groups, lambda cases: _measure(cases, run))
    except EngineBuildError as error:
        _log.warning(
            "%s: kernels were not timed, so none becomes a plugin: %s", network.name, error
        )
        return native_plan(f"timing failed: {str(error).splitlines()[0][:300]}")
    return KernelPlan(
        frozenset(name for c in choices if c.chosen == TRITON for name in c.group.nodes),
        {
            "kernels": AUTO,
            "kernel_choices": [choice.to_record(list(profiles)) for choice in choices],
        },
        _summary(network.name, choices),
        _maps(groups),
    )


def forced_plan(
    network: ExportedNetwork,
    model: onnx.ModelProto,
    supported: frozenset[str],
    profiles: Mapping[str, Mapping[str, int]],
) -> KernelPlan:
    """Make every node a plugin that can be one; arguments as of `measured_plan`."""
    dtype = dtype_of(model)
    groups = [] if dtype is None else _groups(network, model, supported, profiles, dtype)
    return KernelPlan(supported, {"kernels": TRITON}, maps=_maps(groups))


def _groups(
    network: ExportedNetwork,
    model: onnx.ModelProto,
    supported: frozenset[str],
    profiles: Mapping[str, Mapping[str, int]],
    dtype: str,
) -> list[Group]:
    graphs = [fuse(fix_shapes(model, _at(network, sizes)))[0] for sizes in profiles.values()]
    return group_nodes(graphs, dtype, lambda node: node_name(node) in supported)


def _maps(groups: Sequence[Group]) -> dict[str, Sequence[Sequence[int]]]:
    return {
        name: [case.shapes[0] for case in group.cases] for group in groups for name in group.nodes
    }


def _at(network: ExportedNetwork, sizes: Mapping[str, int]) -> ExportedNetwork:
    inputs, outputs = (
        tuple(replace(spec, shape=shapes[spec.name]) for spec in specs)
        for specs in (network.inputs, network.outputs)
        for shapes in (resolve_shapes(network.name, specs, sizes),)
    )
    return replace(network, inputs=inputs, outputs=outputs)


def _measure(cases: Sequence[Case], run: Run) -> dict[tuple[Case, str], Timing]:
    """Write the candidates' graphs and let the builder's process time them."""
    with tempfile.TemporaryDirectory(prefix="sdengine-kernels-") as folder:
        listed = []
        for index, case in enumerate(cases):
            graphs = {}
            for kernels in (NATIVE, TRITON):
                path = Path(folder) / f"{index}-{kernels}.onnx"
                onnx.save(single_node(case, kernels), path)
                graphs[kernels] = str(path)
            tensors = {
                f"x{number}": list(shape)
                for number, shape in enumerate(case.shapes)
                if len(shape) > 1
            }
            listed.append({"graphs": graphs, "tensors": {**tensors, "y": list(case.shapes[0])}})
        done = run({"task": "time", "cases": listed})
    return {
        (case, kernels): Timing(timing["ms"], timing.get("problem", ""))
        for case, result in zip(cases, done["results"], strict=True)
        for kernels, timing in result.items()
    }


def _summary(name: str, choices: Sequence[Choice]) -> str:
    total = sum(len(choice.group.nodes) for choice in choices)
    ours = sum(len(choice.group.nodes) for choice in choices if choice.chosen == TRITON)
    return f"{name}: {ours} of {total} nodes that have a plugin are faster as one"
