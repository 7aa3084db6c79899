from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.triton_server import Server, TritonError

import sdengine
from sdengine.backends.machine import Processors
from sdengine.engine import Engine
from sdengine.errors import ConfigError, NonFiniteError, OutOfMemoryError
from sdengine.request.request import Request
from sdengine.serving import triton_model
from sdengine.serving.triton_repository import Export, export_triton

STEPS = 3
RED, STAR = "a large red circle on a blue background", "a green star left of a pink heart on white"
LONG = "a cyan ring above a black cross, " + "a red circle, " * 30


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as loaded:
        yield loaded


def export(folder: Path, **options: Any) -> Path:
    return export_triton("demo", folder, Export(**options))


@pytest.fixture(scope="module")
def batched_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("models"), max_batch=8)


@pytest.fixture(scope="module")
def batched(batched_model: Path) -> Iterator[Server]:
    with Server(batched_model) as server:
        yield server


@pytest.fixture(scope="module")
def unbatched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(export(tmp_path_factory.mktemp("models"))) as server:
        yield server


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that engines run."""
    kept: list[Request] = []
    run = Engine.run

    def keep(self: Engine, request: Request, **options: Any) -> Any:
        kept.append(request)
        return run(self, request, **options)

    monkeypatch.setattr(Engine, "run", keep)
    return kept


def one(prompt: str, seed: int = 0, steps: int = STEPS, **more: Any) -> dict[str, Any]:
    """Return a request of one picture in a batch."""
    given = {"PROMPT": prompt, "SEED": seed, "STEPS": steps, **more}
    return {name: v if isinstance(v, np.ndarray) else [[v]] for name, v in given.items()}


def message(answer: Any) -> tuple[str, str]:
    assert isinstance(answer, TritonError)
    return answer.code(), answer.message()


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


def test_a_batch_of_two_sizes_fits_into_no_tensor(batched: Server) -> None:
    found = batched.refused(PROMPT=[[RED], [RED]], WIDTH=[[128], [192]])
    assert message(found) == (
        "INVALID_ARG",
        "width, height: 128x128, 192x128; the pictures of a batch are of one size.",
    )


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
PICTURE = np.arange(128 * 192 * 3, dtype=np.uint32).astype(np.uint8).reshape(128, 192, 3)
MASK = np.zeros((128, 192), np.uint8)
MASK[:, 96:] = 255
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


def test_texts_may_be_empty_where_a_default_is_meant(batched: Server) -> None:
    empty = {name: "" for name in ("SAMPLER", "SCHEDULE", "SCHEDULER", "NEGATIVE_PROMPT")}
    answers = batched.infer_all([one(RED, 1, **empty), one(RED, 1), one(RED, 1)])
    first, second, _ = (answer["IMAGES"] for answer in answers if isinstance(answer, dict))
    np.testing.assert_array_equal(first, second)


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
    with Server(export(tmp_path, pixels="fp16")) as server:
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
    with Server(export(tmp_path, spelling="small", max_batch=1)) as server:
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


def test_a_model_may_have_fewer_tensors(batched_model: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["input"] = [one for one in config["input"] if one["name"] in ("PROMPT", "STEPS")]
        config["output"] = config["output"][1:2]
        config["parameters"]["precision"]["string_value"] = "fp32"
        config["parameters"]["max_steps"]["string_value"] = "2"

    with Server(batched_model, changes=change) as server:
        assert list(server.infer(PROMPT=[[RED]], STEPS=[[2]])) == ["SEEDS"]
        assert "max_steps" in message(server.refused(PROMPT=[[RED]], STEPS=[[3]]))[1]
        assert "precision fp32" in server.log.lines[0][1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["input"][0].update(name="TEXT"), "no input is called PROMPT or prompt"),
        (lambda c: c["input"][1].update(name="TEXT"), "config.pbtxt: input: 'TEXT'"),
        (
            lambda c: c["input"][2].update(data_type="TYPE_INT32"),
            "config.pbtxt: SEED: 'TYPE_INT32'",
        ),
        (lambda c: c["output"][0].update(name="PICTURES"), "config.pbtxt: output: 'PICTURES'"),
        (lambda c: c["output"][0].update(data_type="TYPE_INT64"), "config.pbtxt: IMAGES"),
        (lambda c: c["parameters"].update(speed={"string_value": "1"}), "parameters: 'speed'"),
        (lambda c: c["parameters"].update(threads={"string_value": "-1"}), "threads: '-1'"),
        (lambda c: c["parameters"].update(threads={"string_value": "0"}), "threads: 0"),
        (lambda c: c["parameters"].update(max_pixels={"string_value": "0"}), "max_pixels: 0"),
        (lambda c: c["parameters"].update(max_steps={"string_value": "2000"}), "max_steps: 2000"),
        (lambda c: c["parameters"].update(precision={"string_value": "fp8"}), "precision: 'fp8'"),
        (lambda c: c["parameters"].update(backend={"string_value": "cuda"}), "backend: 'cuda'"),
    ],
)
def test_a_configuration_that_is_not_known_loads_no_model(
    batched_model: Path, change: Any, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Server(batched_model, changes=change)
    assert told in str(caught.value)


def test_the_servers_own_parameters_are_left_to_it(batched_model: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": "/opt/environment"}

    with Server(batched_model, changes=change) as server:
        assert server.infer(**one(RED))


@pytest.mark.parametrize(
    ("instances", "threads", "wanted"), [(1, "", 8), (3, "", 2), (20, "", 1), (3, "5", 5)]
)
def test_instances_on_a_cpu_share_its_processors(
    batched_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    instances: int,
    threads: str,
    wanted: int,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["instance_group"] = [{"count": instances, "kind": "KIND_CPU"}]
        config["parameters"]["threads"]["string_value"] = threads

    monkeypatch.setattr(triton_model, "usable_processors", lambda: Processors(8))
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(triton_model, "load", lambda place, **given: loaded.append(given))
    with pytest.raises(AttributeError):  # nothing was loaded
        Server(batched_model, changes=change)
    assert (loaded[0]["threads"], loaded[0]["device"]) == (wanted, None)


def test_an_instance_on_a_gpu_takes_its_own(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(triton_model, "load", lambda place, **given: loaded.append(given))
    with pytest.raises(AttributeError):
        Server(batched_model, kind="GPU", device=3)
    assert (loaded[0]["threads"], loaded[0]["device"]) == (None, 3)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="device"):  # which a bundle for CPUs has no use for
        Server(batched_model, kind="GPU", device=0)


@pytest.mark.parametrize("count", [1, 4])
def test_first_requests_load_nothing(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Those of one picture, and those of as many as the bundle makes at once."""
    kept = []
    run = Engine.run

    def keep(self: Engine, request: Request, **options: Any) -> Any:
        kept.append(run(self, request, **options))
        return kept[-1]

    monkeypatch.setattr(Engine, "run", keep)
    with Server(batched_model) as server:
        server.infer_all([one(f"{number} {RED}", number) for number in range(count)])
    assert [result.timings.load_ms for result in kept] == [0]


def test_a_model_that_fails_to_warm_up_is_closed(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Engine, **options: Any) -> None:
        raise OutOfMemoryError("no room")

    closed = []
    close = Engine.close
    monkeypatch.setattr(Engine, "warm_up", fail)
    monkeypatch.setattr(Engine, "close", lambda self: closed.append(close(self)))
    with pytest.raises(OutOfMemoryError, match="no room"):
        Server(batched_model)
    assert len(closed) == 1
