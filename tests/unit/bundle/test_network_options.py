"""What a manifest may say of how a network was built."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sdengine.bundle.manifest import NetworkOptions, parse_manifest
from sdengine.bundle.reader import DEMO_BUNDLE
from sdengine.errors import BundleError


def manifest_with(options: Any) -> bytes:
    content = json.loads((DEMO_BUNDLE / "manifest.json").read_bytes())
    content["networks"]["unet"]["options"] = options
    return json.dumps(content).encode()


def test_what_earlier_releases_wrote_is_read_and_written_again() -> None:
    choice = {
        "op": "attention",
        "dtype": "float16",
        "nodes": ["a", "b"],
        "chosen": "native",
        "shapes": {"512x512": [[2, 4096, 8, 40], [2, 77, 8, 40]]},
        "ms": {"native": {"512x512": 0.5}, "triton": {"512x512": None}},
        "problems": {"triton": "it does not build"},
    }
    options = {
        "precision": "bf16",
        "controlnet": False,
        "scratch_bytes": {"512x512": 1000, "768x512": 2000},
        "scratch_from": "builder",
        "weight_bytes": 77,
        "kernels": "auto",
        "kernel_choices": [choice],
        "refittable": True,
        "stripped": True,
        "exact": {"int8": ["step"]},
    }
    found = parse_manifest(manifest_with(options)).networks["unet"].options
    assert found.scratch_at((768, 512)) == 2000
    assert found.scratch_at((512, 768)) is None
    assert found.kernel_choices[0].ms["triton"] == {"512x512": None}
    assert json.loads(found.model_dump_json()) == options


def test_only_what_was_said_is_written() -> None:
    assert NetworkOptions().model_dump() == {}
    assert NetworkOptions(controlnet=True).model_dump() == {"controlnet": True}


def test_what_other_releases_add_is_passed_over() -> None:
    found = parse_manifest(manifest_with({"controlnet": True, "of_tomorrow": [1]}))
    assert found.networks["unet"].options == NetworkOptions(controlnet=True)


@pytest.mark.parametrize(
    "options",
    [
        [],
        {"scratch_bytes": [5], "scratch_from": "builder"},
        {"scratch_bytes": {"128x128": "5"}},
        {"scratch_bytes": {"128x128": True}},
        {"scratch_bytes": {"128x128": -1}},
        {"weight_bytes": 1 << 60},
        {"scratch_from": "hearsay"},
        {"stripped": "no"},
        {"max_chunks": 0},
        {"exact": {"int8": "all"}},
        {"kernel_choices": [{"op": "attention"}]},
        {"kernels_reason": "x" * 3000},
    ],
)
def test_claims_of_another_type_or_range_are_refused(options: Any) -> None:
    with pytest.raises(BundleError, match=r"networks\.unet\.options"):
        parse_manifest(manifest_with(options))
