"""Packed weights, and what is merged into them, are those of the plain definition to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.packing import interleave_gated
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

Array = NDArray[Any]
PANEL = 32
PER_WORD = {"float32": 1, "bfloat16": 2, "int16": 2, "int8": 4}
ISAS = _native.instruction_sets()


def draw(*shape: int, seed: int = 0, stored: str = "float32") -> Array:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    if stored == "bfloat16":
        return to_bf16_bits(values)
    return values.astype(stored)


def product(up: Array, down: Array) -> Array:
    """Return up [n, r] down [r, k], term by term in the order of r, each operation rounded."""
    total = np.zeros((len(up), down.shape[1]), np.float32)
    for q in range(len(down)):
        total = total + up[:, q, None] * down[q]
    return total


def merged(tensor: Array, terms: list[Any]) -> Array:
    total: Array = to_float32(tensor).reshape(len(tensor), -1).copy()
    for term in terms:
        if len(term) == 2:
            total += np.float32(term[1]) * term[0]
        else:
            up, down, scale, strength = term
            total += np.float32(strength) * (product(up, down) * np.float32(scale))
    return total.reshape(tensor.shape)


def transformed(kernels: Array, tile: int) -> Array:
    """Return [rows, points, channels] of [rows, channels, 3, 3], in fp64 and rounded to fp32."""
    a, b = (2 / 3, 4 / 3) if tile == 4 else (1.0, None)
    if b is None:
        g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    else:
        of_a, of_b = 1 / (2 * a * a * (a * a - b * b)), 1 / (2 * b * b * (b * b - a * a))
        rows = [[1 / (a * a * b * b), 0, 0]]
        for of, x in ((of_a, a), (of_b, b)):
            rows += [[of, of * x, of * x * x], [of, -of * x, of * x * x]]
        g = np.array([*rows, [0, 0, 1]])
    w = kernels.astype(np.float64)
    half = [of[0] * w[:, :, 0] + of[1] * w[:, :, 1] + of[2] * w[:, :, 2] for of in g]
    made = [
        of[0] * one[:, :, 0] + of[1] * one[:, :, 1] + of[2] * one[:, :, 2]
        for one in half
        for of in g
    ]
    return np.stack(made, axis=1).astype(np.float32)


def rounded(kind: str, rows: Array) -> tuple[Array, Array, Array]:
    """Return the numbers that rows [n, k] are stored as, what each counts, and their sums."""
    none = np.zeros(0)
    if kind == "float32":
        return rows, none, none
    if kind == "bfloat16":
        return to_bf16_bits(rows), none, none
    peak = np.abs(rows).max(axis=1)
    if kind == "int8":
        scale = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
        values = np.rint(rows / scale[:, None]).astype(np.int8)
        return values, scale, values.sum(axis=1, dtype=np.int32)
    squares = np.cumsum(rows.astype(np.float64) ** 2, axis=1)[:, -1]  # from left to right
    with np.errstate(divide="ignore"):
        factor = np.minimum(65000.0 / np.sqrt(squares), 32767.0 / peak.astype(np.float64))
        factor = np.where(peak > 0, factor, 0.0)
        scale = np.where(peak > 0, 1 / factor, 0.0).astype(np.float32)
    return np.rint(rows.astype(np.float64) * factor[:, None]).astype(np.int16), scale, none


def panels(kind: str, values: Array) -> Array:
    n, k = values.shape
    per = PER_WORD[kind]
    padded = np.zeros((-(-n // PANEL) * PANEL, -(-k // per) * per), values.dtype)
    padded[:n, :k] = values
    words = padded.reshape(-1, PANEL, padded.shape[1] // per, per).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(words).view(np.uint8).reshape(-1)


def padded(numbers: Array, n: int, dtype: Any) -> Array:
    made = np.zeros(-(-n // PANEL) * PANEL, dtype)
    made[: len(numbers)] = numbers
    return made


def reference(kind: str, tile: int, sources: list[Any], gated: bool) -> tuple[Array, Array, Array]:
    tensor = np.concatenate([merged(*source) for source in sources])
    if gated:
        tensor = interleave_gated(tensor)
    if tile:
        points = transformed(tensor, tile)
        n, count, channels = points.shape
        values, scale, _ = rounded(kind, points.reshape(-1, channels))
        values = values.reshape(n, count, channels)
        of_points = [panels(kind, values[:, i]) for i in range(count)]
        data = np.stack([one.reshape(-(-n // PANEL), -1) for one in of_points], axis=1)
        scales = np.zeros(0, np.float32)
        if kind == "int16":
            of_points = [padded(scale.reshape(n, count)[:, i], n, np.float32) for i in range(count)]
            scales = np.stack([one.reshape(-1, PANEL) for one in of_points], axis=1).reshape(-1)
        return data.reshape(-1), scales, np.zeros(0, np.int32)
    if tensor.ndim == 4:
        tensor = tensor.transpose(0, 2, 3, 1)
    rows = np.ascontiguousarray(tensor.reshape(len(tensor), -1))
    values, scale, sums = rounded(kind, rows)
    return (
        panels(kind, values),
        padded(scale, len(rows), np.float32) if len(scale) else np.zeros(0, np.float32),
        padded(sums, len(rows), np.int32) if kind == "int8" else np.zeros(0, np.int32),
    )


def low_rank(rows: int, rank: int, k: int, seed: int, scale: float, strength: float) -> Any:
    return draw(rows, rank, seed=seed), draw(rank, k, seed=seed + 1), scale, strength


SHAPES: dict[str, tuple[int, list[tuple[int, ...]], bool]] = {
    "matrix": (0, [(40, 37)], False),
    "wide": (0, [(33, 160)], False),
    "joined": (0, [(40, 64), (20, 64), (36, 64)], False),
    "gated": (0, [(64, 48)], True),
    "1x1": (0, [(32, 70, 1, 1)], False),
    "3x3": (0, [(35, 9, 3, 3)], False),
    "winograd 4": (4, [(40, 35, 3, 3)], False),
    "winograd 2": (2, [(33, 48, 3, 3)], False),
}


@pytest.mark.parametrize("kind", PER_WORD)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_is_the_definition_on_every_set(shape: str, kind: str) -> None:
    tile, shapes, gated = SHAPES[shape]
    if tile and kind not in ("float32", "int16"):
        with pytest.raises(ValueError, match="kind"):
            _native.pack(kind, tile, [(draw(*shapes[0]), [])], gated)
        return
    stored = ("float32", "float16", "bfloat16")
    plain: list[Any] = [(draw(*one, stored=stored[i % 3]), []) for i, one in enumerate(shapes)]
    changed: list[Any] = []
    for i, (tensor, _) in enumerate(plain):
        rows, k = len(tensor), tensor[0].size
        terms = [low_rank(rows, 7, k, i, 0.3, -1.7), (draw(rows, k, seed=9), 0.6)]
        terms += [low_rank(rows, 1, k, i + 20, 1.0, 1.0)]
        changed.append((tensor, [] if i == 1 else terms))
    plain[0][0].reshape(len(plain[0][0]), -1)[3] = 0  # a row of zeros has a scale of its own
    for sources in (plain, changed):
        wanted = reference(kind, tile, sources, gated)
        for isa in ISAS:
            *packed, is_finite = _native.pack(kind, tile, sources, gated, isa)
            found: list[Any] = packed
            assert is_finite
            for one, other in zip(found, wanted, strict=True):
                assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), isa


def test_halves_are_read_as_they_are() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.where(np.isfinite(halves), halves, np.float16(0)).reshape(32, -1)
    for isa in ISAS:
        data, *_ = _native.pack("float32", 0, [(finite, [])], False, isa)
        found = data.view(np.float32).reshape(-1, 32).T
        assert found.tobytes() == finite.astype(np.float32).tobytes()


@pytest.mark.parametrize(("n", "r", "k"), [(1, 1, 1), (5, 3, 17), (37, 32, 200)])
def test_a_product_is_added_up_in_its_order(n: int, r: int, k: int) -> None:
    up, down = draw(n, r), draw(r, k, seed=1)
    for isa in ISAS:
        assert _native.low_rank_product(up, down, isa).tobytes() == product(up, down).tobytes()


def test_a_sum_that_is_not_finite_is_told() -> None:
    tensor = draw(40, 16)
    for value in (np.nan, np.inf, 3e38):
        whole = np.zeros((40, 16), np.float32)
        whole[33, 5] = value
        assert not _native.pack("bfloat16", 0, [(tensor, [(whole, 2.0)])], False)[3]
    assert _native.pack("bfloat16", 0, [(tensor, [(np.zeros_like(tensor), 2.0)])], False)[3]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("int4", 0, [(draw(4, 4), [])], False), "kind"),
        (("float32", 3, [(draw(4, 4), [])], False), "tile"),
        (("float32", 4, [(draw(4, 4), [])], False), "3x3"),
        (("float32", 0, [], False), "rows"),
        (("float32", 0, [(draw(4, 4), []), (draw(4, 5), [])], False), "differ"),
        (("float32", 0, [(draw(4), [])], False), "shape"),
        (("float32", 0, [(draw(4, 4).astype(np.float64), [])], False), "float16"),
        (("float32", 0, [(draw(4, 8)[:, ::2], [])], False), "contiguous"),
        (("float32", 0, [(draw(40, 4), [])], True), "gated"),
        (("float32", 0, [(draw(4, 4), [(draw(4, 5), 1.0)])], False), "terms"),
        (("float32", 0, [(draw(4, 4), [(draw(4, 2), draw(3, 4), 1.0, 1.0)])], False), "up"),
        (("float32", 0, [(draw(4, 4), [(draw(4, 2),)])], False), "2 or 4"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _native.pack(*arguments)
