from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.triton_clients import MASK, PICTURE, RED, STAR, exported, message, one
from support.triton_server import Server

from sdengine.engine import Engine
from sdengine.request.request import Request

# What an input makes of a request, where that is not the field of its name with its value.
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "NEGATIVE_PROMPT": ("a ring", {"negative_prompt": "a ring"}),
    "SEED": (2**62, {"seed": 2**62}),
    "STEPS": (4, {"steps": 4}),
    "GUIDANCE_SCALE": (6.3, {"guidance_scale": 6.3}),
    "GUIDANCE_RESCALE": (0.7, {"guidance_rescale": 0.7}),
    "WIDTH": (192, {"width": 192, "height": 128}),
    "HEIGHT": (192, {"width": 128, "height": 192}),
    "SCHEDULER": ("EulerAncestralDiscreteScheduler", {"sampler": "euler_a", "schedule": "normal"}),
    "SAMPLER": ("DPM++ 2M Karras", {"sampler": "dpmpp_2m", "schedule": "karras"}),
    "SCHEDULE": ("exponential", {"schedule": "exponential"}),
    "ETA": (0.3, {"eta": 0.3, "sampler": "euler_a"}),
    "CLIP_SKIP": (2, {"clip_skip": 2}),
    "STRENGTH": (0.6, {"strength": 0.6}),
    "MASK_BLUR": (1.5, {"mask_blur": 1.5}),
}
ALSO: dict[str, dict[str, Any]] = {
    "ETA": {"SAMPLER": "euler_a"},
    "STRENGTH": {"IMAGE": PICTURE[None]},
    "MASK_BLUR": {"IMAGE": PICTURE[None], "MASK": MASK[None]},
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_that_of_the_request(batched: Server, name: str) -> None:
    value, wanted = VALUES[name]
    answer = batched.infer(**one(RED, **{**ALSO.get(name, {}), name: value}))
    ((metadata,),) = answer["METADATA"]
    found = json.loads(metadata)
    assert {key: found[key] for key in wanted} == wanted
    assert answer["IMAGES"].shape == (1, found["height"], found["width"], 3)


def test_no_input_is_left_untried(batched: Server) -> None:
    tried = {*VALUES, "PROMPT", "IMAGE", "MASK"}
    assert {one["name"] for one in batched.config["input"]} == tried


def test_a_batch_of_two_sizes_fits_into_no_tensor(batched: Server) -> None:
    found = batched.refused(PROMPT=[[RED], [RED]], WIDTH=[[128], [192]])
    assert message(found) == (
        "INVALID_ARG",
        "width, height: 128x128, 192x128; the pictures of a batch are of one size.",
    )


def test_texts_may_be_empty_where_a_default_is_meant(batched: Server) -> None:
    empty: dict[str, Any] = {
        name: "" for name in ("SAMPLER", "SCHEDULE", "SCHEDULER", "NEGATIVE_PROMPT")
    }
    answers = batched.infer_all([one(RED, 1, **empty), one(RED, 1), one(RED, 1)])
    first, second, _ = (answer["IMAGES"] for answer in answers if isinstance(answer, dict))
    np.testing.assert_array_equal(first, second)


def test_seeds_that_are_not_given_are_drawn_and_told(batched: Server, engine: Engine) -> None:
    for given in ({}, {"SEED": [[-1], [-1]]}):
        answer = batched.infer(PROMPT=[[RED], [RED]], STEPS=[[2], [2]], **given)
        first, second = answer["SEEDS"][:, 0].tolist()
        assert first != second
        again = engine.generate(RED, seed=second, steps=2).arrays[0]
        np.testing.assert_array_equal(answer["IMAGES"][1], again)


def test_without_batches_prompts_have_samples(unbatched: Server, engine: Engine) -> None:
    answer = unbatched.infer(
        PROMPT=[RED, STAR], NEGATIVE_PROMPT=["x", "y"], SAMPLES=[2], SEED=[5], STEPS=[2]
    )
    alone = engine.generate([RED, STAR], ["x", "y"], num_images_per_prompt=2, seed=5, steps=2)
    np.testing.assert_array_equal(answer["IMAGES"], np.stack(alone.arrays))
    assert answer["SEEDS"].tolist() == [5, 6, 7, 8]
    assert [Request.from_json(text) for text in answer["METADATA"]] == [
        alone.request.only(index) for index in range(4)
    ]
    answer = unbatched.infer(PROMPT=[RED], SAMPLES=[2], SEED=[9, 4], STEPS=[2])
    assert answer["SEEDS"].tolist() == [9, 4]
    answer = unbatched.infer(PROMPT=[RED], SAMPLES=[2], STEPS=[2])
    first, second = answer["SEEDS"].tolist()
    assert second == first + 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"PROMPT": []}, "prompt: there is none"),
        ({"PROMPT": [RED, RED], "NEGATIVE_PROMPT": ["a"] * 3}, "negative_prompt: 3 values for 2"),
        ({"PROMPT": [RED, RED], "SEED": [1, 2, 3]}, "seed: 3 values for 2 pictures"),
        ({"PROMPT": [RED], "SEED": []}, "seed: 0 values"),
        ({"PROMPT": [RED], "SAMPLES": [17]}, "samples: 17 is not accepted"),
        ({"PROMPT": [RED], "SAMPLES": [0]}, "samples: 0 is not accepted"),
        ({"PROMPT": [RED, RED], "SAMPLES": [9]}, "prompt, samples: '18 pictures'"),
        ({"PROMPT": [RED] * 17}, "prompt, samples: '17 pictures'"),
        ({"PROMPT": [RED], "SAMPLES": [2], "SEED": [2**63 - 1]}, "seed: 9223372036854775808"),
    ],
)
def test_counts_are_checked(
    unbatched: Server, runs: list[Request], given: dict[str, Any], told: str
) -> None:
    code, text = message(unbatched.refused(**given))
    assert (code, text[: len(told)]) == ("INVALID_ARG", told)
    assert not runs


def test_a_published_client_of_prompts_in_capitals(tmp_path: Path, engine: Engine) -> None:
    """It sends all seven inputs, `NONE` for no negative prompt, and reads fractions of 1."""
    with Server(exported(tmp_path, pixels="fp16")) as server:
        answer = server.infer(
            PROMPT=np.array([RED], object),
            NEGATIVE_PROMPT=np.array(["NONE"], object),
            SAMPLES=np.array([1], np.int32),
            SCHEDULER=np.array(["DPMSolverMultistepScheduler"], object),
            STEPS=np.array([4], np.int32),
            GUIDANCE_SCALE=np.array([7.5], np.float32),
            SEED=np.array([1024], np.int64),
        )
    pictures = (answer["IMAGES"] * 255).round().astype("uint8")
    alone = engine.generate(RED, seed=1024, steps=4, guidance_scale=7.5, sampler="dpmpp_2m")
    np.testing.assert_array_equal(pictures, np.stack(alone.arrays))


def test_a_published_client_of_prompts_in_small_letters(tmp_path: Path, engine: Engine) -> None:
    """It sends a batch of prompts alone, and squeezes what it gets."""
    with Server(exported(tmp_path, spelling="small", max_batch=1)) as server:
        answer = server.infer(prompt=np.array([RED], object).reshape(-1, 1))
        picture = np.squeeze(answer["generated_image"].astype(np.uint8))
        alone = engine.generate(RED, seed=int(answer["seeds"][0, 0])).arrays[0]
        np.testing.assert_array_equal(picture, alone)
        literal = server.infer(prompt=[[RED]], negative_prompt=[["NONE"]], steps=[[1]])
        assert json.loads(literal["metadata"][0, 0])["negative_prompt"] == "NONE"


def test_small_types_of_pixels_lose_nothing(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)
    for kind in (np.float16, np.float32):
        again = (levels.astype(np.float32) / 255).astype(kind) * 255
        np.testing.assert_array_equal(again.round().astype(np.uint8), levels)
