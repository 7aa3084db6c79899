"""Requests that are alike are run as one, and each gets what it would have got alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import make_tiny_bundle

from sdengine.engine import Engine
from sdengine.errors import ConfigError, UnsupportedShapeError
from sdengine.loading import load
from sdengine.pipeline.joining import join_key, joined, parted
from sdengine.request.request import Request


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    tiny = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


def asked(engine: Engine, prompt: str = "a circle", **options: Any) -> Request:
    given: dict[str, Any] = {"steps": 3, "seed": 5, "guidance_scale": 2.0, **options}
    return engine.request(prompt, **given)


def key_of(engine: Engine, request: Request) -> Hashable | None:
    return join_key(request, engine.plan(request))


def test_alike_requests_have_one_key(engine: Engine) -> None:
    keys = {
        key_of(engine, asked(engine, "a circle", seed=1)),
        key_of(engine, asked(engine, "b [square|star]", negative_prompt="red", seed=9)),
        key_of(engine, asked(engine, "c", batch_size=2)),
    }
    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4},
        {"guidance_scale": 3.0},
        {"guidance_rescale": 0.5},
        {"sampler": "euler"},
        {"schedule": "normal"},
        {"emphasis": "none"},
        {"prompt": "many words " * 60},
        {"seamless": "x"},
        {"prompt": "a AND b"},
    ],
)
def test_what_differs_in_more_has_another(engine: Engine, options: dict[str, Any]) -> None:
    key = key_of(engine, asked(engine, **options))
    assert key is not None
    assert key != key_of(engine, asked(engine))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a <lora:none:1>"},
        {"variation_strength": 0.1, "variation_seed": 2},
        {"batch_size": 5},
    ],
)
def test_some_run_alone(engine: Engine, options: dict[str, Any]) -> None:
    assert key_of(engine, asked(engine, **options)) is None


def test_each_gets_the_pictures_that_it_would_have_got_alone(engine: Engine) -> None:
    requests = [
        asked(engine, "a circle", seed=7),
        asked(engine, "b", negative_prompt="c", seed=1, batch_size=2),
        asked(engine, "", seed=[3]),
    ]
    check_alike(engine, requests)


def test_parts_joined_by_and_are_run_with_their_like(engine: Engine) -> None:
    requests = [
        asked(engine, "a circle AND b:0.5", seed=7),
        asked(engine, "c AND [d|e] AND_NOT", seed=1, guidance_scale=2.0),
        asked(engine, "c AND d:-1", negative_prompt="e", seed=1),
    ]
    check_alike(engine, requests)
    alone = [asked(engine, prompt, guidance_scale=1.0) for prompt in ("a AND b", "a")]
    assert key_of(engine, alone[0]) != key_of(engine, alone[1])


def check_alike(engine: Engine, requests: list[Request]) -> None:
    """See that requests may be joined, and that each then gets what it gets alone."""
    assert len({key_of(engine, request) for request in requests}) == 1
    results = parted(engine.run(joined(requests)), requests)
    for request, result in zip(requests, results, strict=True):
        alone = engine.run(request)
        assert result.request == alone.request
        assert len(result.arrays) == len(alone.arrays)
        for index, (one, other) in enumerate(zip(result.arrays, alone.arrays, strict=True)):
            assert np.array_equal(one, other)
            assert result.parameters(index) == alone.parameters(index)
            assert result.png(index) == alone.png(index)


def test_one_alone_stays_as_it_is(engine: Engine) -> None:
    request = asked(engine)
    assert joined([request]) is request
    result = engine.run(request)
    assert parted(result, [request]) == [result]
    with pytest.raises(ConfigError, match=r"requests: .* at least one"):
        joined([])


def test_what_cannot_run_is_refused_before(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="sampler"):
        key_of(engine, Request("a", sampler="nothing"))
    with pytest.raises(UnsupportedShapeError):
        key_of(engine, asked(engine, width=8192, height=8192))
