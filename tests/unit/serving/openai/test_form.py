"""Forms: texts become what their fields hold, pictures stay bytes, everything is bounded."""

from __future__ import annotations

from typing import Any

import pytest
from openai._qs import Querystring

from sdengine.errors import ConfigError
from sdengine.serving.openai.form import read_form

TYPE = "multipart/form-data; boundary=xx"


def form(*parts: tuple[str, str | bytes]) -> bytes:
    body = b""
    for name, value in parts:
        content = value.encode() if isinstance(value, str) else value
        head = f'--xx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + b"--xx--\r\n"


def fields_of(*parts: tuple[str, str]) -> dict[str, Any]:
    return read_form(TYPE, form(*parts))[0]


def test_texts_are_read_as_their_fields_hold_them() -> None:
    found = fields_of(
        ("prompt", "[1, 2]"),
        ("negative_prompt", ""),
        ("n", "3"),
        ("stream", "true"),
        ("color_correction", "False"),
        ("strength", "0.5"),
        ("seed", "[1, 2]"),
        ("sampler", "1"),
        ("size", "64x64"),
        ("loras", '{"a": 0.5}'),
        ("model", "12"),
        ("hires", "2x"),
        ("steps", ""),
        ("cfg_scale", "2.5"),
    )
    assert found == {
        "prompt": "[1, 2]",
        "negative_prompt": "",
        "n": 3,
        "stream": True,
        "color_correction": False,
        "strength": 0.5,
        "seed": [1, 2],
        "sampler": "1",
        "size": "64x64",
        "loras": {"a": 0.5},
        "model": "12",
        "hires": "2x",
        "cfg_scale": 2.5,
    }


def test_objects_and_lists_as_the_client_writes_them() -> None:
    given: dict[str, Any] = {
        "loras": {"a": 0.5, "b.c": [0.25, 1]},
        "model": {"x": 0.5, "y": 0.5},
        "seed": [1, 2],
        "prompt": ["1", "b"],
        "controls": [{"name": "a", "scale": 0.5}, {"name": "b", "scale": 1}],
    }
    items = Querystring(array_format="brackets").stringify_items(given)
    assert fields_of(*items) == given


def test_pictures_are_told_by_the_names_of_their_parts() -> None:
    content = bytes(range(256))
    parts = [("image[]", content), ("image[]", b"b"), ("mask", b"m"), ("prompt", b"p")]
    assert read_form(TYPE, form(*parts)) == (
        {"prompt": "p"},
        {"image": [content, b"b"], "mask": [b"m"]},
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("n", "1"), ("n", "2")], "'n': it is given twice"),
        ([("loras[a]", "1"), ("loras[a]", "2")], r"'loras\[a\]': it is given twice"),
        ([("loras", "{}"), ("loras[]", "2")], "given twice, or as different"),
        ([("seed[]", "1"), ("seed[a]", "2")], "given twice, or as different"),
        ([("a[b][c][d][e][f]", "1")], "too deep"),
        ([("a[b", "1")], "no name of a field"),
        ([("", "1")], "a part has no name"),
        ([("prompt", b"\xff")], "'prompt': it is no text"),
        ([(f"a{i}", "") for i in range(201)], "more than 200 parts"),
        ([("a" * 3000, "1")], "head of a part"),
    ],
)
def test_what_says_nothing_is_refused(parts: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_form(TYPE, form(*parts))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("", b""),
        ("multipart/form-data", form()),
        ("multipart/form-data; boundary=", form()),
        (TYPE, b""),
        (TYPE, b"--yy\r\n"),
        (TYPE, form(("a", "b"))[:-6]),
        ("multipart/form-data; boundary=" + "x" * 400, form()),
    ],
)
def test_what_is_no_form_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(ConfigError, match="multipart/form-data"):
        read_form(kind, body)
