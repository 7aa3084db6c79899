"""Memory of packed weights: given back, or kept for the next ones while somebody asks for it."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray

from sdengine import _native

Array = NDArray[Any]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX's")
def test_spare_pages_of_the_parent_keep_nothing_in_a_child() -> None:
    spare = _native.SparePages()
    if (child := os.fork()) == 0:
        first = _native.own_pages(8 << 20)
        first.fill(1)
        del first
        os._exit(int(_native.own_pages(8 << 20)[:1].any()))  # 1 where it was kept
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    pages = _native.own_pages(8 << 20)
    pages.fill(1)
    del pages
    assert _native.own_pages(8 << 20)[:1].any()
    del spare


def test_spare_pages_last_as_long_as_who_keeps_them() -> None:
    process, size = psutil.Process(), 64 << 20

    def rss() -> int:
        return int(process.memory_info().rss)

    def filled(size: int) -> Array:
        found = _native.own_pages(size)
        found.fill(1)
        return found

    before, half = rss(), size // 2
    pages = [filled(size)]
    pages.clear()
    assert rss() - before < half
    spare = _native.SparePages()
    pages = [filled(size)]
    place = pages[0].ctypes.data
    pages.clear()
    assert rss() - before > half
    other = filled(half)  # too small for what is kept
    assert other.ctypes.data != place
    pages = [_native.own_pages(size - 1000)]
    assert pages[0].ctypes.data == place and pages[0][0] == 1
    pages.clear()
    del other, spare
    assert rss() - before < half
