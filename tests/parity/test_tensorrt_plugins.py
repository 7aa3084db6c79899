"""Plugins for TensorRT: accepted by its own validators, and launched as they say they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from onnx import helper
from support import interpreted  # noqa: F401  (skips where kernels are not interpreted)
from support.vendor_plugins import (
    DataType,
    ExprBuilder,
    IDimensionExpr,
    TensorFormat,
    load_vendor_plugins,
)
from tolerances import assert_close

from sdengine.compilers.tensorrt import plugin_parts
from sdengine.compilers.tensorrt.group_norm_plugins import group_norm_variants
from sdengine.compilers.tensorrt.plugin_parts import PluginTarget
from sdengine.compilers.tensorrt.plugins import attention_variants, register_plugins
from sdengine.errors import EngineBuildError
from sdengine.export.fused_functions import DOMAIN, OPERATORS
from sdengine.export.lowering import to_plugins
from sdengine.kernels import reference
from sdengine.kernels.compiling import CompiledKernel
from sdengine.kernels.launching import launch
from sdengine.kernels.targets import PORTABLE_SHARED_BYTES
from sdengine.kernels.variants import Specialisation

CC = 89
TARGET = PluginTarget(CC, 84)


@dataclass
class Vendor:
    """The vendor's module with our plugins, and what was compiled last."""

    plugin: Any
    registry: dict[str, Any]
    compiled: list[Specialisation]

    def desc(self, shape: tuple[int, ...], open_axes: tuple[int, ...] = ()) -> Any:
        """Describe an fp16 tensor; sizes on the open axes are no constants."""
        sizes = tuple(
            self.plugin.ShapeExpr(IDimensionExpr(size, axis not in open_axes))
            for axis, size in enumerate(shape)
        )
        made = self.plugin.TensorDesc(self.plugin.ShapeExprs.from_tuple(sizes), DataType.HALF)
        known = tuple(-1 if axis in open_axes else size for axis, size in enumerate(shape))
        made.shape = self.plugin.Shape(known)
        made.format = TensorFormat.LINEAR
        return made


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Vendor:
    plugin = load_vendor_plugins(monkeypatch)
    compiled: list[Specialisation] = []

    def remember(specialisation: Specialisation, cc: int, ptx_version: int) -> CompiledKernel:
        assert (cc, ptx_version) == (TARGET.cc, TARGET.ptx_version)
        compiled.append(specialisation)
        threads = 32 * specialisation.variant.num_warps
        return CompiledKernel("kernel", "ptx", b"", threads, 1234, 0, 0)

    monkeypatch.setattr(plugin_parts, "compile_kernel", remember)
    expressions = sys.modules["tensorrt.plugin._tensor"]
    monkeypatch.setattr(expressions.SymIntExpr, "_exprBuilder", ExprBuilder())
    register_plugins(plugin, TARGET)
    return Vendor(plugin, sys.modules["tensorrt.plugin._lib"].QDP_REGISTRY, compiled)


def run(vendor: Vendor, name: str, tensors: dict[str, torch.Tensor], descs: list[Any],
        attributes: tuple[Any, ...], tactic: int, out: torch.Tensor,
        shape: tuple[int, ...] | None = None) -> None:  # fmt: skip
    """Do what TensorRT would: launch the tactic's kernel with what the plugin passes.

    shape: of the output, which lies otherwise in memory where its layout is HWC8.
    """
    plugin = vendor.registry[f"sdengine::{name}"]
    outputs = [plugin.register_func(*descs, *attributes)]
    described = tuple(size._expr.value for size in outputs[0].shape_expr)
    assert described == tuple(shape or out.shape)
    code = plugin.aot_impl_func(*descs, *attributes, outputs, tactic)
    kernel_name, ptx, params, extra = code
    assert (kernel_name, ptx) == ("kernel", "ptx")
    assert isinstance(params, vendor.plugin.KernelLaunchParams)
    assert isinstance(extra, vendor.plugin.SymIntExprs)
    specialisation = vendor.compiled[-1]
    assert params.block_x._expr.value == 32 * specialisation.variant.num_warps
    assert params.shared_mem._expr.value == 1234
    grid = tuple(getattr(params, f"grid_{axis}")._expr.value for axis in "xyz")
    pointers = iter([*tensors.values(), out])
    integers = iter([extra[i]._expr.value for i in range(len(extra))])
    arguments = {
        argument: next(pointers) if kind.startswith("*") else next(integers)
        for argument, kind in specialisation.arguments
    }
    assert next(pointers, None) is None and next(integers, None) is None
    kinds = [kind.startswith("*") for _, kind in specialisation.arguments]
    num_inputs = len(tensors)
    # Inputs, then integers, then the output: the order in which TensorRT passes them.
    assert kinds == [True] * num_inputs + [False] * len(extra) + [True]
    launch(specialisation, grid, arguments)


def test_the_vendors_validators_accept_every_plugin(vendor: Vendor) -> None:
    pairs = ("group_norm_statistics", "group_norm_apply", "group_norm_silu_apply")
    assert set(vendor.registry) >= {f"sdengine::{name}" for name in (*OPERATORS, *pairs)}
    for name in (*OPERATORS, *pairs):
        plugin = vendor.registry[f"sdengine::{name}"]
        assert plugin.aot_impl_func is not None and plugin.autotune_func is not None
        assert plugin.num_outputs == 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "head_dim"),
    [(2, 70, 77, 3, 40), (1, 64, 64, 2, 64), (2, 33, 154, 1, 80), (1, 20, 20, 1, 160)],
)
def test_attention(
    vendor: Vendor, batch: int, queries: int, keys: int, heads: int, head_dim: int, causal: bool
) -> None:
    keys = queries if causal else keys
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn((batch, rows, heads, head_dim), generator=generator).half()
        for rows in (queries, keys, keys)
    )
    name = "causal_attention" if causal else "attention"
    descs = [vendor.desc(tuple(tensor.shape), (1,)) for tensor in (q, k, v)]
    heads_first = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    expected = reference.attention(
        heads_first[0], heads_first[1], heads_first[2], 0.2, causal
    ).transpose(1, 2)
    (offered,) = vendor.registry[f"sdengine::{name}"].autotune_func(*descs, 0.2, [descs[0]])
    variants = attention_variants(head_dim, causal, "float16", CC)
    assert offered._tactics == list(range(1, len(variants) + 1))
    for tactic in offered._tactics:
        out = torch.full(q.shape, torch.nan, dtype=torch.float16)
        run(vendor, name, {"q": q, "k": k, "v": v}, descs, (0.2,), tactic, out)
        assert vendor.compiled[-1].variant == variants[tactic - 1]
        assert_close("attention", "float16", out, expected)


def in_layout(map_: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a map as TensorRT would lay it out in memory."""
    return map_.permute(0, 2, 3, 1).contiguous() if layout == "HWC8" else map_.contiguous()


class Norm:
    """A group normalisation as a network's plugins get it: attributes, tensors, what is right."""

    def __init__(self, shape: tuple[int, ...], num_groups: int, silu: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(shape, generator=generator).half()
        self.weight, self.bias = (
            torch.randn(shape[1], generator=generator).half() for _ in range(2)
        )
        self.expected = reference.group_norm_silu(
            self.x, self.weight, self.bias, num_groups, 1e-5, silu
        )
        self.silu, self.num_groups = silu, num_groups

    def nodes(self, positions: list[int]) -> dict[str, dict[str, Any]]:
        """Return the attributes of the plugins that lowering makes, by name."""
        op = "group_norm_silu" if self.silu else "group_norm"
        shapes = [(2, self.x.shape[1], count, 1) for count in positions]
        options: dict[str, Any] = {"epsilon": 1e-5, "num_groups": self.num_groups}
        names = ["x", "weight", "bias"]
        node = helper.make_node(op, names, ["y"], name="norm", domain=DOMAIN, **options)
        graph = helper.make_graph([node], "one", [], [])
        made = to_plugins(helper.make_model(graph), lambda node: True, {"norm": shapes})
        ours = {"plugin_namespace", "plugin_version", "aot"}
        return {
            node.op_type: {
                a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in ours
            }
            for node in made.graph.node
        }


def ordered(names: tuple[str, ...], attributes: dict[str, Any]) -> tuple[Any, ...]:
    assert set(names) == set(attributes)
    return tuple(attributes[name] for name in names)


SINGLE = ("num_groups", "epsilon", "divisor", "most_positions")
STATISTICS = ("num_groups", "divisor", "most_positions", "chunk")
APPLY = ("num_groups", "epsilon", "divisor", "most_positions", "chunk")


@pytest.mark.parametrize(
    ("shape", "num_groups", "others", "silu"),
    [
        ((2, 32, 9, 7), 4, [63], False),
        ((1, 30, 16, 16), 3, [64, 256], True),
        ((1, 48, 4, 4), 3, [16, 20], True),
        ((1, 32, 4, 4), 2, [], False),  # sizes of the profiles not known
    ],
)
def test_group_norm(
    vendor: Vendor, shape: tuple[int, ...], num_groups: int, others: list[int], silu: bool
) -> None:
    norm = Norm(shape, num_groups, silu)
    ((name, attributes),) = norm.nodes(others).items()
    values = ordered(SINGLE, attributes)
    plugin = vendor.registry[f"sdengine::{name}"]
    descs = [vendor.desc(shape, (2, 3)), vendor.desc(shape[1:2]), vendor.desc(shape[1:2])]
    offered = plugin.autotune_func(*descs, *values, [descs[0]])
    layouts = [combination.layouts for combination in offered]
    assert layouts[0] == ["LINEAR"] * 4
    assert layouts[1:] == [["HWC8", "LINEAR", "LINEAR", "HWC8"]] * (shape[1] % 8 == 0)
    for combination in offered:
        layout = combination.layouts[0]
        known = group_norm_variants(
            shape[1], num_groups, "float16", CC, max(others, default=0), layout == "HWC8"
        )
        assert combination._tactics == list(range(1, len(known) + 1))
        descs[0].format = TensorFormat[layout]
        for tactic in combination._tactics:
            x = in_layout(norm.x, layout)
            out = torch.full(shape, torch.nan, dtype=torch.float16)
            laid = torch.full_like(x, torch.nan)
            tensors = {"x": x, "weight": norm.weight, "bias": norm.bias}
            run(vendor, name, tensors, descs, values, tactic, laid, out.shape)
            assert vendor.compiled[-1].variant == known[tactic - 1]
            aligned = "num_positions" in vendor.compiled[-1].aligned
            assert aligned == (others in ([64, 256], [16]))
            out = laid.permute(0, 3, 1, 2) if layout == "HWC8" else laid
            assert_close("group_norm_silu", "float16", out, norm.expected)


@pytest.mark.parametrize(
    ("shape", "num_groups", "others", "silu"),
    [
        ((2, 128, 18, 8), 2, [144, 512, 1024], False),  # fewer positions than another profile
        ((1, 188, 10, 9), 1, [90], True),  # channels that no 16 bytes hold whole
        ((1, 192, 10, 9), 1, [90], True),
    ],
)
def test_large_groups_are_shared_out_by_two_plugins(
    vendor: Vendor, shape: tuple[int, ...], num_groups: int, others: list[int], silu: bool
) -> None:
    norm = Norm(shape, num_groups, silu)
    nodes = norm.nodes(others)
    first, second = nodes
    assert first == "group_norm_statistics"
    assert second == ("group_norm_silu_apply" if silu else "group_norm_apply")
    options = ordered(STATISTICS, nodes[first]), ordered(APPLY, nodes[second])
    chunks = -(-shape[2] * shape[3] // nodes[first]["chunk"])
    assert 1 < chunks <= 128
    sizes = (shape[0], 2, chunks, num_groups)
    x_desc, moments_desc = vendor.desc(shape, (2, 3)), vendor.desc(sizes, (2,))
    moments_desc.dtype = DataType.FLOAT
    per_channel = [vendor.desc(shape[1:2]) for _ in range(2)]
    plugins = [vendor.registry[f"sdengine::{name}"] for name in nodes]
    offered = plugins[0].autotune_func(x_desc, *options[0], [moments_desc])
    applied = plugins[1].autotune_func(x_desc, *per_channel, moments_desc, *options[1], [x_desc])
    assert [c.layouts[0] for c in offered] == [c.layouts[0] for c in applied]
    assert [c.layouts[0] for c in offered] == ["LINEAR", "HWC8"][: 1 + (shape[1] % 8 == 0)]
    for combination in offered:
        assert combination.io_types == ["FP16|BF16", "FP32|FP32"]
        assert combination.layouts[1] == "LINEAR"
    for combination in applied:
        layout = combination.layouts[0]
        assert combination.layouts == [layout, "LINEAR", "LINEAR", "LINEAR", layout]
    # The builder may choose layout and tactic of each for itself.
    for summed in offered:
        moments = torch.full(sizes, torch.nan)
        x_desc.format = TensorFormat[summed.layouts[0]]
        tensors = {"x": in_layout(norm.x, summed.layouts[0])}
        run(vendor, first, tensors, [x_desc], options[0], summed._tactics[-1], moments)
        for combination in applied:
            layout = combination.layouts[0]
            x_desc.format = TensorFormat[layout]
            descs = [x_desc, *per_channel, moments_desc]
            x = in_layout(norm.x, layout)
            tensors = {"x": x, "weight": norm.weight, "bias": norm.bias, "moments": moments}
            laid = torch.full_like(x, torch.nan)
            tactic = combination._tactics[0]
            run(vendor, second, tensors, descs, options[1], tactic, laid, norm.x.shape)
            out = laid.permute(0, 3, 1, 2) if layout == "HWC8" else laid
            assert_close("group_norm_silu", "float16", out, norm.expected)


def test_every_network_has_tactics_under_the_portable_shared_memory() -> None:
    for cc in (80, 86, 89, 90, 100, 120):
        for dtype in ("float16", "bfloat16"):
            for head_dim in (40, 64, 80, 128, 160, 512):
                found = attention_variants(head_dim, False, dtype, cc)
                assert found
                assert all(v.shared_bytes < PORTABLE_SHARED_BYTES for v in found)
            for channels in (128, 320, 640, 960, 1280, 1920, 2560):
                assert len(group_norm_variants(channels, 32, dtype, cc)) >= 2
    assert attention_variants(48, False, "float16", 89) == ()


def test_open_sizes_and_other_types_are_refused(vendor: Vendor) -> None:
    plugin = vendor.registry["sdengine::attention"]
    descs = [vendor.desc((1, 64, 8, 40), (3,))] * 3
    with pytest.raises(EngineBuildError, match="open size on axis 3"):
        plugin.aot_impl_func(*descs, 0.2, [descs[0]], 1)
    descs = [vendor.desc((1, 64, 8, 40))] * 3
    descs[0].dtype = DataType.FLOAT
    with pytest.raises(EngineBuildError, match="asked for FLOAT"):
        plugin.aot_impl_func(*descs, 0.2, [descs[0]], 1)
