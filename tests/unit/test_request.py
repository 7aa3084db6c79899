from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.request import MAX_SEED, Request, random_seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", b"bytes"),
        ("prompt", ["a", "b"]),
        ("prompt", "\ud800"),
        ("prompt", "x" * 100_001),
        ("negative_prompt", 3),
        ("width", 100),
        ("width", 0),
        ("width", -8),
        ("width", 1 << 20),
        ("height", 64.0),
        ("height", "64"),
        ("height", True),
        ("steps", 0),
        ("steps", 10**9),
        pytest.param("steps", 10**5000, id="steps-huge"),
        ("steps", -1),
        ("steps", 2.5),
        ("guidance_scale", math.nan),
        ("guidance_scale", math.inf),
        ("guidance_scale", -math.inf),
        ("guidance_scale", -0.5),
        pytest.param("guidance_scale", 10**400, id="guidance_scale-huge"),
        ("guidance_scale", "7"),
        ("guidance_scale", None),
        ("guidance_scale", 1j),
        ("guidance_scale", True),
        ("sampler", 7),
        ("schedule", None),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("seed", "7"),
        ("seed", None),
        ("batch_size", 0),
        ("batch_size", 257),
        ("batch_size", None),
    ],
)
def test_invalid_field_is_named(field: str, value: Any) -> None:
    arguments = {"prompt": "a circle", field: value}
    with pytest.raises(ConfigError, match=field):
        Request(**arguments)


def test_size_error_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="96 and 104"):
        Request("a circle", width=100)


def test_numpy_numbers_become_plain() -> None:
    request = Request("a circle", steps=np.int64(3), guidance_scale=np.float32(2.5))
    assert type(request.steps) is int
    assert type(request.guidance_scale) is float


@pytest.mark.parametrize("seed", [0, 1, 2**32, MAX_SEED])
def test_every_seed_is_accepted(seed: int) -> None:
    assert Request("a circle", seed=seed).seed == seed


def test_seed_of_the_last_image_must_exist() -> None:
    assert Request("a circle", seed=MAX_SEED - 1, batch_size=2).seeds == (MAX_SEED - 1, MAX_SEED)
    with pytest.raises(ConfigError, match="seed"):
        Request("a circle", seed=MAX_SEED, batch_size=2)


def test_random_seeds_differ() -> None:
    seeds = {random_seed() for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_request_is_frozen_and_empty_prompt_is_one() -> None:
    request = Request("")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(("scale", "used"), [(0, False), (1, False), (1.01, True), (7.5, True)])
def test_guidance_at_one_is_none(scale: float, used: bool) -> None:
    assert Request("a circle", guidance_scale=scale).uses_guidance is used
