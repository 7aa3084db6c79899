"""Controls of requests: kinds of picture, and what makes one a hint; told, kept and read again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sdengine import Control, Request
from sdengine.cli.control_options import merged_controls, parse_control
from sdengine.errors import ConfigError
from sdengine.request.preprocessors import PREPROCESSORS, hint_of, preprocess

PICTURE: Any = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_the_command_says_what_python_does() -> None:
    text = "canny=a,b.png,preprocess=canny,low=50,resolution=64,scale=0.5,control_type=depth"
    assert parse_control(text) == {
        "network": "canny",
        "image": "a,b.png",
        "preprocess": "canny",
        "preprocess_options": {"low": 50, "resolution": 64},
        "scale": 0.5,
        "control_type": "depth",
    }
    assert parse_control("d=x.png,preprocess=depth,invert=true")["preprocess_options"] == {
        "invert": True
    }
    with pytest.raises(ConfigError, match="low once"):
        parse_control("canny=a.png,low=1,low=2")


def test_json_holds_every_option_and_gives_the_same_control_back() -> None:
    options: Any = {"low": np.int64(50), "high": 90}
    control = Control(
        "canny",
        PICTURE,
        control_type="scribble",
        preprocess="canny",
        preprocess_options=options,
    )
    given: Any = [control]
    request = Request("a", controls=given)
    (kept,) = json.loads(request.to_json())["controls"]
    assert kept["preprocess_options"] == {"high": 90.0, "low": 50.0}
    again = Request.from_json(request.to_json()).controls[0]
    assert again == control and hash(again) == hash(control)
    (merged,) = merged_controls([again], [{"network": "canny", "image": PICTURE}])
    assert isinstance(merged, dict) and Control.of(merged) == control


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"control_type": 3}, r"control.control_type: 3"),
        ({"preprocess": "onnx"}, r"control.preprocess: 'onnx' .*one of none, invert, canny"),
        ({"preprocess": "inpaint"}, r"control.preprocess: 'inpaint'"),
        (
            {"preprocess_options": {"low": 3}},
            r"low: 3 .*preprocessor none, which takes resolution.* of canny, depth",
        ),
        ({"preprocess": "canny", "preprocess_options": {"low": "x"}}, r"low: 'x'"),
        ({"preprocess": "canny", "preprocess_options": [("low", 1, 2)]}, r"by name"),
        ({"preprocess": "canny", "preprocess_options": {3: 2}}, r"by name"),
        ({"preprocess": "canny", "preprocess_options": "low"}, r"by name"),
        (
            {"preprocess": "blur", "preprocess_options": {"background": "#ffffff"}},
            r"black is under",
        ),
    ],
)
def test_what_is_not_accepted_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Control("canny", PICTURE, **fields)


@pytest.mark.parametrize("name", [n for n, one in PREPROCESSORS.items() if one.in_requests])
def test_requests_make_the_hints_that_the_function_makes(name: str) -> None:
    given = PICTURE if name != "depth" else PICTURE.astype(np.float32) @ [0.299, 0.587, 0.114]
    for options in ({}, {"resolution": 32}):
        found = hint_of(PICTURE, name, options)
        assert np.abs(found.astype(int) - preprocess(given, name, **options)).max() <= 1
