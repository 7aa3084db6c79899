"""`--control` of the command: what it takes, and what recorded images add to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdengine.cli.control_options import (
    _PREPROCESS_READERS,
    _READERS,
    CONTROL_HELP,
    merged_controls,
    parse_control,
)
from sdengine.errors import ConfigError
from sdengine.request.control import CONTROL_FIELDS, Control

BLACK = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("canny=a.png", {}),
        ("canny=a.png,scale=0.8,end=0.6", {"scale": 0.8, "end": 0.6}),
        ("canny=a.png, mode=control ,resize=crop", {"mode": "control ", "resize": "crop"}),
        ("canny=a.png,layer_weights=1/0.5/0,masked=True", {
            "layer_weights": [1.0, 0.5, 0.0], "masked": True,
        }),
    ],
)  # fmt: skip
def test_what_is_given(text: str, fields: dict[str, Any]) -> None:
    wanted = {name: one.strip() if isinstance(one, str) else one for name, one in fields.items()}
    assert parse_control(text) == {"network": "canny", "image": "a.png", **wanted}


def test_a_files_name_may_have_commas_and_equals_signs() -> None:
    found = parse_control("pose=C:/my, own=1/a,b.png,start=0.1")
    assert found == {"network": "pose", "image": "C:/my, own=1/a,b.png", "start": 0.1}


def test_every_field_has_a_key() -> None:
    own = _READERS.keys() - _PREPROCESS_READERS.keys()
    assert {"network", "image", "preprocess_options", *own} == CONTROL_FIELDS.keys()
    assert not _PREPROCESS_READERS.keys() & CONTROL_FIELDS.keys()


def test_help_names_the_keys_that_are_taken() -> None:
    named = CONTROL_HELP.partition("keys are ")[2].replace(", and with preprocess ", ", ")
    assert named.split(", ") == [*_READERS]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("canny", "NAME=FILE"),
        ("=a.png", "NAME=FILE"),
        ("canny=", "NAME=FILE"),
        ("canny=,scale=1", "NAME=FILE"),
        ("canny=a.png,sclae=1", "'sclae=1'.*keys scale, start"),
        ("canny=a.png,scale=x", "'scale=x'.*a number"),
        ("canny=a.png,scale=1,scale=1", "scale once"),
        ("canny=a.png,masked=1", "true or false"),
        ("canny=a.png,layer_weights=1/", "a number"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^--control: .*{told}"):
        parse_control(text)


def test_recorded_options_go_with_the_pictures_given_again() -> None:
    recorded = (
        Control("canny", BLACK, scale=0.5, mode="guess"),
        Control("canny", BLACK, end=0.5),
        Control("pose", BLACK, start=0.2),
    )
    given = [parse_control(one) for one in ("canny=1", "canny=2,end=0.4", "depth=3")]
    first, second, third, fourth = merged_controls(recorded, given)
    assert isinstance(first, dict) and isinstance(second, dict)
    assert (first["image"], first["scale"], first["mode"]) == ("1", 0.5, "guess")
    assert (second["image"], second["end"], second["scale"]) == ("2", 0.4, 1.0)
    assert third is recorded[2]
    assert fourth == {"network": "depth", "image": "3"}
