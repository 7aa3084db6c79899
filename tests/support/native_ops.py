"""Run single operations of the native CPU runtime on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

Array = NDArray[Any]
LINE = 64


class Operation:
    """One operation with its maps side by side in an arena."""

    def __init__(self, kind: str, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.record: dict[str, Any] = {
            "kind": kind,
            "name": "tested",
            "maps": {},
            "weights": {},
            "numbers": {},
            "words": {},
            "lists": {},
        }
        self.arrays: dict[str, Array] = {}
        self.weights: dict[str, Array] = {}
        self._end = 0

    def map(
        self, role: str, shape: Sequence[int], *, dtype: str | None = None, stride: int = 0
    ) -> None:
        """Reserve a map [images,height,width,channels]."""
        images, height, width, channels = shape
        stride = stride or channels
        kind = dtype or self.dtype
        self.record["maps"][role] = {
            "offset": self._end,
            "type": kind,
            "images": images,
            "height": height,
            "width": width,
            "channels": channels,
            "stride": stride,
        }
        item = {"float32": 4, "bfloat16": 2, "int64": 8}[kind]
        self._end += -(-images * height * width * stride * item // LINE) * LINE

    def input(self, role: str, values: Array, *, stride: int = 0) -> None:
        """Reserve a map and fill it when the operation runs."""
        self.map(role, values.shape, stride=stride)
        self.arrays[role] = values

    def weight(self, role: str, values: Array) -> None:
        """Give a weight."""
        self.record["weights"][role] = role
        self.weights[role] = np.ascontiguousarray(values)

    def network(self, *, isa: str = "", threads: int = 2) -> _native.Network:
        """Put the network together and fill its inputs."""
        network = _native.Network([self.record], self.weights, threads, isa)
        for role, values in self.arrays.items():
            view = network.view(self.record["maps"][role])
            view[...] = to_bf16_bits(values) if view.dtype == np.uint16 else values
        return network

    def run(self, *, isa: str = "", threads: int = 2, output: str = "out") -> Array:
        """Return the output as fp32."""
        network = self.network(isa=isa, threads=threads)
        network.run()
        found: Array = to_float32(network.view(self.record["maps"][output])).copy()
        return found


def set_words(operation: Operation, words: Mapping[str, str]) -> None:
    """Set several words of the record."""
    operation.record["words"].update(words)


def activation(x: Array, name: str, *, dtype: str = "float32") -> Operation:
    """An activation as an operation of its own."""
    op = Operation("activation", dtype)
    op.input("x", x)
    op.map("out", x.shape)
    set_words(op, {"activation": name})
    return op


def add(a: Array, b: Array, scale: float, *, dtype: str = "float32") -> Operation:
    """a + scale * b."""
    op = Operation("add", dtype)
    op.input("a", a)
    op.input("b", b)
    op.map("out", a.shape)
    op.record["numbers"]["scale"] = scale
    return op


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    dtype: str = "float32",
    kind: str | None = None,
    activation: str = "none",
    residual: Array | None = None,
    per_image: Array | None = None,
    out_dtype: str | None = None,
    stride: int = 0,
) -> Operation:
    """x [n,h,w,k], weight [out_features,k] fp32."""
    op = Operation("linear", dtype)
    op.input("x", x, stride=stride)
    channels = weight.shape[0] // (2 if activation == "geglu" else 1)
    op.map("out", (*x.shape[:3], channels), dtype=out_dtype, stride=stride and channels + 8)
    if residual is not None:
        op.input("residual", residual)
    if per_image is not None:
        op.input("per_image", per_image)
    kind = kind or dtype
    packed, scales, sums, _ = _native.pack(kind, 0, [(weight.astype(np.float32), [])], False)
    op.weight("weight", packed)
    if kind in ("int8", "int16"):
        op.weight("scales", scales)
    if kind == "int8":
        op.weight("sums", sums)
    if bias is not None:
        op.weight("bias", bias.astype(np.float32))
    set_words(op, {"weight_kind": kind, "activation": activation})
    return op


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    dtype: str = "float32",
    kind: str | None = None,
    stride: int = 1,
    padding: int = 1,
    upsample: bool = False,
    out_size: tuple[int, int] | None = None,
    out_dtype: str | None = None,
    wraps: str = "none",
) -> Operation:
    """x [n,h,w,c], weight [out_features,c,k,k] fp32."""
    op = Operation("conv", dtype)
    op.input("x", x)
    n, h, w, _ = x.shape
    factor, kernel = 2 if upsample else 1, weight.shape[2]
    size = out_size or tuple(
        (side * factor + 2 * padding - kernel) // stride + 1 for side in (h, w)
    )
    op.map("out", (n, *size, weight.shape[0]), dtype=out_dtype)
    kind = kind or dtype
    packed, scales, _, _ = _native.pack(kind, 0, [(weight.astype(np.float32), [])], False)
    op.weight("weight", packed)
    if kind == "int16":
        op.weight("scales", scales)
    if bias is not None:
        op.weight("bias", bias.astype(np.float32))
    op.record["numbers"] = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "upsample": int(upsample),
    }
    set_words(op, {"weight_kind": kind, "activation": "none", "wraps": wraps})
    return op


def winograd(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    dtype: str = "float32",
    kind: str = "float32",
    tile: int = 4,
    upsample: bool = False,
    residual: Array | None = None,
    per_image: Array | None = None,
    activation: str = "none",
    wraps: str = "none",
) -> Operation:
    """x [n,h,w,c], weight [out_features,c,3,3] fp32."""
    op = Operation("winograd", dtype)
    op.input("x", x)
    n, h, w, _ = x.shape
    factor = 2 if upsample else 1
    op.map("out", (n, h * factor, w * factor, weight.shape[0]))
    if residual is not None:
        op.input("residual", residual)
    if per_image is not None:
        op.input("per_image", per_image)
    packed, scales, _, _ = _native.pack(kind, tile, [(weight.astype(np.float32), [])], False)
    op.weight("weight", packed)
    if kind == "int16":
        op.weight("scales", scales)
    if bias is not None:
        op.weight("bias", bias.astype(np.float32))
    op.record["numbers"] = {"tile": tile, "upsample": int(upsample)}
    set_words(op, {"weight_kind": kind, "activation": activation, "wraps": wraps})
    return op


def affine(
    x: Array, scale: Array, shift: Array, *, dtype: str = "float32", silu: bool = False
) -> Operation:
    """x [n,h,w,c], scale and shift [n,c]."""
    op = Operation("affine", dtype)
    op.input("x", x)
    op.map("out", x.shape)
    factors = np.concatenate([scale, shift], axis=1).astype(np.float32)
    op.map("factors", (x.shape[0], 1, 1, 2 * x.shape[3]), dtype="float32")
    op.arrays["factors"] = factors.reshape(x.shape[0], 1, 1, -1)
    set_words(op, {"activation": "silu" if silu else "none"})
    return op


def group_norm(
    x: Array,
    weight: Array,
    bias: Array,
    groups: int,
    *,
    dtype: str = "float32",
    epsilon: float = 1e-5,
    silu: bool = False,
) -> Operation:
    """x [n,h,w,c]."""
    op = Operation("group_norm", dtype)
    op.input("x", x)
    op.map("out", x.shape)
    op.weight("weight", weight.astype(np.float32))
    op.weight("bias", bias.astype(np.float32))
    op.record["numbers"] = {"groups": groups, "epsilon": epsilon}
    set_words(op, {"activation": "silu" if silu else "none"})
    return op


def layer_norm(
    x: Array, weight: Array, bias: Array, *, dtype: str = "float32", epsilon: float = 1e-5
) -> Operation:
    """x [n,h,w,c]."""
    op = Operation("layer_norm", dtype)
    op.input("x", x)
    op.map("out", x.shape)
    op.weight("weight", weight.astype(np.float32))
    op.weight("bias", bias.astype(np.float32))
    op.record["numbers"] = {"epsilon": epsilon}
    return op


def attention(
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    *,
    dtype: str = "float32",
    scale: float | None = None,
    causal: bool = False,
) -> Operation:
    """q [n,1,s,heads*d], k and v [n,1,t,heads*d]."""
    op = Operation("attention", dtype)
    for role, values in (("q", q), ("k", k), ("v", v)):
        op.input(role, values)
    op.map("out", q.shape)
    head_dim = q.shape[3] // heads
    op.record["numbers"] = {
        "heads": heads,
        "scale": head_dim**-0.5 if scale is None else scale,
        "causal": int(causal),
    }
    return op
