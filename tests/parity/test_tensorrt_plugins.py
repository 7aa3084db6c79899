"""Plugins for TensorRT: accepted by its own validators, and launched as they say they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import interpreted  # noqa: F401  (skips where kernels are not interpreted)
from support.vendor_plugins import DataType, ExprBuilder, IDimensionExpr, load_vendor_plugins
from tolerances import assert_close

from sdengine.compilers.tensorrt import plugins as tensorrt_plugins
from sdengine.compilers.tensorrt.plugins import (
    PluginTarget,
    attention_variants,
    group_norm_variants,
    register_plugins,
)
from sdengine.errors import EngineBuildError
from sdengine.export.fused_functions import OPERATORS
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

    monkeypatch.setattr(tensorrt_plugins, "compile_kernel", remember)
    expressions = sys.modules["tensorrt.plugin._tensor"]
    monkeypatch.setattr(expressions.SymIntExpr, "_exprBuilder", ExprBuilder())
    register_plugins(plugin, TARGET)
    return Vendor(plugin, sys.modules["tensorrt.plugin._lib"].QDP_REGISTRY, compiled)


def run(vendor: Vendor, name: str, tensors: dict[str, torch.Tensor], descs: list[Any],
        attributes: tuple[Any, ...], tactic: int, out: torch.Tensor) -> None:  # fmt: skip
    """Do what TensorRT would: launch the tactic's kernel with what the plugin passes."""
    plugin = vendor.registry[f"sdengine::{name}"]
    outputs = [plugin.register_func(*descs, *attributes)]
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
    assert set(vendor.registry) >= {f"sdengine::{name}" for name in OPERATORS}
    for name in OPERATORS:
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


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("shape", "num_groups"), [((2, 64, 9, 7), 8), ((1, 30, 16, 16), 3)])
def test_group_norm(vendor: Vendor, shape: tuple[int, ...], num_groups: int, silu: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).half()
    weight, bias = (torch.randn(shape[1], generator=generator).half() for _ in range(2))
    name = "group_norm_silu" if silu else "group_norm"
    descs = [vendor.desc(shape, (2, 3)), vendor.desc(shape[1:2]), vendor.desc(shape[1:2])]
    expected = reference.group_norm_silu(x, weight, bias, num_groups, 1e-5, silu)
    plugin = vendor.registry[f"sdengine::{name}"]
    (offered,) = plugin.autotune_func(*descs, num_groups, 1e-5, [descs[0]])
    assert len(offered._tactics) == len(group_norm_variants(shape[1], num_groups, "float16", CC))
    for tactic in offered._tactics:
        out = torch.full(shape, torch.nan, dtype=torch.float16)
        tensors = {"x": x, "weight": weight, "bias": bias}
        run(vendor, name, tensors, descs, (num_groups, 1e-5), tactic, out)
        assert_close("group_norm_silu", "float16", out, expected)


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
