"""An engine that was warmed up loads nothing when requests of those kinds come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError, UnsupportedShapeError
from sdengine.loading import load


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("warm", "request_"),
    [
        ({}, {}),
        ({}, {"sampler": "euler_a", "steps": 7, "negative_prompt": "x", "noise": "cuda"}),
        ({"sizes": [(128, 64)]}, {"width": 128, "height": 64}),
        ({"batch": 5}, {"batch_size": 5}),
        ({"prompt_chunks": 3}, {"prompt": "a " * 160}),
        ({"guidance": False}, {"guidance_scale": 1.0}),
        ({"seamless": "xy"}, {"seamless": "xy"}),
    ],
)
def test_the_first_request_loads_nothing(
    engine: Engine, warm: dict[str, Any], request_: dict[str, Any]
) -> None:
    engine.warm_up(**warm)
    result = engine.generate(**{"prompt": "a circle", "seed": 1, **request_})
    assert result.timings.load_ms == 0


def test_several_sizes(engine: Engine) -> None:
    told: list[tuple[str, int, int]] = []
    engine.warm_up([(64, 64), (128, 64)], progress=lambda *what: told.append(what))
    assert told == [("64x64", 0, 2), ("128x64", 1, 2)]
    for width in (64, 128):
        assert engine.generate("a", width=width, height=64).timings.load_ms == 0


def test_the_demo_of_target_native() -> None:
    with sdengine.load("demo") as engine:
        engine.warm_up()
        assert engine.generate("a star", steps=2).timings.load_ms == 0


def test_what_would_not_be_kept_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"sizes, batch: 3 sizes, and 2 numbers of images"):
        engine.warm_up([(64, 64), (128, 64), (64, 128)], batch=3)


def test_both_numbers_of_rows_of_a_guidance_interval_stay_loaded(engine: Engine) -> None:
    """Chunks of two images and of one, each with the unconditional half and without."""
    for guidance in (True, False):
        engine.warm_up(batch=3, guidance=guidance)
    given: dict[str, Any] = {"batch_size": 3, "guidance_scale": 3.0}
    for _ in range(2):
        result = engine.generate("a", guidance_interval=(0.25, 0.75), **given)
        assert result.timings.load_ms == 0


def test_low_memory_keeps_nothing(tiny: Path) -> None:
    with load(tiny, low_memory=True) as engine, pytest.raises(ConfigError, match="low_memory"):
        engine.warm_up()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "sizes"),
        ({"sizes": 64}, "sizes: 64"),
        ({"sizes": [64]}, "sizes: 64"),
        ({"sizes": [(100, 64)]}, "multiple of 8"),
        ({"batch": 0}, "batch: 0"),
        ({"prompt_chunks": 41}, "prompt_chunks: 41"),
    ],
)
def test_bad_arguments(engine: Engine, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.warm_up(**arguments)


def test_a_size_of_no_bundle(engine: Engine) -> None:
    with pytest.raises(UnsupportedShapeError):
        engine.warm_up([(64, 128)])
