"""Conditionings that are kept: by their key, the latest within some bytes, and not written to."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.prompt.conditioning import Conditioning
from sdengine.prompt.kept_conditionings import KeptConditionings


def conditioning(floats: int, pooled: bool = False) -> Conditioning:
    embeds = np.zeros((1, 1, floats), np.float32)
    return Conditioning(embeds, np.zeros((1, 2), np.float32) if pooled else None)


def test_the_latest_that_fit_are_kept() -> None:
    kept = KeptConditionings(max_bytes=40)
    first, second, third = conditioning(2, pooled=True), conditioning(4), conditioning(4)
    kept.keep("first", first)  # 16 bytes
    kept.keep("second", second)
    assert kept.find("first") is first and kept.find("second") is second
    kept.find("first")
    kept.keep("third", third)
    assert kept.find("second") is None
    assert kept.find("first") is first and kept.find("third") is third
    kept.keep("large", conditioning(11))
    assert all(kept.find(key) is None for key in ("first", "third", "large"))
    kept.keep("second", second)
    kept.clear()
    assert kept.find("second") is None


def test_nobody_writes_to_what_is_kept() -> None:
    kept, one = KeptConditionings(), conditioning(2, pooled=True)
    kept.keep("one", one)
    assert one.pooled is not None
    for array in (one.prompt_embeds, one.pooled):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1
