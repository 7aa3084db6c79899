"""Bodies that nobody means well, to OpenAI's API: answers that say what is wrong, never a 500."""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.served import serving

from sdengine.loading import load
from sdengine.request.request import FIELDS
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.limits import Limits
from sdengine.serving.openai.fields import CHECKS, EDITS

LIMITS = Limits(max_pixels=128 * 128, max_steps=2, max_images=3, max_picture_pixels=128 * 128)
TEXT = st.text(max_size=30)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from(["auto", "128x128", "64x64", "url", "high", "webp", "euler", "-1", "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*FIELDS, *CHECKS[EDITS], "model", "bundle", "cfg_scale", "style"]) | TEXT
HEADS = st.sampled_from(
    [
        'form-data; name="prompt"',
        'form-data; name="n"',
        'form-data; name="image[]"; filename="../../a.png"',
        'form-data; name="loras[a][]"',
        'form-data; name*=utf-8\'\'%ff',
        "form-data",
        "attachment",
        'form-data; name="\x00"',
    ]
)  # fmt: skip


def _png(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [_png("RGBA", (64, 64)), _png("RGB", (64, 64)), _png("LA", (65, 33)), _png("1", (1, 1))]
PICTURES += [_png("RGB", (1000, 1000)), b"", b"\x89PNG\r\n\x1a\n"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("models")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    kinds = {kind: folder for kind in ("model", "lora")}
    with load("demo", threads=1) as engine:
        named = {"demo": engine}
        with serving(named, catalogue=Catalogue(kinds), limits=LIMITS) as (url, _):
            yield urlsplit(url).netloc


def ask(address: str, path: str, body: bytes, content_type: str, method: str = "POST") -> int:
    """Return the status of an answer whose body is of the API's shape."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        status, content = response.status, response.read()
    finally:
        connection.close()
    assert status < 500, content
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        assert content.endswith(b"data: [DONE]\n\n") or b"event: error" in content
    elif status >= 400:
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    return status


def form(parts: list[tuple[str, bytes]], boundary: bytes = b"xx") -> bytes:
    body = b""
    for head, content in parts:
        head_bytes = head.encode("utf-8", "surrogateescape")
        body += b"--" + boundary + b"\r\nContent-Disposition: " + head_bytes + b"\r\n\r\n"
        body += content + b"\r\n"
    return body + b"--" + boundary + b"--\r\n"


def _named(name: str) -> str:
    return 'form-data; name="{}"'.format(name.replace("\r", "").replace("\n", ""))


@settings(max_examples=250)
@given(fields=st.dictionaries(NAMES, JSON, max_size=4), prompt=TEXT)
def test_any_fields_in_json(address: str, fields: dict[str, Any], prompt: str) -> None:
    content = {"prompt": prompt, "steps": 1, **fields}
    ask(address, "/v1/images/generations", json.dumps(content).encode(), "application/json")


@settings(max_examples=150)
@given(body=st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b"1" * 5000, b"{}", b"[]"]))
def test_any_bytes(address: str, body: bytes) -> None:
    assert ask(address, "/v1/images/generations", body, "application/json") == 400
    for path in ("edits", "variations"):
        assert ask(address, f"/v1/images/{path}", body, "multipart/form-data; boundary=x") == 400


@settings(max_examples=250)
@given(
    fields=st.dictionaries(NAMES, JSON, max_size=3),
    images=st.lists(st.sampled_from(PICTURES), max_size=3),
    mask=st.none() | st.sampled_from(PICTURES),
    path=st.sampled_from(["edits", "variations"]),
)
def test_any_fields_and_pictures_in_a_form(
    address: str, fields: dict[str, Any], images: list[bytes], mask: bytes | None, path: str
) -> None:
    texts = {"prompt": "a", "steps": 1, **fields}
    parts = [(_named(name), _text(value)) for name, value in texts.items()]
    parts += [(_named("image" if len(images) == 1 else "image[]"), one) for one in images]
    parts += [] if mask is None else [(_named("mask"), mask)]
    ask(address, f"/v1/images/{path}", form(parts), "multipart/form-data; boundary=xx")


@settings(max_examples=150)
@given(
    parts=st.lists(st.tuples(HEADS, st.binary(max_size=20)), max_size=4),
    boundary=st.binary(max_size=5),
    cut=st.integers(0, 300),
    kind=st.sampled_from(
        ["multipart/form-data; boundary=xx", 'multipart/form-data; boundary="xx"', "text/plain"]
    ),
)
def test_any_parts(
    address: str, parts: list[tuple[str, bytes]], boundary: bytes, cut: int, kind: str
) -> None:
    for body in (form(parts), form(parts)[:cut], form(parts, boundary)):
        assert ask(address, "/v1/images/edits", body, kind) == 400


@settings(max_examples=100)
@given(place=st.integers(0, 200), value=st.integers(0, 255), of=st.integers(0, 3))
def test_damaged_pictures(address: str, place: int, value: int, of: int) -> None:
    damaged = bytearray(PICTURES[of])
    damaged[place % len(damaged)] = value
    parts = [(_named("image"), bytes(damaged)), (_named("prompt"), b"a"), (_named("steps"), b"1")]
    ask(address, "/v1/images/edits", form(parts), "multipart/form-data; boundary=xx")
    fields = {"prompt": "a", "steps": 1, "image": base64.b64encode(damaged).decode()}
    ask(address, "/v1/images/generations", json.dumps(fields).encode(), "application/json")


@settings(max_examples=100)
@given(name=st.text(max_size=200) | st.sampled_from(["/", "..", "demo/", "%"]))
def test_any_names_of_models_and_files(address: str, name: str) -> None:
    quoted = quote(name.encode("utf-8", "replace"), safe="")
    for path in ("models", "images/files"):
        status = ask(address, f"/v1/{path}/{quoted}", b"", "", "GET")
        assert status in (200, 307, 400, 404)  # 307: slashes at the end are taken away


def _text(value: Any) -> bytes:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).encode()
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")
