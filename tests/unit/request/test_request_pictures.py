"""Requests that start from a picture: how many steps run, JSON, and what has no effect."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.request.picture_fields import IMAGE_FIELDS, OPTIONS_OF, PICTURES
from sdengine.request.request import Request

PIXELS = np.zeros((40, 50, 3), np.uint8)


def request(**fields: Any) -> Request:
    return Request(**{"prompt": "a", "image": PIXELS, "width": 50, "height": 40, **fields})


def test_a_picture_is_no_depth_map_and_the_other_way() -> None:
    made = request(depth=np.zeros((4, 4)))
    with pytest.raises(ConfigError, match=r"^image: .*the path of a picture"):
        request(image=made.depth)
    with pytest.raises(ConfigError, match=r"^depth: .*a depth map"):
        request(depth=made.image)


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100])
def test_steps_that_run_are_the_rational_result(steps: int) -> None:
    for hundredths in range(101):
        strength, exact = hundredths / 100, Fraction(hundredths, 100)
        web_ui = request(strength=strength, steps=steps, strength_rule="web_ui")
        assert web_ui.num_steps_run == int(min(exact, Fraction(999, 1000)) * steps) + 1
        wanted = int(exact * steps)
        if wanted == 0:
            with pytest.raises(ConfigError, match=r"^strength: .* one of"):
                request(strength=strength, steps=steps)
            continue
        assert request(strength=strength, steps=steps).num_steps_run == wanted


def test_exactly_the_steps_asked_for() -> None:
    found = request(strength=0.3, steps=20, strength_rule="exact")
    assert (found.num_steps_run, found.num_schedule_steps) == (20, 66)
    whole = request(strength=1.0, steps=20, strength_rule="exact")
    assert (whole.num_steps_run, whole.num_schedule_steps) == (20, 20)


@pytest.mark.parametrize("strength", [-0.1, 2, float("nan"), "much", True])
def test_strengths_that_are_none(strength: Any) -> None:
    with pytest.raises(ConfigError, match=r"^strength: "):
        request(strength=strength)


@pytest.mark.parametrize(
    "fields",
    [
        {"strength": 0.5},
        {"strength_rule": "web_ui"},
        {"resize": "crop"},
        {"encode": "sample"},
        {"background": "#000000"},
        {"color_correction": True},
    ],
)
def test_what_has_no_effect_without_a_picture_is_refused(fields: dict[str, Any]) -> None:
    (name,) = fields
    assert name in IMAGE_FIELDS
    with pytest.raises(ConfigError, match=rf"^{name}: .*without image"):
        Request("a", **fields)
    with pytest.raises(ConfigError, match=r"^width: .*multiple of 8"):
        Request("a", width=50)


def test_json_has_the_record_and_no_path_in_it_is_opened(tmp_path: Any) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    made = request(image=path, strength=0.5)
    content = json.loads(made.to_json())
    assert content["image"] == made.to_dict()["image"]
    assert content["image"]["width"] == 50 and content["strength"] == 0.5
    again = Request.from_json(made.to_json())
    assert again == made and again.image is not None and not again.image.is_given
    with pytest.raises(ConfigError, match=r"^image: .*sha256"):
        Request.from_json(json.dumps({**content, "image": str(path)}))


def test_without_a_picture_json_says_nothing_of_one() -> None:
    of_pictures = {*PICTURES, "outpaint", "hires", *sum(OPTIONS_OF.values(), ())}
    assert not of_pictures & json.loads(Request("a").to_json()).keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": np.zeros((40, 49), np.uint8)}, r"^mask: .*49x40 pixels.*50x40"),
        ({"mask_blur": 2.0}, r"^mask_blur: .*without mask"),
        ({"soft_inpainting": True}, r"^soft_inpainting: .*without mask"),
        (
            {"mask": PIXELS, "soft_inpainting": True, "mask_blur": 2.0},
            r"^mask_blur: .*its default with soft_inpainting",
        ),
        ({"mask": PIXELS, "mask_padding": 5}, r"^mask_padding: .*where inpaint_area is whole"),
        (
            {"strength_rule": "exact", "strength": 0.0, "steps": 25},
            r"^strength: .*at least 0.025 where strength_rule is exact",
        ),
        ({"mask": PIXELS, "mask_blur": -1}, r"^mask_blur: "),
        ({"mask": PIXELS, "masked_content": "noise"}, r"^masked_content: "),
        (
            {"mask": PIXELS, "masked_content": "fill", "soft_inpainting": True},
            r"^masked_content: .*soft",
        ),
        ({"mask": PIXELS, "resize": "latent"}, r"^resize: "),
        ({"mask": PIXELS, "inpaint_area": "masked", "resize": "crop"}, r"^resize: .*stretch"),
        ({"mask": PIXELS, "image": None, "width": 64}, r"^mask: .*image"),
    ],
)
def test_masks_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request(**fields)
