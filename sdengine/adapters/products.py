"""Products: the difference of a weight that each kind of adapter holds in a few small tensors.

W is [out, in] or [out, in, k, k]; r is the rank. Everything is checked by shape before a number is
read, so that no file asks for more memory than a weight takes.

Source: "LoRA" (Hu et al. 2021), section 4.1; "FedPara" (Hyeon-Woo et al. 2022), section 2, for LoHa
and the forms with a core; "KronA" (Edalati et al. 2022) for LoKr; the layouts that LyCORIS writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.storage.tensor_file import to_float32

Array = NDArray[Any]
Shape = tuple[int, ...]
Parts = Mapping[str, Array]
_LEAST_RANK = 1024  # that is never too much for a form with a core


class UnfittingError(ValueError):
    """Report parts that do not fit each other; the message says how."""


@dataclass(frozen=True)
class Product:
    """A kind of adapter.

    Args:
        name: of the kind.
        parts: of a change that are all of this kind.
        rank: of the parts, by which alpha is divided; None where they have none.
        shape: of the difference, from the parts and the shape of the weight's kernel.
        compute: the difference in fp32, of that shape.
    """

    name: str
    parts: frozenset[str]
    rank: Callable[[Parts], int | None]
    shape: Callable[[Parts, Shape], Shape]
    compute: Callable[[Parts, Shape], Array]


def _lora_rank(parts: Parts) -> int:
    return int(parts["down"].shape[0])


def _lora_shape(parts: Parts, _: Shape) -> Shape:
    up, down, mid = _need(parts, "up", 2), _need(parts, "down", 2), parts.get("mid")
    if any(n != 1 for n in up.shape[2:]):
        raise UnfittingError(f"up is {list(up.shape)}, not [out, rank] or [out, rank, 1, 1]")
    if mid is None:
        _same(up.shape[1], down.shape[0], "the ranks of up and down")
        return (up.shape[0], *down.shape[1:])
    _core(mid, up.shape[1], down.shape[0], up.shape[0], down.shape[1])
    if any(n != 1 for n in down.shape[2:]):
        raise UnfittingError(f"down is {list(down.shape)} beside a mid")
    return (up.shape[0], down.shape[1], *mid.shape[2:])


def _lora(parts: Parts, kernel: Shape) -> Array:
    up, down = (_matrix(parts[name]) for name in ("up", "down"))
    shape = _lora_shape(parts, kernel)
    if "mid" in parts:
        return _with_core(to_float32(parts["mid"]), up.T, down)
    return _native.low_rank_product(up, down).reshape(shape)


def _loha_rank(parts: Parts) -> int:
    return int(parts["hada_w1_b"].shape[0])


def _loha_shape(parts: Parts, kernel: Shape) -> Shape:
    first, second = (_loha_factor_shape(parts, n, kernel) for n in "12")
    if first != second:
        raise UnfittingError(f"its factors are {list(first)} and {list(second)}")
    return first


def _loha_factor_shape(parts: Parts, number: str, kernel: Shape) -> Shape:
    a, b = (_need(parts, f"hada_w{number}_{side}", 2, 2) for side in "ab")
    core = parts.get(f"hada_t{number}")
    if core is None:
        _same(a.shape[1], b.shape[0], f"the ranks of hada_w{number}_a and hada_w{number}_b")
        return (a.shape[0], *_unrolled(b.shape[1], kernel))
    _core(core, a.shape[0], b.shape[0], a.shape[1], b.shape[1])
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _loha(parts: Parts, kernel: Shape) -> Array:
    factors = []
    for number in "12":
        a, b = (to_float32(parts[f"hada_w{number}_{side}"]) for side in "ab")
        core = parts.get(f"hada_t{number}")
        made = a @ b if core is None else _with_core(to_float32(core), a, b)
        factors.append(made.reshape(_loha_factor_shape(parts, number, kernel)))
    made_of_both: Array = factors[0] * factors[1]
    return made_of_both


def _lokr_rank(parts: Parts) -> int | None:
    low = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
    return None if low is None else int(low.shape[0])


def _lokr_shape(parts: Parts, kernel: Shape) -> Shape:
    for whole in ("lokr_w1", "lokr_w2"):
        if whole in parts and {f"{whole}_a", f"{whole}_b"} & parts.keys():
            raise UnfittingError(f"{whole} is there as a whole and in parts")
    if "lokr_t2" in parts and "lokr_w2" in parts:
        raise UnfittingError("lokr_t2 is beside a whole lokr_w2")
    first, second = _lokr_first_shape(parts), _lokr_second_shape(parts, kernel)
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _lokr_first_shape(parts: Parts) -> Shape:
    if "lokr_w1" in parts:
        return _need(parts, "lokr_w1", 2, 2).shape
    a, b = (_need(parts, f"lokr_w1_{side}", 2, 2) for side in "ab")
    _same(a.shape[1], b.shape[0], "the ranks of lokr_w1_a and lokr_w1_b")
    return (a.shape[0], b.shape[1])


def _lokr_second_shape(parts: Parts, kernel: Shape) -> Shape:
    if "lokr_w2" in parts:
        return _need(parts, "lokr_w2", 2).shape
    a, b = (_need(parts, f"lokr_w2_{side}", 2, 2) for side in "ab")
    core = parts.get("lokr_t2")
    if core is None:
        _same(a.shape[1], b.shape[0], "the ranks of lokr_w2_a and lokr_w2_b")
        return (a.shape[0], *_unrolled(b.shape[1], kernel))
    _core(core, a.shape[0], b.shape[0], a.shape[1], b.shape[1])
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _lokr(parts: Parts, kernel: Shape) -> Array:
    if "lokr_w1" in parts:
        first = to_float32(parts["lokr_w1"])
    else:
        first = to_float32(parts["lokr_w1_a"]) @ to_float32(parts["lokr_w1_b"])
    if "lokr_w2" in parts:
        second = to_float32(parts["lokr_w2"])
    else:
        a, b = (to_float32(parts[f"lokr_w2_{side}"]) for side in "ab")
        core = parts.get("lokr_t2")
        second = a @ b if core is None else _with_core(to_float32(core), a, b)
        second = second.reshape(_lokr_second_shape(parts, kernel))
    return np.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def _full(part: str) -> Product:
    def compute(parts: Parts, _: Shape) -> Array:
        return to_float32(parts[part])

    name = "full difference" if part.startswith("diff") else "difference of a norm"
    return Product(
        name, frozenset({part}), lambda _: None, lambda parts, _: parts[part].shape, compute
    )


_LOHA_PARTS = {f"hada_w{n}_{side}" for n in "12" for side in "ab"} | {"hada_t1", "hada_t2"}
_LOKR_PARTS = {f"lokr_w{n}{side}" for n in "12" for side in ("", "_a", "_b")} | {"lokr_t2"}
# Of a module's matrix; of its vectors.
OF_MATRICES = (
    Product("LoRA", frozenset({"up", "down", "mid"}), _lora_rank, _lora_shape, _lora),
    Product("LoHa", frozenset(_LOHA_PARTS), _loha_rank, _loha_shape, _loha),
    Product("LoKr", frozenset(_LOKR_PARTS), _lokr_rank, _lokr_shape, _lokr),
    _full("diff"),
)
OF_VECTORS = {"diff_b": _full("diff_b"), "w_norm": _full("w_norm"), "b_norm": _full("b_norm")}


def _need(parts: Parts, name: str, least: int, most: int = 4) -> Array:
    if name not in parts:
        raise UnfittingError(f"{name} is missing")
    found = parts[name]
    if not least <= found.ndim <= most or 0 in found.shape:
        raise UnfittingError(f"{name} is {list(found.shape)}")
    return found


def _same(one: int, other: int, what: str) -> None:
    if one != other:
        raise UnfittingError(f"{what} are {one} and {other}")


def _core(core: Array, first: int, second: int, out: int, inner: int) -> None:
    if core.ndim < 2 or core.shape[:2] != (first, second):
        raise UnfittingError(f"the core is {list(core.shape)}, not [{first}, {second}, ...]")
    if max(first, second) > max(out, inner, _LEAST_RANK):
        raise UnfittingError(f"ranks of {first} and {second} for [{out}, {inner}]")


def _unrolled(columns: int, kernel: Shape) -> Shape:
    """Return the input channels and the kernel that the columns of a matrix stand for."""
    size = math.prod(kernel)
    if columns % size:
        raise UnfittingError(f"{columns} columns are no kernels of {list(kernel)}")
    return (columns // size, *kernel)


def low_rank(product: Product, parts: Parts) -> tuple[Array, Array] | None:
    """Return up [out,r] and down [r,k] fp32 of a product that is nothing but these two; else None.

    Their product is added up in fp32 in the order of r, as `_native.low_rank_product` does.
    """
    if product.name != "LoRA" or "mid" in parts:
        return None
    return _matrix(parts["up"]), _matrix(parts["down"])


def _matrix(tensor: Array) -> Array:
    values = to_float32(tensor)
    return np.ascontiguousarray(values.reshape(len(values), -1))


def _with_core(core: Array, a: Array, b: Array) -> Array:
    """Return [out, in, ...] from a core [i, j, ...], a [i, out] and b [j, in]."""
    first, second = core.shape[:2]
    kernel = core.shape[2:]
    made = (a.T @ core.reshape(first, -1)).reshape(a.shape[1], second, -1)
    made = made.swapaxes(1, 2) @ b  # [out, kernel, in]
    return np.ascontiguousarray(made.swapaxes(1, 2)).reshape(a.shape[1], b.shape[1], *kernel)
