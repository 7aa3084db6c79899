"""Regions in one arena: they overlap where they are not needed together."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine import _native


def test_regions_of_stages_that_never_meet_share_bytes() -> None:
    regions = [("text", 1000, 0, 0), ("unet", 3000, 1, 1), ("latents", 256, 0, 1)]
    size, offsets = _native.plan_regions(regions)
    assert size == 3072 + 256
    assert offsets == [0, 0, 3072]
    assert _native.plan_regions([]) == (0, [])


@pytest.mark.parametrize("alignment", [64, 256])
def test_regions_overlap_only_where_they_are_not_needed_together(alignment: int) -> None:
    rng = np.random.default_rng(0)
    regions = [
        (str(index), int(rng.integers(1, 9 * alignment)), int(first), int(first + rng.integers(6)))
        for index, first in enumerate(rng.integers(0, 40, 200))
    ]
    total, offsets = _native.plan_regions(regions, alignment)
    for index, (_, size, first, last) in enumerate(regions):
        assert offsets[index] % alignment == 0 and offsets[index] + size <= total
        for other, (_, other_size, other_first, other_last) in enumerate(regions[:index]):
            together = first <= other_last and other_first <= last
            apart = (
                offsets[index] + size <= offsets[other]
                or offsets[other] + other_size <= offsets[index]
            )
            assert apart or not together
    at_once = max(
        sum(-(-size // alignment) * alignment for _, size, a, b in regions if a <= moment <= b)
        for moment in range(50)
    )
    assert at_once <= total <= 1.3 * at_once


def test_the_smallest_gap_that_holds_a_region_is_taken() -> None:
    # At moment 0 three regions lie one after another; at 1 the first and the last are needed on.
    regions = [
        ("wide gap", 1024, 0, 0),
        ("low", 960, 0, 1),
        ("narrow gap", 640, 0, 0),
        ("high", 576, 0, 1),
        ("fits both", 512, 1, 1),
    ]
    total, offsets = _native.plan_regions(regions, 64)
    assert total == 1024 + 960 + 640 + 576
    assert offsets == [0, 1024, 1984, 2624, 1984]


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="is there twice"):
        _native.plan_regions([("a", 1, 0, 0), ("a", 1, 1, 1)])
    with pytest.raises(ValueError, match="ends before it begins"):
        _native.plan_regions([("a", 1, 1, 0)])
    with pytest.raises(ValueError, match="alignment: 48 is not accepted; expected a power of two"):
        _native.plan_regions([("a", 1, 0, 0)], 48)
