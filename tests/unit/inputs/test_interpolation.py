"""Interpolation of maps against torch's, larger and smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdengine.inputs.interpolation import KINDS, interpolated


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((8, 12), (16, 24)),
        ((8, 12), (13, 31)),
        ((20, 33), (7, 12)),
        ((5, 5), (5, 9)),
        ((1, 3), (4, 2)),
    ],
    ids=str,
)
def test_as_torch(kind: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).standard_normal((2, 4, *old))
    mode = kind.removesuffix("_antialiased")
    options = {} if mode.startswith("nearest") else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps), size=new, mode=mode.replace("_", "-"),
        antialias=kind.endswith("antialiased"), **options,
    ).numpy()  # fmt: skip
    found = interpolated(maps, *new, kind)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)
    single = interpolated(maps.astype(np.float32), *new, kind)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [(20, 18), (5, 8), (8, 12)], ids=str)
@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_edges_that_meet_are_those_of_maps_laid_side_by_side(
    kind: str, new: tuple[int, int], axes: str
) -> None:
    maps = np.random.default_rng(1).standard_normal((2, 3, 8, 12))
    counts = [3 if axis in axes else 1 for axis in "yx"]
    sizes = [count * size for count, size in zip(counts, new, strict=True)]
    wide = interpolated(np.tile(maps, counts), sizes[0], sizes[1], kind)
    middle = tuple(
        slice(size, 2 * size) if count == 3 else slice(None)
        for count, size in zip(counts, new, strict=True)
    )
    part = (..., *middle)
    np.testing.assert_allclose(interpolated(maps, *new, kind, axes), wide[part], atol=1e-12)
