from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.request.request import MAX_SEED, Request, random_seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", b"bytes"),
        ("prompt", ["a", 3]),
        ("prompt", []),
        ("prompt", ("a",) * 257),
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
        ("seed", (1, -1)),
        ("seed", ()),
        ("guidance_rescale", 1.5),
        ("guidance_rescale", None),
        ("guidance_interval", None),
        ("guidance_interval", 0.5),
        ("guidance_interval", "0,1"),
        ("guidance_interval", (0.5,)),
        ("guidance_interval", (0.0, 0.5, 1.0)),
        ("guidance_interval", (0.5, 0.25)),
        ("guidance_interval", (-0.1, 1.0)),
        ("guidance_interval", (0.0, 1.1)),
        ("guidance_interval", (math.nan, 1.0)),
        ("guidance_interval", (0.0, math.nan)),
        ("guidance_interval", (0.0, math.inf)),
        ("guidance_interval", ("0", 1.0)),
        ("guidance_interval", (False, True)),
        ("eta", -0.1),
        ("s_noise", math.nan),
        ("s_churn", "1"),
        ("s_tmin", -1),
        ("s_tmax", math.inf),
        ("variation_seed", 1.5),
        ("variation_strength", 2),
        ("seed_width", 64),  # without seed_height
        ("noise", "gpu"),
        ("emphasis", None),
        ("clip_skip", 0),
        ("clip_skip", 13),
        ("original_size", (0, 64)),
        ("original_size", 64),
        ("crop", (-1, 0)),
        ("target_size", (64, 64, 64)),
        ("aesthetic_score", 101),
        ("negative_aesthetic_score", None),
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


@pytest.mark.parametrize(
    ("interval", "steps", "guided"),
    [
        ((0, 1), 4, [0, 1, 2, 3]),
        ((0, 1), 1, [0]),
        ((0.25, 0.75), 4, [1, 2]),  # half-open: step 1 is at 0.25, step 3 at 0.75
        ((0.26, 0.76), 4, [2, 3]),
        ((0.2, 0.8), 10, [2, 3, 4, 5, 6, 7]),
        ((0.3, 0.6), 10, [3, 4, 5]),
        ((0.7, 0.9), 10, [7, 8]),  # as written, however the fractions are rounded
        ((0.5, 0.5), 4, []),
        ((1, 1), 4, []),
        ((0.1, 0.2), 4, []),  # between two steps
        ((0.4, 1), 1, []),
    ],
)
def test_steps_inside_the_guidance_interval(
    interval: tuple[float, float], steps: int, guided: list[int]
) -> None:
    request = Request("a circle", steps=steps, guidance_interval=interval)
    assert list(request.guided_steps) == guided
    assert request.uses_guidance is bool(guided)
    assert request.is_guided_throughout is (interval == (0, 1))
    assert not replace(request, guidance_scale=1.0).uses_guidance


def test_a_guidance_interval_is_two_floats_and_says_what_it_accepts() -> None:
    assert Request("a", guidance_interval=[0, 1]).guidance_interval == (0.0, 1.0)  # type: ignore[arg-type]
    assert Request("a", guidance_interval=(np.float32(0.5), 1)).guidance_interval == (0.5, 1.0)
    told = r"guidance_interval: \(0.8, 0.2\) is not accepted; expected two numbers from 0 to 1, "
    with pytest.raises(ConfigError, match=f"{told}the first no more than the second"):
        Request("a", guidance_interval=(0.8, 0.2))


def test_one_value_an_image() -> None:
    request = Request(("a", "b", "c"), ("x", "y", "z"), seed=(5, 9, 2))
    assert request.batch_size == 3
    assert request.prompts == ("a", "b", "c")
    assert request.negative_prompts == ("x", "y", "z")
    assert request.seeds == (5, 9, 2)


def test_one_value_for_all_images() -> None:
    request = Request("a", "x", seed=5, batch_size=3)
    assert request.prompts == ("a", "a", "a")
    assert request.negative_prompts == ("x", "x", "x")
    assert request.seeds == (5, 6, 7)


def test_counts_must_agree() -> None:
    with pytest.raises(ConfigError, match="seed: 3 values for 2 images"):
        Request(("a", "b"), seed=(1, 2, 3))
    with pytest.raises(ConfigError, match="prompt: 2 values for 4 images"):
        Request(("a", "b"), batch_size=4)


def test_one_image_of_a_batch() -> None:
    request = Request(("a", "b"), seed=(5, 9), variation_seed=3, variation_strength=0.5)
    alone = request.only(1)
    assert (alone.prompt, alone.seed, alone.batch_size) == ("b", 9, 1)
    assert alone.variation_seed == 4
    assert Request("a", seed=5, batch_size=3).only(2).seed == 7


def test_variation_needs_its_seed() -> None:
    with pytest.raises(ConfigError, match="variation_seed"):
        Request("a", variation_strength=0.5)


def test_seed_size_needs_both_sides() -> None:
    with pytest.raises(ConfigError, match="seed_width, seed_height"):
        Request("a", seed_height=64)
    assert Request("a", seed_width=64, seed_height=128).seed_height == 128
