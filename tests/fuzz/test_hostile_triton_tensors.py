"""Whatever arrays a client of Triton Inference Server sends: requests, or a ConfigError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.triton_server import read_config

import sdengine
from sdengine.bundle.reader import open_bundle
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.serving.triton_repository import Export, config_text
from sdengine.serving.triton_requests import read_requests
from sdengine.serving.triton_settings import Settings, read_settings
from sdengine.serving.triton_tensors import Tensor, inputs_of, numpy_type

_WORDS = st.sampled_from(["", "a", "euler", "DDIMScheduler", "karras", "a AND b", "[a:b:0.5]", "("])
_TEXTS = st.one_of(st.text(max_size=9).map(str.encode), st.just(b"\xff"))
_NUMBERS = st.one_of(
    st.integers(-3, 300), st.sampled_from([-(2**31), 2**31 - 1, 64, 128, 129, 4096, 16384])
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as loaded:
        yield loaded


def _settings(max_batch: int) -> Settings:
    manifest = open_bundle("demo", verify="size").manifest
    text = config_text(Export(max_batch=max_batch), manifest)
    return read_settings(json.dumps(read_config(text)))


_SETTINGS = {count: _settings(count) for count in (0, 4)}


def _elements(tensor: Tensor) -> st.SearchStrategy[Any]:
    if tensor.data_type == "TYPE_STRING":
        return st.one_of(_WORDS.map(str.encode), _TEXTS)
    if tensor.data_type == "TYPE_FP32":
        return st.floats(width=32)
    if tensor.data_type == "TYPE_INT64":
        return st.integers(-(2**63), 2**63 - 1)
    return _NUMBERS


def _array(tensor: Tensor, rows: int | None) -> st.SearchStrategy[Any]:
    """Arrays of the shapes that the server lets pass."""
    dims = tensor.dims_of(rows is not None)
    sizes = [st.integers(0, 9) if dim == -1 else st.just(dim) for dim in dims]
    shapes = st.tuples(*([] if rows is None else [st.just(rows)]), *sizes)
    kind = numpy_type(tensor.data_type)
    if tensor.data_type == "TYPE_UINT8":
        return shapes.map(lambda shape: np.zeros(shape, np.uint8))

    def filled(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
        count = int(np.prod(shape))

        def make(values: list[Any]) -> Any:
            array = np.empty(count, kind)
            array[:] = values
            return array.reshape(shape)

        return st.lists(_elements(tensor), min_size=count, max_size=count).map(make)

    return shapes.flatmap(filled)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    max_batch = draw(st.sampled_from(sorted(_SETTINGS)))
    rows = draw(st.integers(1, max_batch)) if max_batch else None
    prompt, *others = inputs_of(max_batch > 0)
    chosen = draw(st.lists(st.sampled_from(others), unique=True, max_size=5))
    return max_batch, {one.field: draw(_array(one, rows)) for one in (prompt, *chosen)}


@settings(max_examples=300)
@given(_requests())
def test_only_config_errors_come_out(engine: Engine, made: tuple[int, dict[str, Any]]) -> None:
    max_batch, arrays = made
    settings = _SETTINGS[max_batch]
    try:
        requests = read_requests(arrays, engine, settings)
    except ConfigError:
        return
    assert len(requests) == len(arrays["prompt"]) if max_batch else len(requests) <= 16
    for request in requests:
        assert request.batch_size == 1
        assert request.width * request.height <= settings.limits.max_pixels
