from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from support.triton_clients import MASK, PICTURE, RED, STAR, STEPS, message, one
from support.triton_server import Server

from sdengine.engine import Engine
from sdengine.errors import NonFiniteError, OutOfMemoryError
from sdengine.request.request import Request
from sdengine.serving import triton_model

LONG = "a cyan ring above a black cross, " + "a red circle, " * 30


def test_pictures_made_together_are_those_made_alone(
    batched: Server, engine: Engine, runs: list[Request]
) -> None:
    """Of any mixture of requests that the server puts into one batch."""
    given = [
        one(RED, 7, NEGATIVE_PROMPT="blurry"),
        one(STAR, 9),
        one(LONG, 3),
        one(f"{RED} AND {STAR}:0.5", 5),
        one(RED, 8, steps=4),
        one("[a red:a blue:0.5] circle on white", 2**40),
        one(LONG[:-3], 4, NEGATIVE_PROMPT="a ring"),
        one(f"<lora:style:1> {RED}", 6),
    ]
    answers = batched.infer_all(given)
    assert sorted(len(request.prompts) for request in runs) == [1, 1, 1, 2, 3]
    for inputs, answer in zip(given, answers, strict=True):
        assert isinstance(answer, dict)
        values = {name: value[0][0] for name, value in inputs.items()}
        alone = engine.generate(
            values["PROMPT"],
            values.get("NEGATIVE_PROMPT", ""),
            seed=values["SEED"],
            steps=values["STEPS"],
        )
        np.testing.assert_array_equal(answer["IMAGES"], alone.arrays[0][None])
        assert answer["SEEDS"].tolist() == [[values["SEED"]]]
        ((metadata,),) = answer["METADATA"]
        assert Request.from_json(metadata) == alone.request
        ((warnings,),) = answer["WARNINGS"]
        assert warnings.decode() == "\n".join(alone.warnings)
        assert ("<lora:style:1> is not applied" in warnings.decode()) == ("<" in values["PROMPT"])


def test_a_batch_of_one_client_has_its_own_rows(batched: Server, engine: Engine) -> None:
    answer = batched.infer(
        PROMPT=[[RED], [STAR]], NEGATIVE_PROMPT=[["x"], [""]], SEED=[[1], [1]], STEPS=[[2], [3]]
    )
    for index, (prompt, negative, steps) in enumerate([(RED, "x", 2), (STAR, "", 3)]):
        alone = engine.generate(prompt, negative, seed=1, steps=steps).arrays[0]
        np.testing.assert_array_equal(answer["IMAGES"][index], alone)


def test_without_guidance_parts_are_made_with_their_like(batched: Server, engine: Engine) -> None:
    """Parts joined by AND need a negative, which pictures of one part do not have there."""
    given = [one(prompt, 1, GUIDANCE_SCALE=1) for prompt in (RED, f"{RED} AND {STAR}", STAR)]
    for inputs, answer in zip(given, batched.infer_all(given), strict=True):
        assert isinstance(answer, dict)
        prompt = inputs["PROMPT"][0][0]
        alone = engine.generate(prompt, seed=1, steps=STEPS, guidance_scale=1).arrays[0]
        np.testing.assert_array_equal(answer["IMAGES"][0], alone)


def test_pictures_to_start_from(batched: Server, engine: Engine, runs: list[Request]) -> None:
    """Those that start from one picture are made together, others are not."""
    other = PICTURE[::-1].copy()
    given = [
        one(RED, 1, IMAGE=PICTURE[None], MASK=MASK[None]),
        one(STAR, 2, IMAGE=PICTURE[None], MASK=MASK[None]),
        one(RED, 3, IMAGE=other[None], MASK=MASK[None]),
    ]
    answers = batched.infer_all(given)
    assert [request.seeds for request in runs] == [(1, 2), (3,)]
    wanted = [(RED, 1, PICTURE), (STAR, 2, PICTURE), (RED, 3, other)]
    for answer, (prompt, seed, picture) in zip(answers, wanted, strict=True):
        assert isinstance(answer, dict)
        alone = engine.generate(prompt, seed=seed, steps=STEPS, image=picture, mask=MASK)
        np.testing.assert_array_equal(answer["IMAGES"][0], alone.arrays[0])
        np.testing.assert_array_equal(answer["IMAGES"][0][:, :64], picture[:, :64])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"STEPS": 0}, "steps: 0 is not accepted"),
        ({"STEPS": 151}, "steps: 151 is not accepted; expected at most 150, which max_steps"),
        ({"GUIDANCE_SCALE": -1}, "guidance_scale: -1.0"),
        ({"GUIDANCE_SCALE": np.array([[np.nan]], np.float32)}, "guidance_scale: nan"),
        ({"PROMPT": np.array([[b"\xff"]], object)}, "prompt: it is no text in UTF-8"),
        ({"PROMPT": "a" * 400_001}, "prompt: 400001 bytes"),
        ({"PROMPT": "a " * 100_000}, "prompt: 200000 characters"),
        ({"PROMPT": "a " * 49_000}, "prompt: 49000 tokens"),
        ({"SEED": -2}, "seed: -2"),
        ({"SAMPLER": "fast"}, "sampler: 'fast'"),
        ({"SAMPLER": "euler", "SCHEDULER": "DDIMScheduler"}, "scheduler, sampler: both"),
        ({"SCHEDULE": "steep"}, "schedule: 'steep'"),
        ({"WIDTH": 100}, "width: 100"),
        ({"WIDTH": 520, "HEIGHT": 512}, "width, height: '520x512'"),
        ({"WIDTH": 8192}, "width, height: '8192x128'"),
        ({"WIDTH": -8, "HEIGHT": -8}, "width: -8"),
        ({"WIDTH": 2**31 - 1, "HEIGHT": 2**31 - 1}, "width, height: '2147483647x2147483647'"),
        ({"CLIP_SKIP": 40}, "clip_skip: 40"),
        ({"ETA": 0.5, "SAMPLER": "dpmpp_2m"}, "eta: 0.5"),
        ({"MASK": np.zeros((1, 128, 128), np.uint8)}, "mask: "),
        ({"STRENGTH": 0.5}, "strength: 0.5"),
        ({"IMAGE": np.zeros((1, 8, 8, 2), np.uint8)}, "image: "),
        ({"IMAGE": np.zeros((1, 0, 8, 3), np.uint8)}, "image: "),
        ({"IMAGE": np.zeros((1, 1024, 257, 3), np.uint8)}, "image: '257x1024'"),
    ],
)
def test_a_request_that_is_not_accepted_fails_alone(
    batched: Server, engine: Engine, runs: list[Request], wrong: dict[str, Any], told: str
) -> None:
    bad = {**one(RED), **one(RED, **wrong)}
    first, refused, last = batched.infer_all([one(RED, 1), bad, one(STAR, 2)])
    code, text = message(refused)
    assert (code, text[: len(told)]) == ("INVALID_ARG", told)
    assert len(runs) == 1 and len(runs[0].prompts) == 2
    for answer, prompt, seed in ((first, RED, 1), (last, STAR, 2)):
        assert isinstance(answer, dict)
        alone = engine.generate(prompt, seed=seed, steps=STEPS).arrays[0]
        np.testing.assert_array_equal(answer["IMAGES"][0], alone)


def test_what_fails_together_is_tried_alone(
    batched: Server, monkeypatch: pytest.MonkeyPatch, runs: list[Request]
) -> None:
    run = Engine.run

    def fail(self: Engine, request: Request, **options: Any) -> Any:
        if request.batch_size > 1:
            raise OutOfMemoryError("too many")
        if 2 in request.seeds:
            raise NonFiniteError.at("unet")
        if 3 in request.seeds:
            raise KeyError("a fault")
        return run(self, request, **options)

    monkeypatch.setattr(Engine, "run", fail)
    first, second, third = batched.infer_all([one(RED, seed) for seed in (1, 2, 3)])
    assert isinstance(first, dict)
    assert message(second) == ("INTERNAL", str(NonFiniteError.at("unet")))
    assert message(third) == ("INTERNAL", "KeyError: 'a fault'")
    level, line = batched.log.lines[-1]
    assert level == "error" and "Traceback" in line and "a fault" in line


def test_a_fault_while_reading_is_an_error_of_that_request(
    batched: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(triton_model, "read_requests", fail)
        assert message(batched.refused(**one(RED))) == ("INTERNAL", "RuntimeError: a fault")
    assert batched.infer(**one(RED))


class Clients:
    """Clients of requests, some of whom go after so many questions about them."""

    def __init__(self, **after: int) -> None:
        self.after = {int(name[1:]): count for name, count in after.items()}
        self.asked = [0, 0, 0]

    def __call__(self, number: int) -> bool:
        self.asked[number] += 1
        return self.asked[number] > self.after.get(number, 10**6)


def test_a_client_that_has_gone_is_served_nothing(batched: Server, runs: list[Request]) -> None:
    first, gone = batched.infer_all([one(RED, 1), one(RED, 2)], Clients(c1=0))
    assert isinstance(first, dict)
    assert message(gone) == ("CANCELLED", "the client cancelled the request.")
    assert [request.seeds for request in runs] == [(1,)]


def test_work_ends_within_a_step_of_the_last_clients_end(
    batched: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    run = Engine.run

    def count(self: Engine, request: Request, progress: Any, cancel: threading.Event) -> Any:
        def seen(step: Any) -> None:
            steps.append(step.index)
            progress(step)

        return run(self, request, progress=seen, cancel=cancel)

    monkeypatch.setattr(Engine, "run", count)
    both = batched.infer_all([one(RED, 1, 20), one(RED, 2, 20)], Clients(c0=3, c1=5))
    assert [message(answer)[0] for answer in both] == ["CANCELLED", "CANCELLED"]
    assert steps == list(range(7))
    steps.clear()
    gone, stays = batched.infer_all([one(RED, 1, 6), one(RED, 2, 6)], Clients(c0=3))
    assert message(gone)[0] == "CANCELLED"
    assert isinstance(stays, dict) and len(steps) == 6
