from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator

# Before any import of what reads them: nothing is downloaded, and small networks are faster alone.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton decides at its import, which others may do, whether it compiles for a GPU or interprets.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

# The same cases each time, so that a failure belongs to the change under test. Cases that nobody
# has seen yet: pytest --hypothesis-profile=random tests/fuzz
settings.register_profile("tests", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("tests")

# What tests build is kept for the other tests, also for those of xdist's other workers, and not for
# the user.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="sdengine-tests-")
    os.environ["SDENGINE_CACHE"] = _CACHE.name
    os.environ["SDENGINE_CACHE_LIMIT"] = "600MB"


@pytest.fixture(autouse=True, scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove what the fixtures of a file made: all of it together would fill a disk.

    Folders of tests, by their names, go when the test has passed.
    """
    base = tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    yield
    for folder in set(base.iterdir()) - before:
        if not folder.name.startswith("test_"):
            shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {"gpu": _missing_gpu(), "tensorrt": _missing_tensorrt()}
    for item in items:
        for marker, reason in missing.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_gpu() -> str | None:
    from sdengine import _native

    usable, reason = _native.cuda_available()
    return None if usable else f"no usable NVIDIA GPU: {reason}"


def _missing_tensorrt() -> str | None:
    for module in ("tensorrt_rtx", "tensorrt"):
        if importlib.util.find_spec(module) is not None:
            return None
    return "neither tensorrt_rtx nor tensorrt is installed"
