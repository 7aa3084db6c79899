"""A request's JSON: what is written comes back, and nothing else is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora
from sdengine.request.picture_fields import OPTIONS_OF, PICTURES
from sdengine.request.region import REGION_OPTIONS
from sdengine.request.request import FIELDS, MAX_SEED, Request
from sdengine.request.tile_fields import TILE_OPTIONS

FULL = Request(
    ("a", 'b "c"\n赤い円'),
    ("x", ""),
    width=64,
    height=128,
    steps=7,
    guidance_scale=3.1234567890123,
    sampler="euler_a",
    schedule="beta",
    eta=0.5,
    s_noise=1.25,
    seed=(2**64 - 1, 3),
    variation_seed=5,
    variation_strength=0.125,
    seed_width=64,
    seed_height=64,
    noise="cuda",
    emphasis="no_norm",
    clip_skip=2,
    original_size=(512, 768),
    crop=(8, 16),
)


@pytest.mark.parametrize("request_", [Request(""), FULL], ids=["defaults", "full"])
def test_a_request_comes_back(request_: Request) -> None:
    text = request_.to_json()
    assert "\n" not in text
    left_out = {"controls", "embeddings", "ip_adapters", "loras", "model", "hypernetworks"}
    left_out |= {*PICTURES, "outpaint", "hires"}
    left_out |= {*sum(OPTIONS_OF.values(), ())}
    left_out |= {"tiled_diffusion", *TILE_OPTIONS, "seamless", "regions", *REGION_OPTIONS}
    assert json.loads(text).keys() == {"version", *FIELDS} - left_out
    assert Request.from_json(text) == request_
    assert Request.from_json(text.encode()) == request_


def test_golden_text() -> None:
    """Files of requests are kept: this text must be read by every later release."""
    text = (
        '{"version": 1, "prompt": "a star", "negative_prompt": "", "width": 512, "height": 512, '
        '"steps": 25, "guidance_scale": 7.5, "guidance_rescale": 0.0, "sampler": "dpmpp_2m", '
        '"schedule": "karras", "eta": null, "s_noise": null, "s_churn": null, "s_tmin": null, '
        '"s_tmax": null, "seed": 3, "batch_size": 2, "variation_seed": null, '
        '"variation_strength": 0.0, "seed_width": null, "seed_height": null, "noise": "cpu", '
        '"emphasis": "original", "clip_skip": null, "original_size": null, "crop": [0, 0], '
        '"target_size": null, "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}'
    )
    written = json.loads(Request("a star", seed=3, batch_size=2).to_json())
    assert json.loads(text).items() <= written.items()
    assert Request.from_json(text) == Request("a star", seed=3, batch_size=2)


def test_what_is_left_out_is_a_default() -> None:
    assert Request.from_json('{"version": 1, "prompt": "a"}') == Request("a")


def test_embeddings_are_records() -> None:
    record = {"name": "my cat", "sha256": "0" * 64}
    text = json.dumps({"version": 1, "prompt": "a", "embeddings": [record]})
    request = Request.from_json(text)
    assert request.embeddings == (Embedding("my cat", "0" * 64),)
    assert not request.embeddings[0].is_given
    assert json.loads(request.to_json())["embeddings"] == [record]
    assert Request.from_json(request.to_json()) == request
    none = Request("a", embeddings=())
    assert json.loads(none.to_json())["embeddings"] == []
    assert Request.from_json(none.to_json()).embeddings == ()


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.text(max_size=40),
    scale=st.floats(0, 100),
    seed=st.integers(0, MAX_SEED) | st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=4),
)
def test_any_request_comes_back(prompt: str, scale: float, seed: Any) -> None:
    request = Request(prompt, guidance_scale=scale, seed=seed)
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": None}, "version: None"),
        ({"version": 2}, "version: 2 is not accepted; expected 1"),
        ({"version": True}, "version: True"),
        ({"version": "1"}, "version: '1'"),
        ({"prompt": None}, "prompt: None"),
        ({"prompt": 3}, "prompt: 3"),
        ({"steps": 10**9}, "steps: 1000000000"),
        ({"steps": 3.0}, "steps: 3.0"),
        ({"steps": True}, "steps: True"),
        ({"width": "64"}, "width: '64'"),
        ({"guidance_scale": float("nan")}, "guidance_scale: nan"),
        ({"seed": [1, -1]}, "seed: -1"),
        ({"crop": [1]}, r"crop: \[1\]"),
        ({"noise": "gpu"}, "noise: 'gpu'"),
        ({"embeddings": "x.pt"}, "embeddings: 'x.pt'.*expected a list"),
        ({"embeddings": ["x.pt"]}, "embeddings: 'x.pt'.*expected a list of up to 1000 objects"),
        ({"embeddings": [{"name": "x", "sha256": "../x"}]}, "embeddings: {'name': 'x'"),
        ({"embeddings": [{"name": "a\nb", "sha256": "0" * 64}]}, "embeddings: {'name'"),
        ({"embeddings": [{"name": "x", "sha256": "0" * 64}] * 1001}, "embeddings: "),
        (
            {"embeddings": [{"name": "x", "sha256": c * 64} for c in "01"]},
            "embeddings: '00.*' and '11.*' are both called 'x'",
        ),
        ({"step": 3}, "'step': a request has no such field.*Did you mean steps"),
        ({"\x1b[2J": 3}, r"'\\x1b\[2J'"),
        ({"num_inference_steps": 3}, "'num_inference_steps'"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], message: str) -> None:
    text = json.dumps({"version": 1, "prompt": "a", **change})
    with pytest.raises(ConfigError, match=message):
        Request.from_json(text)


@pytest.mark.parametrize(
    ("field", "strengths"),
    [
        ("loras", {"text": 1, "unet": 1}),
        ("hypernetworks", {"strength": 1}),
        ("model", {"share": 1}),
    ],
)
def test_a_bad_record_of_weights_is_named(field: str, strengths: dict[str, Any]) -> None:
    record = {"name": "a", "sha256": "0" * 64, **strengths}
    changes: list[dict[str, Any]] = [
        {"name": "\ud800"},
        {"name": 3},
        {"sha256": "../a"},
        {"path": "a"},
    ]
    changes += [{one: bad} for one in strengths for bad in (10**400, float("nan"), "1", True, None)]
    for change in changes:
        text = json.dumps({"version": 1, "prompt": "a", field: [{**record, **change}]})
        with pytest.raises(ConfigError, match=rf"^{field}: "):
            Request.from_json(text)


def test_uses_that_no_record_could_say() -> None:
    nets = tuple(HypernetworkUse(str(i), f"{i:064x}", 1.0) for i in range(17))
    assert Request("a", hypernetworks=nets[:16]).hypernetworks == nets[:16]
    with pytest.raises(ConfigError, match="hypernetworks: '17 files' is not accepted"):
        Request("a", hypernetworks=nets)
    for bad in (1e9, float("nan")):
        with pytest.raises(ConfigError, match=r"loras: \{'a': "):
            Request("a", loras=(Lora("a", "0" * 64, 1.0, bad),))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "1" * 10_000, b"\xff\xfe\xfd"]
)
def test_text_that_is_no_request(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="request: it"):
        Request.from_json(text)


def test_the_prompt_is_needed() -> None:
    with pytest.raises(ConfigError, match="prompt: it is missing"):
        Request.from_json('{"version": 1}')
