"""Bodies of the web UI's API that nobody means well with: each gets an answer, and none a 500."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.served import serving

from sdengine.loading import load
from sdengine.serving.limits import Limits
from sdengine.serving.web_ui.fields import (
    Detect,
    ExtrasBatch,
    ExtrasSingle,
    Fields,
    Img2Img,
    OneImage,
    Task,
    Txt2Img,
    Unit,
)
from sdengine.serving.web_ui.settings import SETTINGS

BODIES: dict[str, type[Fields]] = {
    "/sdapi/v1/txt2img": Txt2Img,
    "/sdapi/v1/img2img": Img2Img,
    "/sdapi/v1/extra-single-image": ExtrasSingle,
    "/sdapi/v1/extra-batch-images": ExtrasBatch,
    "/sdapi/v1/png-info": OneImage,
    "/controlnet/detect": Detect,
    "/internal/progress": Task,
}
# Small, so that what is accepted is soon done.
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "prompt": "a"}


HEAD = "data:image/png;base64"


def png(mode: str = "RGB") -> str:
    content = io.BytesIO()
    Image.new(mode, (8, 8), "white").save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


NUMBERS = st.integers() | st.integers(-2, 70) | st.floats() | st.just(10**400)
TEXTS = (
    st.text(max_size=20)
    | st.sampled_from(["\ud800", "\0", "../..", "None", "Euler a Karras", "automatic"])
    | st.sampled_from(
        ["file:///etc/passwd", "http://127.0.0.1/", "data:image/png;base64,", "canny"]
    )
    | st.sampled_from([png(), png()[:60], png("RGBA"), "data:image/png;base64," + png("L")])
)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(
    PLAIN, lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXTS, one, max_size=3)
)


def some_of(names: Any, values: Any) -> Any:
    return st.dictionaries(st.sampled_from(sorted(names)), values, max_size=3)


KINDS = {
    "bool": st.booleans(),
    "int": st.integers(-2, 70) | st.integers(),
    "float": st.floats(-1, 3) | st.floats(allow_nan=False, allow_infinity=False),
    "str": TEXTS,
    "list": st.lists(TEXTS, max_size=3),
}


@st.composite
def some_fields(draw: Any, model: type[Fields], values: Any = ANYTHING) -> dict[str, Any]:
    """Draw some fields, most of them of their own kind."""
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(model.model_fields)), max_size=3)):
        kind = str(model.model_fields[name].annotation)
        fits = next((one for word, one in KINDS.items() if word in kind), values)
        found[name] = draw(fits if draw(st.integers(0, 4)) else values)
    return found


@st.composite
def bodies(draw: Any, path: str) -> dict[str, Any]:
    """Draw fields of a call, for pictures such that more than one thing may be wrong, or none."""
    body = draw(some_fields(BODIES[path]))
    if not path.endswith("2img"):
        pictures = {"image": png(), "imageList": [{"data": png()}], "upscaler_1": "Lanczos"}
        return {**pictures, "controlnet_images": [png()], **body}
    found = dict(SMALL)
    if draw(st.booleans()):
        found |= {"init_images": [png()], "mask": png("L")}
    if draw(st.booleans()):
        units = st.builds(lambda unit: {"enabled": True, "image": png(), **unit}, UNITS)
        args = draw(st.lists(units | ANYTHING, max_size=2))
        found["alwayson_scripts"] = {"ControlNet": {"args": args}}
    if draw(st.booleans()):
        found["override_settings"] = draw(some_of(SETTINGS, PLAIN))
    if draw(st.booleans()):
        found["infotext"] = f"a\nSteps: 1, Sampler: Euler, {draw(st.text(max_size=60))}"
    return {**found, "enable_hr": draw(st.booleans()), "hr_scale": 1.5, **body}


UNITS = some_fields(Unit)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    limits = Limits(max_pixels=128 * 128, max_steps=4, max_images=2, max_body_bytes=1 << 18)
    with ExitStack() as stack:
        engine = stack.enter_context(load("demo", threads=1))
        url, _ = stack.enter_context(serving({"demo": engine}, limits=limits))
        yield stack.enter_context(httpx.Client(base_url=url, timeout=60))


def is_answered(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (body[:500], answer.text)
    found = json.loads(answer.text)
    if answer.status_code != 200:
        assert found["error"] not in ("", "InternalError") and found["detail"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), path=st.sampled_from(sorted(BODIES)))
def test_fields_of_any_value(client: httpx.Client, data: Any, path: str) -> None:
    is_answered(client, path, json.dumps(data.draw(bodies(path))).encode())


@settings(max_examples=100)
@given(body=ANYTHING | some_of(SETTINGS, PLAIN))
def test_settings_of_any_value(client: httpx.Client, body: Any) -> None:
    is_answered(client, "/sdapi/v1/options", json.dumps(body).encode())
    usual = {name: default for name, (_, default) in SETTINGS.items() if default != ""}
    assert client.post("/sdapi/v1/options", json=usual).status_code == 200


@settings(max_examples=100)
@given(path=st.sampled_from([*BODIES, "/sdapi/v1/options"]), body=st.binary(max_size=60))
@example(path="/sdapi/v1/txt2img", body=b"[" * 100_000)
@example(path="/sdapi/v1/txt2img", body=b'{"a":' * 40_000)
@example(path="/sdapi/v1/txt2img", body=b'{"script_args": ' + b"[" * 900 + b"]" * 900 + b"}")
@example(path="/sdapi/v1/txt2img", body=b'{"seed": ' + b"9" * 5000 + b"}")
@example(path="/sdapi/v1/txt2img", body=b'{"seed": ' + b"9" * 4000 + b"}")
@example(path="/sdapi/v1/txt2img", body=b'{"cfg_scale": 1e999}')
@example(path="/sdapi/v1/txt2img", body=b'{"cfg_scale": NaN}')
@example(path="/sdapi/v1/options", body=b'{"eta_ddim": -Infinity}')
@example(path="/sdapi/v1/txt2img", body=b"null")
@example(path="/sdapi/v1/txt2img", body=b"\xff\xfe{}")
def test_bodies_that_are_no_json(client: httpx.Client, path: str, body: bytes) -> None:
    is_answered(client, path, body)


HEADS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8")


@settings(max_examples=60)
@given(
    content=st.binary(max_size=80), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"])
)
def test_pictures_that_are_none(client: httpx.Client, content: bytes, head: bytes) -> None:
    text = base64.b64encode(head + content).decode()
    is_answered(client, "/sdapi/v1/png-info", json.dumps({"image": text}).encode())
    fields = {**SMALL, "init_images": [text]}
    is_answered(client, "/sdapi/v1/img2img", json.dumps(fields).encode())
