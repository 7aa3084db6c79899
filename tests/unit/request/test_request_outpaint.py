"""Requests that enlarge a picture: forms of the sides, sizes, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.cli.main import main
from sdengine.errors import ConfigError
from sdengine.inputs.outpaint import Sides
from sdengine.request.outpaint_fields import OUTPAINT_STRENGTH
from sdengine.request.request import Request

PIXELS = np.zeros((40, 50, 3), np.uint8)


def request(**fields: Any) -> Request:
    return Request(**{"prompt": "a", "image": PIXELS, "outpaint": {"left": 7}, **fields})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"left": 7}, Sides(7, 0, 0, 0)),
        ({"all": 3, "top": 0}, Sides(3, 0, 3, 3)),
        (5, Sides(5, 5, 5, 5)),
        (np.int64(5), Sides(5, 5, 5, 5)),
        (Sides(bottom=9), Sides(0, 0, 0, 9)),
    ],
)
def test_sides(value: Any, expected: Sides) -> None:
    width, height = expected.size(50, 40)
    found = request(outpaint=value, width=width, height=height, outpaint_overlap=8)
    assert found.outpaint == expected
    content = json.loads(found.to_json())
    assert content["outpaint"] == vars(expected)
    assert Request.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outpaint": {"left": -1}}, r"^outpaint: left: -1.*0 to 8192"),
        ({"outpaint": {"left": 8193}}, r"^outpaint: left: 8193"),
        ({"outpaint": {"left": 2.5}}, r"^outpaint: left: 2.5"),
        ({"outpaint": True}, r"^outpaint: left: True"),
        ({"outpaint": "left=7"}, r"^outpaint: left: 'left=7'"),
        ({"outpaint": {"middle": 4}}, r"^outpaint: 'middle'.*left, top, right, bottom or all"),
        ({"outpaint": {"left": 0}}, r"^outpaint: .*at least 1 pixel"),
        ({"outpaint": {}}, r"^outpaint: .*at least 1 pixel"),
        ({"image": None, "width": 64, "height": 64}, r"^outpaint: left=7 .*none without image"),
        ({"width": 58}, r"^width: 58 .*expected 57, image's 50 and 7 \+ 0. Leave it out"),
        ({"height": 48}, r"^height: 48 .*expected 40"),
        ({"mask": PIXELS}, r"^mask: .*none with outpaint"),
        ({"mask_blur": 1.0}, r"^mask_blur: .*without mask"),
        ({"resize": "crop"}, r"^resize: 'crop'.*default with outpaint"),
        ({"color_correction": True}, r"^color_correction: "),
        ({"outpaint": None, "outpaint_fill": "blur"}, r"^outpaint_fill: .*without outpaint"),
        ({"outpaint": None, "outpaint_overlap": 9}, r"^outpaint_overlap: .*without outpaint"),
        ({"outpaint": None, "mask_blend": "none"}, r"^mask_blend: .*without mask or outpaint"),
        ({"outpaint_fill": "white"}, r"^outpaint_fill: .*edge, mirror"),
        ({"outpaint_fill": "blur", "strength": 1.0}, r"^outpaint_fill: .*at strength 1"),
        ({"outpaint_overlap": -1}, r"^outpaint_overlap: "),
        ({"outpaint_overlap": 50}, r"^outpaint_overlap: 50 .*expected at most 49"),
        ({"outpaint": {"left": 3, "right": 4}, "outpaint_overlap": 25}, r"at most 24, so that"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request(**{"width": 57, "height": 40, **fields})


def test_a_canvas_that_is_too_large() -> None:
    long = np.zeros((16000, 8), np.uint8)
    with pytest.raises(ConfigError, match=r"8200x24000 pixels with image.*8x16000"):
        request(
            image=long, outpaint={"left": 8192, "top": 8000}, outpaint_overlap=0,
            inpaint_area="masked",
        )  # fmt: skip


def test_sizes_and_strength_follow() -> None:
    with sdengine.load("demo") as engine:
        found = engine.request("a", image=PIXELS, outpaint={"left": 7, "bottom": 24})
        assert (found.width, found.height) == (57, 64)
        assert found.strength == OUTPAINT_STRENGTH
        own = engine.request("a", image=PIXELS, outpaint={"left": 7}, strength=0.8)
        assert own.strength == 0.8
        part = engine.request("a", image=PIXELS, outpaint=7, inpaint_area="masked")
        assert (part.width, part.height) == (128, 128)  # the size that the part is computed at
        with pytest.raises(ConfigError, match=r"^width: 64 .*expected 57"):
            engine.request("a", image=PIXELS, outpaint={"left": 7}, width=64)


@pytest.mark.parametrize("value", ["left", "left=x", "left=1,left=2", "", "left=4;top=3"])
def test_the_command_says_what_sides_are(
    value: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    wanted = ["generate", "a", "--outpaint", value, "-o", str(tmp_path / "a.png")]
    assert main(wanted) == 2
    assert "left=64,top=32 or all=64" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
