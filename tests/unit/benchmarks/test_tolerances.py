"""The comparison that the other tests rely on can fail."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import TOLERANCES, assert_close


def test_rows_are_ordered() -> None:
    for (what, _), (max_allowed, rms_allowed) in TOLERANCES.items():
        assert 0 < rms_allowed <= max_allowed and rms_allowed < 0.2
        # Single outputs of whole networks in eight bits may be far off, and so may the furthest of
        # many deviations that are known by draws.
        assert max_allowed < 0.2 or what in ("quantised network", "deviation of latents")


def test_accepts_small_errors_only() -> None:
    reference = np.linspace(-1, 1, 1000)
    assert_close("randn", "float32", reference * (1 + 1e-7), reference)
    one_off = reference.copy()
    one_off[3] += 1e-3
    with pytest.raises(AssertionError, match=r"largest relative error .* at \(3,\)"):
        assert_close("randn", "float32", one_off, reference)
    with pytest.raises(AssertionError, match="RMS relative error"):
        assert_close("randn", "float32", reference + 3e-6, reference)


def test_refuses_other_shapes_and_values_that_are_not_finite() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_close("randn", "float32", np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(AssertionError, match="1 values not finite"):
        assert_close("randn", "float32", np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(KeyError):
        assert_close("unknown", "float32", np.zeros(1), np.zeros(1))
