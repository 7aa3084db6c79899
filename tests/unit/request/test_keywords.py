"""What the keywords of `generate` become: aliases, and images of each prompt."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.errors import ConfigError
from sdengine.request.keywords import given_fields
from sdengine.request.request import Request


def request_of(prompt: Any, negative: Any = "", **options: Any) -> Request:
    return Request(**given_fields(prompt, negative, options))


def test_none_is_not_given() -> None:
    assert given_fields("a", "", {"steps": None, "seed": 0}) == {
        "prompt": "a",
        "negative_prompt": "",
        "seed": 0,
    }


def test_diffusers_name_of_steps() -> None:
    assert request_of("a", num_inference_steps=7) == Request("a", steps=7)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5, "num_inference_steps": 5},
        {"batch_size": 2, "num_images_per_prompt": 2},
    ],
)
def test_two_names_of_one_field(options: dict[str, int]) -> None:
    first, second = sorted(options, reverse=True)
    with pytest.raises(ConfigError, match=f"{second}, {first}|{first}, {second}"):
        request_of("a", **options)
    request_of("a", **{**options, first: None})


def test_images_of_one_prompt() -> None:
    assert request_of("a", num_images_per_prompt=3, seed=5) == Request("a", seed=5, batch_size=3)


def test_images_of_each_prompt_with_seeds_that_go_on() -> None:
    request = request_of(["a", "b", "c"], ["x", "y", "z"], num_images_per_prompt=2, seed=10)
    assert request.prompts == ("a", "a", "b", "b", "c", "c")
    assert request.negative_prompts == ("x", "x", "y", "y", "z", "z")
    assert request.seeds == (10, 11, 12, 13, 14, 15)
    one_each = request_of(["a", "b"], num_images_per_prompt=2, seed=[4, 3, 2, 1])
    assert one_each.seeds == (4, 3, 2, 1)
    assert one_each.negative_prompts == ("",) * 4
    assert request_of("a", ["x", "y"], num_images_per_prompt=2).prompts == ("a",) * 4


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"num_images_per_prompt": 0}, "num_images_per_prompt: 0"),
        ("a", {"num_images_per_prompt": 2.0}, "num_images_per_prompt: 2.0"),
        (["a"] * 200, {"num_images_per_prompt": 2}, "batch_size: 400"),
        (["a"] * 10**6, {"num_images_per_prompt": 256}, "batch_size: 256000000"),
        (["a", "b"], {"num_images_per_prompt": 2, "seed": [1, 2]}, "seed: 2 values for 4 images"),
        ("a", {"num_inference_steps": 0}, "steps: 0"),
        ("a", {"num_inference_step": 3}, "Did you mean num_inference_steps"),
        ("a", {"cfg_scale": 3}, "Did you mean guidance_scale"),
        ("a", {"cfg": 3}, "Did you mean guidance_scale"),
        ("a", {"generator": 3}, "'generator': a request has no such field"),
    ],
)
def test_refused(prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request_of(prompt, **options)
