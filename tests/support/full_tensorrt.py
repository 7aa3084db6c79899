"""Let builds find a stand-in for full TensorRT and a GPU that is none; see `fake_builder`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sdengine import _native
from sdengine.storage.cache_place import cache_dir

PLACE = Path(__file__).parent / "fake_builder"
GPU = "NVIDIA GeForce RTX 4090"


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, **options: Any) -> None:
    """Put the stand-ins into their places.

    Args:
        monkeypatch: of the test.
        cache: an empty folder for what is kept, but for graphs, which are those of other tests.
        options: what the builder does; see `fake_builder/tensorrt`.
    """
    monkeypatch.syspath_prepend(str(PLACE))
    monkeypatch.setenv("PYTHONPATH", str(PLACE), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_TENSORRT", json.dumps(options))
    graphs = cache_dir("onnx")
    graphs.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("SDENGINE_CACHE", str(cache))
    cache.mkdir(parents=True)
    (cache / "onnx").symlink_to(graphs)
    monkeypatch.setattr(_native, "cuda_available", lambda: (True, "a GPU that is none"))
    described = {"name": GPU, "compute_capability": "8.9", "num_multiprocessors": 1}
    monkeypatch.setattr(_native, "cuda_device_info", lambda device=0: described)
