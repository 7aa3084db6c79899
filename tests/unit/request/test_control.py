"""Controls of a request: their fields are checked, recorded, and come back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.errors import ConfigError
from sdengine.images.provenance import Provenance
from sdengine.images.web_ui_text import parameters_text, parse_parameters
from sdengine.request.control import MAX_CONTROLS, Control
from sdengine.request.request import Request

EDGES = np.zeros((8, 16, 3), np.uint8)
FULL = Control(
    "canny",
    EDGES,
    scale=0.75,
    start=0.125,
    end=0.5,
    mode="control",
    layer_weights=(1.0,) * 12 + (0.5,),
    resize="crop",
)


def test_the_package_has_it_and_explains_its_fields() -> None:
    assert sdengine.Control is Control
    for name in ("network", "scale (0 to 10)", "mode (balanced, prompt, control, guess)", "masked"):
        assert f"        {name}: " in str(Control.__doc__)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"network": 3}, "control.network: 3"),
        ({"image": 3}, "control.image: 3"),
        ({"image": None}, "control.image: None"),
        ({"scale": 10.1}, "control.scale: 10.1.*0 to 10"),
        ({"scale": -0.1}, "control.scale"),
        ({"scale": True}, "control.scale"),
        ({"scale": float("nan")}, "control.scale"),
        ({"start": 1.5}, "control.start"),
        ({"start": 0.5, "end": 0.5}, "control.start: 0.5 .*less than end, which is 0.5"),
        ({"end": 0.0}, "control.start"),
        ({"mode": "more"}, "control.mode.*balanced, prompt, control, guess"),
        ({"layer_weights": 1.0}, "control.layer_weights.*13 for"),
        ({"layer_weights": []}, "control.layer_weights"),
        ({"layer_weights": [1.0, "x"]}, "control.layer_weights: 'x'"),
        ({"resize": "latent"}, "control.resize"),
        ({"masked": 1}, "control.masked"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Control(**{"network": "canny", "image": EDGES, **fields})


@pytest.mark.parametrize(
    ("controls", "told"),
    [
        ("canny", "controls: 'canny' .*a list of"),
        ([3], "controls: 3 "),
        ([FULL] * (MAX_CONTROLS + 1), "up to 16"),
        ([{"network": "canny"}], "control.image: it is missing"),
        ([{"network": "canny", "image": EDGES, "sclae": 1}], "control.sclae: .*Did you mean scale"),
        ([{"network": "canny", "image": EDGES, "masked": True}], "masked: True .*without mask"),
    ],
)
def test_bad_controls_are_named(controls: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Request("a", controls=controls)


def test_controls_are_taken_as_fields_too_and_one_alone() -> None:
    wanted = (Control("canny", EDGES, scale=0.5),)
    fields: Any = [{"network": "canny", "image": EDGES, "scale": 0.5}]
    assert Request("a", controls=fields).controls == wanted
    assert Request("a", controls=wanted[0]).controls == wanted  # type: ignore[arg-type]


def test_they_come_back_by_the_pictures_hash() -> None:
    request = Request("a", controls=(FULL, Control("pose", EDGES)), batch_size=2)
    found = Request.from_json(request.to_json())
    assert found == request  # equal by the hashes of their pictures
    assert not found.controls[0].image.is_given
    assert found.controls[0].image.size == (16, 8)
    assert found.only(1).controls == request.controls
    assert json.loads(Request("a").to_json()).keys().isdisjoint({"controls"})


@pytest.mark.parametrize(
    "controls",
    [
        {"network": "canny"},
        [{"network": "canny"}],
        [{"network": "canny", "image": "/etc/passwd"}],
        [{"network": "canny", "image": {"sha256": "x", "width": 1, "height": 1}}],
        ["canny"],
        [[]],
        None,
    ],
)
def test_hostile_json_opens_nothing(controls: Any) -> None:
    text = json.dumps({"version": 1, "prompt": "a", "controls": controls})
    with pytest.raises(ConfigError):
        Request.from_json(text)


def test_the_web_uis_text_is_that_of_its_extension() -> None:
    request = Request("a", controls=(FULL, Control("pose", EDGES, mode="prompt", resize="fill")))
    text = parameters_text(request, Provenance())
    assert (
        'ControlNet 0: "Module: none, Model: canny, Weight: 0.75, Resize Mode: Crop and Resize, '
        'Guidance Start: 0.125, Guidance End: 0.5, Control Mode: ControlNet is more important"'
    ) in text
    assert "Resize Mode: Resize and Fill, Guidance Start: 0, Guidance End: 1, " in text
    assert "Control Mode: My prompt is more important" in text
    # Their pictures are in no text, so that a reader is told that they are left out.
    assert parse_parameters(text).not_understood == ("ControlNet 0", "ControlNet 1")
    assert "ControlNet" not in parameters_text(Request("a"), Provenance())
