"""Roofline model: what a U-Net's step costs a GPU by arithmetic, beside what the runtime adds.

    python benchmarks/roofline.py [--output DIR]

Nothing is measured: a network's operations are listed by running it on torch's meta device, and
each is given the longer of two times, of its arithmetic and of its bytes, plus that of a launch.
The figures of a GPU are its data sheet's. The model is optimistic (published engines take 1.5 to 2
times as long), so it says which change is worth making, not how fast anything is. Prints a Markdown
table and writes roofline.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdengine.benchmarks.accuracy_tables import roofline as as_markdown
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.bundle.tensors import resolve_shapes
from sdengine.models.configs import SD15, SDXL
from sdengine.models.contracts import unet_contract
from sdengine.models.network_contract import symbol_sizes
from sdengine.models.ops import TorchOps, set_ops
from sdengine.models.unet import UNet2DConditionModel, UNetConfig

NETWORKS = {"SD 1.5, 512": (SD15, 512), "SDXL, 1024": (SDXL, 1024)}
ROWS = 2
_HALF = 2  # bytes of a value in 16 bits
_TILE = 128
_LEAST_SUM = 512  # values that a tile sums at least
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm: 0, _aten.addmm: 1, _aten.bmm: 0}
# They only rename what is there.
_VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "expand", "slice"}
_VIEWS |= {"split", "select", "detach", "alias", "reshape", "squeeze", "arange", "split_with_sizes"}


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet.

    Args:
        flops: products in 16 bits with sums in 32, a second.
        memory, cache: bytes a second of its memory, and of its second-level cache.
        cache_bytes: a map below this stays in the cache.
        processors: multiprocessors, each of which computes one tile of a product at a time.
    """

    name: str
    flops: float
    memory: float
    cache: float
    cache_bytes: int
    processors: int


# Source: NVIDIA H100 Tensor Core GPU data sheet (SXM, dense). Its cache's bandwidth is not
# published; twice the memory's is assumed.
H100 = Gpu("H100", 989e12, 3.35e12, 6.7e12, 25 << 20, 132)
# What large tiles reach of the peak, and what a launch inside a graph takes.
_REACHED = 0.72
_LAUNCH, _FUSED_LAUNCH = 2e-6, 1.2e-6


@dataclass(frozen=True)
class Kernel:
    """One operation of a network.

    Args:
        name: torch's, or what it computes.
        kind: convolution, product, attention or pointwise.
        flops: its arithmetic.
        read, written: bytes.
        tiles: parts that multiprocessors compute one by one; 0 where that does not matter.
    """

    name: str
    kind: str
    flops: int
    read: int
    written: int
    tiles: int = 0

    def seconds(self, gpu: Gpu, launch: float) -> float:
        """Return the longer of its arithmetic and its bytes, and a launch."""
        arithmetic = 0.0
        if self.flops and self.kind != "pointwise":
            waves = math.ceil(self.tiles / gpu.processors)
            used = self.tiles / (waves * gpu.processors)
            arithmetic = self.flops / (gpu.flops * _REACHED * used)
        moved = self.read + self.written
        bandwidth = gpu.cache if moved < gpu.cache_bytes else gpu.memory
        return max(arithmetic, moved / bandwidth) + launch


class _Listed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """List the operations that run, with those of `fused` as one each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self._inside = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self._inside and name not in _VIEWS:
            self.kernels.append(_kernel(func.overloadpacket, args, out))
        return out

    def one(self, kernel: Kernel, compute: Callable[[], Any]) -> Any:
        """Run what counts as a single kernel."""
        self._inside += 1
        try:
            return compute()
        finally:
            self._inside -= 1
            self.kernels.append(kernel)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * _HALF
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return 0


def _tiles(rows: int, columns: int, inner: int, count: int = 1) -> int:
    """Return the tiles of some products; where few, each sums only a part of the inner values."""
    tiles = count * math.ceil(rows / _TILE) * math.ceil(columns / _TILE)
    return tiles * max(1, min(H100.processors // tiles, inner // _LEAST_SUM))


def _kernel(packet: Any, args: Sequence[Any], out: Any) -> Kernel:
    read, written = _bytes(args), _bytes(out)
    if packet is _aten.convolution:
        weight = args[1]
        pixels = out.shape[0] * out.shape[2] * out.shape[3]
        flops = 2 * pixels * weight.numel()
        return Kernel(
            "convolution",
            "convolution",
            flops,
            read,
            written,
            _tiles(pixels, out.shape[1], weight[0].numel()),
        )
    if packet in _PRODUCTS:
        left = args[_PRODUCTS[packet]]
        *_, rows, columns = out.shape
        count = out.shape[0] if out.ndim == 3 else 1
        flops = 2 * out.numel() * left.shape[-1]
        return Kernel(
            "product", "product", flops, read, written, _tiles(rows, columns, left.shape[-1], count)
        )
    return Kernel(packet.__name__, "pointwise", 0, read, written)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Kernel:
    batch, heads, length, width = q.shape
    flops = 4 * batch * heads * length * k.shape[2] * width
    tiles = _tiles(length, 1, 0, batch * heads)
    return Kernel("attention", "attention", flops, _bytes((q, k, v)), _bytes(q), tiles)


class _TorchKernels(TorchOps):
    """Attention is one kernel; all else is what torch runs."""

    def __init__(self, listed: _Listed) -> None:
        self.listed = listed

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal_mask: Tensor | None = None
    ) -> Tensor:
        """Count it, and give something of its shape."""
        out: Tensor = self.listed.one(_attention(q, k, v), lambda: torch.empty_like(q))
        return out


class _FusedKernels(_TorchKernels):
    """Every operation of the table is one kernel, as those of the `triton` backend are."""

    def group_norm(
        self,
        norm: nn.GroupNorm,
        x: Tensor,
        silu: bool = False,
        time_embedding: Tensor | None = None,
    ) -> Tensor:
        """Read twice, for the sums and to scale, and write once."""
        kernel = Kernel("group_norm", "pointwise", 0, 2 * _bytes(x), _bytes(x))
        out: Tensor = self.listed.one(kernel, lambda: torch.empty_like(x))
        return out

    def layer_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """Read and write once."""
        kernel = Kernel("layer_norm", "pointwise", 0, _bytes(x), _bytes(x))
        out: Tensor = self.listed.one(kernel, lambda: torch.empty_like(x))
        return out

    def add_layer_norm(
        self, norm: nn.LayerNorm, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read two, write two."""
        kernel = Kernel("add_layer_norm", "pointwise", 0, 2 * _bytes(x), 2 * _bytes(x))
        out: tuple[Tensor, Tensor] = self.listed.one(
            kernel, lambda: (torch.empty_like(x), torch.empty_like(x))
        )
        return out

    def geglu(self, projected: Tensor, inner: int) -> Tensor:
        """The product before it gates what it writes: half of that, and no kernel."""
        before = self.listed.kernels.pop()
        half = replace(before, written=before.written // 2)
        out: Tensor = self.listed.one(half, lambda: projected[..., :inner])
        return out


def list_kernels(config: UNetConfig, size: int, *, fused: bool, rows: int = ROWS) -> list[Kernel]:
    """Return the operations of one evaluation of a U-Net.

    Args:
        config: of the U-Net.
        size: side of the picture in pixels.
        fused: with what the kernels here and epilogues of products take in, else as torch runs it.
        rows: of the batch; two with guidance.
    """
    with torch.device("meta"):
        model = UNet2DConditionModel(config).to(torch.float16)
        contract = unet_contract(model, controlnet=False)
        shapes = resolve_shapes("unet", contract.inputs, symbol_sizes(rows, size, size))
        inputs = [torch.empty(shapes[spec.name], dtype=torch.float16) for spec in contract.inputs]
    listed = _Listed()
    set_ops(model, (_FusedKernels if fused else _TorchKernels)(listed))
    with torch.no_grad(), listed:
        contract.module(*inputs)
    return _with_epilogues(listed.kernels) if fused else listed.kernels


def _with_epilogues(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Let a product or convolution add the residual that follows it: only that is read more."""
    found: list[Kernel] = []
    for kernel in kernels:
        if kernel.name == "add" and found and found[-1].kind in ("convolution", "product"):
            last = found[-1]
            found[-1] = replace(last, read=last.read + kernel.read - last.written)
        else:
            found.append(kernel)
    return found


def summary(kernels: Sequence[Kernel], gpu: Gpu, *, fused: bool) -> dict[str, Any]:
    """Return counts, TFLOP by kind, gigabytes and the model's milliseconds of one evaluation."""
    launch = _FUSED_LAUNCH if fused else _LAUNCH
    kinds = dict.fromkeys(("convolution", "product", "attention"), 0.0)
    for kernel in kernels:
        if kernel.kind in kinds:
            kinds[kernel.kind] += kernel.flops / 1e12
    flops = sum(kinds.values())
    return {
        "kernels": len(kernels),
        "tflop": {kind: round(value, 3) for kind, value in kinds.items()},
        "gigabytes": round(sum(k.read + k.written for k in kernels) / 1e9, 3),
        "least_ms": round(flops * 1e15 / gpu.flops, 2),
        "model_ms": round(1e3 * sum(kernel.seconds(gpu, launch) for kernel in kernels), 2),
    }


def model_networks() -> dict[str, Any]:
    """Return the model of every network, as torch runs it and fused."""
    return {
        label: {
            "torch": summary(list_kernels(model.unet, size, fused=False), H100, fused=False),
            "fused": summary(list_kernels(model.unet, size, fused=True), H100, fused=True),
        }
        for label, (model, size) in NETWORKS.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args(arguments)
    networks = model_networks()
    figures = {"gpu": H100.name, "rows": ROWS, "reached": _REACHED, "networks": networks}
    record = stamped(figures, "torch")
    print(as_markdown(record))
    write_record(record, options.output / "roofline.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
