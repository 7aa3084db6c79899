"""Regions of a request: their fields are checked, recorded, and come back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.cli.region_options import parse_region
from sdengine.errors import ConfigError
from sdengine.request.region import MAX_REGIONS, Region
from sdengine.request.request import Request

MASK = np.zeros((8, 16), np.uint8)
LEFT = Region((0, 0, 0.5, 1))


def test_the_package_has_it_and_explains_its_fields() -> None:
    assert sdengine.Region is Region
    for name in ("box", "mask", "weight (0.01 to 100)"):
        assert f"        {name}: " in str(Region.__doc__)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "region.box, region.mask: give one of them"),
        ({"box": (0, 0, 1, 1), "mask": MASK}, "give one of them"),
        ({"box": (0, 0, 1)}, "region.box: .*left, top, right and bottom as fractions"),
        ({"box": (0, 0, 1, 1.5)}, "region.box: 1.5"),
        ({"box": (0.5, 0, 0.5, 1)}, "region.box: .*left before right"),
        ({"box": (0, 0, float("nan"), 1)}, "region.box"),
        ({"box": "0,0,1,1"}, "region.box"),
        ({"mask": 3}, "region.mask: 3"),
        ({"box": (0, 0, 1, 1), "weight": 0}, "region.weight: 0.*0.01 to 100"),
        ({"box": (0, 0, 1, 1), "weight": None}, "region.weight: None"),
    ],
)
def test_what_is_not_accepted(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Region(**fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"regions": 3}, "regions: 3.*a list of up to 16 sdengine.Region"),
        ({"regions": [3]}, "regions: 3"),
        ({"regions": [LEFT] * (MAX_REGIONS + 1)}, "regions"),
        ({"regions": [{"boxes": (0, 0, 1, 1)}]}, "region.boxes: .*Did you mean box"),
        ({"region_base": 0.5}, "region_base: 0.5.*its default without regions"),
        ({"regions": [LEFT], "region_base": 1.5}, "region_base: 1.5"),
    ],
)
def test_what_a_request_does_not_take(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Request("a AND b", **fields)


def test_json_and_back() -> None:
    regions: Any = [LEFT, {"mask": MASK, "weight": 2}]
    request = Request("a AND b", regions=regions, region_base=0.5)
    content = json.loads(request.to_json())
    assert content["regions"][0] == {"box": [0.0, 0.0, 0.5, 1.0], "weight": 1.0}
    assert content["regions"][1]["mask"] == {
        "sha256": request.regions[1].mask.sha256, "width": 16, "height": 8,
    }  # fmt: skip
    assert Request.from_json(request.to_json()) == request
    plain = json.loads(Request("a AND b").to_json())
    assert not plain.keys() & {"regions", "region_base"}
    for bad in ({"mask": "/etc/passwd"}, {"mask": {"sha256": "0"}}, {"box": [0, 0, 1]}, 3):
        with pytest.raises(ConfigError, match="region"):
            Request.from_json(json.dumps({"version": 1, "prompt": "a", "regions": [bad]}))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0,0,.5,1", {"box": [0, 0, 0.5, 1]}),
        ("0, 0, 0.5, 1, weight=2", {"box": [0, 0, 0.5, 1], "weight": 2}),
        ("my, mask.png", {"mask": "my, mask.png"}),
        ("mask.png,weight=0.5", {"mask": "mask.png", "weight": 0.5}),
    ],
)
def test_option(text: str, fields: dict[str, Any]) -> None:
    assert parse_region(text) == fields


def test_options_that_say_nothing() -> None:
    for text in ("", "a.png,weight=heavy"):
        with pytest.raises(ConfigError, match="--region"):
            parse_region(text)
