"""Requests and self-consistent foreign bundles through the whole engine: only SdengineError."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_bundle import make_tiny_bundle

from sdengine.backends.base import SessionOptions
from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import Bundle
from sdengine.engine import Engine
from sdengine.errors import SdengineError
from sdengine.loading import load
from sdengine.request.request import FIELDS, Request

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
OPTIONS = (
    *("width", "height", "guidance_scale", "sampler", "schedule", "seed", "negative_prompt"),
    *("num_inference_steps", "num_images_per_prompt", "clip_skip", "original_size"),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"), threads=1) as engine:
        yield engine


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(), negative=st.text(max_size=100))
def test_any_prompt(engine: Engine, prompt: str, negative: str) -> None:
    try:
        result = engine.generate(prompt, negative, steps=1)
    except SdengineError:
        return
    assert prompt in result.parameters()


@settings(max_examples=200, deadline=None)
@given(options=st.dictionaries(st.sampled_from(OPTIONS), ANYTHING), prompt=ANYTHING)
def test_any_argument(engine: Engine, options: dict[str, Any], prompt: Any) -> None:
    try:
        engine.generate(prompt, **{"num_inference_steps": 1, **options})
    except SdengineError:
        return
    assert isinstance(prompt, str)


@settings(max_examples=100, deadline=None)
@given(steps=ANYTHING, batch_size=ANYTHING)
def test_any_count(engine: Engine, steps: Any, batch_size: Any) -> None:
    try:
        planned = engine.stream("a circle", steps=steps, batch_size=batch_size)
        next(planned)
    except SdengineError:
        return
    assert steps is None or 1 <= steps <= 1000


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from([*FIELDS, "version"]) | st.text(), ANYTHING))
def test_any_json(fields: dict[str, Any]) -> None:
    content = {"version": 1, "prompt": "a", **fields}
    text = json.dumps(content, default=lambda value: value.hex())
    try:
        request = Request.from_json(text)
    except SdengineError as error:
        assert str(error).isprintable()
        return
    assert Request.from_json(request.to_json()) == request


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.binary())
def test_any_text_as_json(text: str | bytes) -> None:
    with pytest.raises(SdengineError):
        Request.from_json(text)


NUMBERS = st.integers(-2, 80) | st.sampled_from([10**6, 2**31, 2**40]) | st.floats()
WORDS = st.sampled_from(["batch", "height/8", "width", "sequence", "unet", "latents", "images", ""])
VALUES: st.SearchStrategy[Any] = (
    NUMBERS | WORDS | st.none() | st.lists(NUMBERS | WORDS, max_size=3) | st.just({})
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        found += places(value[key], (*at, key))
    return found


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_foreign_bundle_with_right_hashes(engine: Engine, data: st.DataObject) -> None:
    """Whoever makes a bundle also writes its hashes, so the content must not be believed."""
    content = json.loads(engine.bundle.manifest.model_dump_json())
    content["resolutions"] = [[64, 64]]
    mutated = copy.deepcopy(content)
    parts = [place for place in places(mutated) if place[0] in ("architecture", "networks")]
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(parts))
        owner = mutated
        try:
            for key in place[:-1]:
                owner = owner[key]
            owner[place[-1]] = data.draw(VALUES)
        except (LookupError, TypeError):
            continue
    try:
        manifest = Manifest.model_validate_json(json.dumps(mutated), strict=True)
    except ValueError:
        return
    try:
        bundle = Bundle(manifest, Path(engine.bundle.root))
        with Engine(bundle, engine.backend, SessionOptions("fp32", 1)) as other:
            other.generate("a circle", width=64, height=64, steps=2)
    except SdengineError:
        return
