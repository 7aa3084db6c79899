"""OpenAI's own client against the server: pictures, edits, streams, retries, and going away."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image
from support.served import serving

from sdengine.engine import Engine
from sdengine.images.metadata import read_metadata
from sdengine.loading import load
from sdengine.serving.jobs import Job
from sdengine.serving.limits import Limits
from sdengine.serving.service import Service
from sdengine.serving.tokens import Token, Tokens

PROMPT = "a large red circle on a blue background"
LONG = {"steps": 200, "batch_size": 16}  # of many seconds, whose steps take milliseconds


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo", threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[tuple[str, Service]]:
    with serving({"demo": engine}) as served:
        yield served


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[OpenAI]:
    with connected(server[0]) as client:
        yield client


def connected(url: str, **options: Any) -> OpenAI:
    return OpenAI(**{"api_key": "none", "base_url": f"{url}/v1", "max_retries": 0, **options})


def pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def content_of(image: Any) -> bytes:
    return base64.b64decode(image.b64_json, validate=True)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def hole_of(width: int, height: int) -> tuple[NDArray[np.bool_], bytes]:
    """Return a part of a picture, and the mask that lets it change."""
    part = np.zeros((height, width), bool)
    part[40:90, 30:100] = True
    mask = np.zeros((height, width, 4), np.uint8)
    mask[..., 3] = np.where(part, 0, 255)
    return part, png(mask)


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait until something is so, for at most as long as a test may take."""
    while not holds():
        time.sleep(0.01)


def counted(service: Service, status: str) -> int:
    line = next(
        (one for one in service.metrics.text().decode().splitlines() if f'status="{status}"' in one
         and one.startswith("sdengine_jobs_total")),
        "0",
    )  # fmt: skip
    return int(float(line.split()[-1]))


def test_generations_are_the_engines_pictures(client: OpenAI, engine: Engine) -> None:
    own = engine.generate(
        PROMPT, "green", seed=7, steps=9, guidance_scale=2.5, sampler="euler", batch_size=2
    )
    response = client.images.generate(
        model="demo",
        prompt=PROMPT,
        n=2,
        size="128x128",
        extra_body={
            "seed": 7, "steps": 9, "cfg_scale": 2.5, "sampler": "euler", "negative_prompt": "green",
        },
    )  # fmt: skip
    assert response.data is not None and len(response.data) == 2
    for image, array, seed in zip(response.data, own.arrays, (7, 8), strict=True):
        assert (pixels(content_of(image)) == array).all()
        assert image.revised_prompt is None and image.url is None
        assert image.to_dict()["seed"] == seed
    assert (response.size, response.output_format, response.background) == (
        "128x128",
        "png",
        "opaque",
    )
    assert response.created == pytest.approx(time.time(), abs=120)
    usage = response.usage
    assert usage is not None
    text = engine.count_tokens(PROMPT) + engine.count_tokens("green")
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == text
    assert usage.output_tokens == 2 * 16 * 16
    assert usage.total_tokens == text + 512


def test_pngs_hold_the_whole_request(client: OpenAI, engine: Engine, tmp_path: Any) -> None:
    response = client.images.generate(prompt=PROMPT, extra_body={"steps": 2})
    assert response.data is not None
    path = tmp_path / "a.png"
    path.write_bytes(content_of(response.data[0]))
    fields = read_metadata(path).request_fields()
    assert fields["prompt"] == PROMPT and fields["seed"] == response.data[0].to_dict()["seed"]
    assert (engine.generate(**fields).arrays[0] == pixels(path.read_bytes())).all()


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_formats(client: OpenAI, output_format: Any, tmp_path: Any) -> None:
    contents = []
    for compression in (100, 20):
        response = client.images.generate(
            prompt=PROMPT,
            output_format=output_format,
            output_compression=compression,
            extra_body={"seed": 3, "steps": 2},
        )
        assert response.data is not None and response.output_format == output_format
        contents.append(content_of(response.data[0]))
    with Image.open(io.BytesIO(contents[0])) as image:
        assert image.format == output_format.upper()
    assert len(contents[1]) < len(contents[0])
    path = tmp_path / f"a.{output_format}"
    path.write_bytes(contents[0])
    assert read_metadata(path).fields["prompt"] == PROMPT


def test_masked_edits_keep_the_rest_to_the_byte(client: OpenAI, engine: Engine) -> None:
    before = engine.generate(PROMPT, seed=1, steps=8).arrays[0]
    part, mask = hole_of(128, 128)
    own = engine.generate(
        "a green star",
        image=before,
        mask=np.where(part, 255, 0).astype(np.uint8),
        mask_blur=0.0,
        strength=1.0,
        seed=5,
        steps=8,
    )
    response = client.images.edit(
        image=("before.png", png(before), "image/png"),
        mask=mask,
        prompt="a green star",
        extra_body={"seed": 5, "steps": 8, "mask_blur": 0},
    )
    assert response.data is not None and response.usage is not None
    after = pixels(content_of(response.data[0]))
    assert (after == own.arrays[0]).all()
    assert (after[~part] == before[~part]).all()
    assert (after[part] != before[part]).any()
    assert response.usage.input_tokens_details.image_tokens == 16 * 16
    # Blurred as requests usually are, the mask reaches 10 pixels farther.
    blurred = client.images.edit(image=png(before), mask=mask, prompt="a green star")
    assert blurred.data is not None
    far = np.ones((128, 128), bool)
    far[30:100, 20:110] = False
    assert (pixels(content_of(blurred.data[0]))[far] == before[far]).all()


def test_a_pictures_own_transparency_is_its_mask(client: OpenAI, engine: Engine) -> None:
    before = engine.generate(PROMPT, seed=1, steps=8).arrays[0]
    part, _ = hole_of(128, 128)
    alpha = np.where(part, 0, 255).astype(np.uint8)[..., None]
    response = client.images.edit(
        image=png(np.concatenate([before, alpha], axis=2)),
        prompt="a green star",
        extra_body={"mask_blur": 0, "loras": {}},
    )
    assert response.data is not None
    after = pixels(content_of(response.data[0]))
    assert (after[~part] == before[~part]).all()
    assert (after[part] != before[part]).any()


def test_each_picture_of_a_list_is_edited(client: OpenAI, engine: Engine) -> None:
    first, second = engine.generate(PROMPT, seed=1, steps=8, batch_size=2).arrays
    response = client.images.edit(
        image=[png(first), png(second)], prompt="a green star", n=2, extra_body={"seed": 4}
    )
    assert response.data is not None and len(response.data) == 4
    found = [pixels(content_of(image)) for image in response.data]
    for place, before in ((0, first), (2, second)):
        own = engine.generate("a green star", image=before, strength=0.75, seed=4, batch_size=2)
        assert all((a == b).all() for a, b in zip(found[place:], own.arrays, strict=False))


def test_variations(client: OpenAI, engine: Engine) -> None:
    before = engine.generate(PROMPT, seed=1, steps=8).arrays[0]
    with pytest.warns(DeprecationWarning):
        response = client.images.create_variation(
            image=png(before), n=2, extra_body={"size": "128x128"}
        )
    assert response.data is not None
    found = [pixels(content_of(image)) for image in response.data]
    assert (found[0] != found[1]).any() and found[0].shape == (128, 128, 3)
    seed: Any = response.data[0].to_dict()["seed"]
    own = engine.generate("", image=before, strength=0.6, seed=seed, batch_size=2)
    assert (own.arrays[0] == found[0]).all()


def test_addresses_are_given_where_they_are_asked_for(client: OpenAI, engine: Engine) -> None:
    response = client.images.generate(
        prompt=PROMPT, response_format="url", extra_body={"seed": 3, "steps": 2}
    )
    assert response.data is not None and response.data[0].b64_json is None
    with urllib.request.urlopen(str(response.data[0].url)) as answer:
        assert answer.headers["content-type"] == "image/png"
        found = pixels(answer.read())
    assert (found == engine.generate(PROMPT, seed=3, steps=2).arrays[0]).all()


def test_models(client: OpenAI) -> None:
    assert [(model.id, model.object) for model in client.models.list()] == [("demo", "model")]
    assert client.models.retrieve("demo").owned_by == "sdengine"
    for ask in (
        lambda: client.models.retrieve("dall-e/3"),
        lambda: client.images.generate(prompt="a", model="dall-e-3"),
    ):
        with pytest.raises(openai.NotFoundError, match="It has demo") as caught:
            ask()
        error = caught.value
        assert (error.code, error.param, error.type) == (
            "model_not_found",
            "model",
            "invalid_request_error",
        )


def test_streams_show_the_picture_on_its_way(client: OpenAI, engine: Engine) -> None:
    stream = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 7, "steps": 40}
    )
    *partial, last = list(stream)
    assert 1 <= len(partial) <= 3
    for number, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        assert pixels(content_of(event)).shape == (128, 128, 3)
        assert (event.size, event.output_format, event.background) == ("128x128", "png", "opaque")
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == engine.count_tokens(PROMPT) + 256
    own = engine.generate(PROMPT, seed=7, steps=40).arrays[0]
    assert (pixels(content_of(last)) == own).all()
    assert all((pixels(content_of(event)) != own).any() for event in partial)


def test_streamed_edits_and_lists(client: OpenAI, engine: Engine) -> None:
    before = engine.generate(PROMPT, seed=1, steps=8, batch_size=2).arrays
    stream = client.images.edit(
        image=[png(array) for array in before],
        mask=hole_of(128, 128)[1],
        prompt="a green star",
        stream=True,
        partial_images=1,
    )
    types = [event.type for event in stream]
    assert types.count("image_edit.completed") == 2
    assert set(types) <= {"image_edit.partial_image", "image_edit.completed"}
    both = client.images.generate(prompt=PROMPT, n=2, stream=True, extra_body={"steps": 2})
    assert [event.type for event in both] == ["image_generation.completed"] * 2


def test_a_failure_within_a_stream_is_an_error(
    client: OpenAI, server: tuple[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(server[1], "_made", fail)
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.images.generate(prompt="a", stream=True))
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=5).images.generate(prompt="a")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"style": "vivid"}, "style"),
        ({"size": "100x100"}, None),
        ({"n": 11}, "n"),
        ({"extra_body": {"stepz": 3}}, "stepz"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"seed": "x"}}, "seed"),
        ({"extra_body": {"loras": {"none": 1}}}, "loras"),
        ({"extra_body": {"image": "http://127.0.0.1/a.png"}}, "image"),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    client: OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.with_options(max_retries=5).images.generate(prompt="a", **fields)
    error = caught.value
    assert error.type == "invalid_request_error" and error.code
    assert param is None or error.param == param


def test_tokens_are_asked_for_except_where_an_address_is_the_secret(engine: Engine) -> None:
    token = Token("me", hashlib.sha256(b"sd-secret").hexdigest())
    with serving({"demo": engine}, tokens=Tokens([token])) as (url, _):
        with connected(url) as stranger, pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"
        with connected(url, api_key="sd-secret") as client:
            response = client.images.generate(
                prompt=PROMPT, response_format="url", extra_body={"steps": 1}
            )
        assert response.data is not None
        address = str(response.data[0].url)
        with urllib.request.urlopen(address) as answer:
            assert pixels(answer.read()).shape == (128, 128, 3)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address[:-8] + "AAAA.png")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, data=b"a body")


def test_a_full_queue_is_tried_again_after_the_time_that_it_says(engine: Engine) -> None:
    limits = Limits(max_queue=1, max_queue_of_token=1)
    with serving({"demo": engine}, limits=limits) as (url, service):
        service._rate = 1e9  # as if it were so quick that a second is enough
        waiting = [threading.Thread(target=_cancelled, args=(url,)) for _ in range(2)]
        waiting[0].start()
        wait_for(lambda: bool(service.running))
        waiting[1].start()
        wait_for(lambda: service.num_waiting == 1)
        with connected(url) as client, pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt=PROMPT)
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        seen: list[int] = []

        def watch(response: Any) -> None:
            seen.append(response.status_code)
            if response.status_code == 429:  # from now on there is room
                for job in service.jobs:
                    service.cancel(job)

        hooked = openai.DefaultHttpxClient(event_hooks={"response": [watch]})
        with connected(url, max_retries=5, http_client=hooked) as client:
            response = client.images.generate(prompt=PROMPT, extra_body={"steps": 2})
        assert response.data is not None and len(response.data) == 1
        assert seen[0] == 429 and seen[-1] == 200
        for thread in waiting:
            thread.join()


def _cancelled(url: str) -> None:
    with connected(url, max_retries=5) as client, pytest.raises(openai.ConflictError):
        client.images.generate(prompt=PROMPT, extra_body=LONG)


def test_a_client_that_waits_no_longer_has_its_work_cancelled(engine: Engine) -> None:
    with serving({"demo": engine}) as (url, service):
        with connected(url, timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt=PROMPT, extra_body=LONG)
        wait_for(lambda: counted(service, "cancelled") == 1 and not service.running)
        assert len(service.jobs) == 0 and service.num_waiting == 0
        assert counted(service, "completed") == 0


def test_work_that_is_tried_again_is_never_done_twice_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"demo": engine}) as (url, service):
        jobs: list[Job] = []
        alive: list[int] = []
        submit = service.submit

        async def watched(*arguments: Any, **options: Any) -> Job:
            alive.append(sum(not job.cancel.is_set() for job in jobs))
            jobs.append(await submit(*arguments, **options))
            return jobs[-1]

        monkeypatch.setattr(service, "submit", watched)
        impatient = connected(url, timeout=0.5, max_retries=2)
        with impatient as client, pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt=PROMPT, extra_body=LONG)
        wait_for(lambda: counted(service, "cancelled") == 3)
        assert alive == [0, 0, 0]


def test_a_stream_that_is_left_is_cancelled(engine: Engine) -> None:
    with serving({"demo": engine}) as (url, service):
        with connected(url) as client:
            stream = client.images.generate(
                prompt=PROMPT, stream=True, partial_images=3, extra_body={"steps": 200}
            )
            next(iter(stream))
            stream.close()
        wait_for(lambda: counted(service, "cancelled") == 1 and not service.running)
        assert len(service.jobs) == 0


def test_a_list_is_edited_although_only_one_may_wait(engine: Engine) -> None:
    before = [png(array) for array in engine.generate(PROMPT, steps=2, batch_size=3).arrays]
    limits = Limits(max_queue=1, max_queue_of_token=1)
    with serving({"demo": engine}, limits=limits) as (url, service), connected(url) as client:
        response = client.images.edit(image=before, prompt="a green star", extra_body={"steps": 4})
        assert response.data is not None and len(response.data) == 3
        assert counted(service, "completed") == 3
        with connected(url, timeout=0.5) as hasty, pytest.raises(openai.APITimeoutError):
            hasty.images.edit(image=before, prompt="a", n=5, extra_body={"steps": 200})
        wait_for(lambda: counted(service, "cancelled") == 1 and not service.running)
        assert counted(service, "completed") == 3 and len(service.jobs) == 0
