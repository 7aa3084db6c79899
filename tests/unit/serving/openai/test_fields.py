"""The API's own fields: what is accepted, refused by name, or said twice."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.errors import ConfigError
from sdengine.serving.openai.fields import (
    EDITS,
    GENERATIONS,
    VARIATIONS,
    Options,
    check_side,
    read_options,
)


def test_nothing_but_a_prompt_has_the_usual_options() -> None:
    assert read_options({"prompt": "a"}, GENERATIONS) == (Options(), {"prompt": "a"})


def test_own_fields_are_read_and_the_others_left() -> None:
    fields = {
        "prompt": "a",
        "n": 3,
        "size": "64x128",
        "response_format": "url",
        "quality": "hd",
        "background": "auto",
        "moderation": "low",
        "output_format": "webp",
        "output_compression": 40,
        "user": "u",
        "safety_identifier": "s",
        "seed": 5,
        "stream": None,
    }
    options, rest = read_options(fields, GENERATIONS)
    assert options == Options(
        n=3, size=(64, 128), quality="high", as_url=True, output_format="webp", compression=40
    )
    assert rest == {"prompt": "a", "seed": 5}


def test_streams_and_fidelity() -> None:
    fields = {"stream": True, "partial_images": 2, "input_fidelity": "high"}
    options, _ = read_options(fields, EDITS)
    assert options == Options(stream=True, partial_images=2, input_fidelity="high")


@pytest.mark.parametrize("value", ["auto", "standard", "medium"])
def test_quality_without_an_effect_goes_with_steps(value: str) -> None:
    options, rest = read_options({"quality": value, "steps": 3}, GENERATIONS)
    assert (options.quality, rest) == ("medium", {"steps": 3})


def test_cfg_scale_is_the_guidance_scale() -> None:
    assert read_options({"cfg_scale": 3.0}, GENERATIONS)[1] == {"guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 0}, "n: 0"),
        ({"n": 11}, "n: 11"),
        ({"n": True}, "n: True"),
        ({"n": "2"}, "n: '2'"),
        ({"size": "512"}, "size: '512'"),
        ({"size": "1x1"}, "size: 1"),
        ({"size": "99999x8"}, "size: 99999"),
        ({"size": 512}, "size: 512"),
        ({"response_format": "jpg"}, "response_format: 'jpg'"),
        ({"quality": "best"}, "quality: 'best'"),
        ({"background": "transparent"}, "background: 'transparent'"),
        ({"moderation": "none"}, "moderation: 'none'"),
        ({"output_format": "gif"}, "output_format: 'gif'"),
        ({"output_format": "svg"}, "output_format: 'svg'"),
        ({"output_compression": 50}, "output_compression: 50.*png"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression: 101"),
        ({"stream": "true"}, "stream: 'true'"),
        ({"partial_images": 4, "stream": True}, "partial_images: 4"),
        ({"partial_images": 1}, "partial_images: 1.*stream"),
        ({"response_format": "url", "stream": True}, "response_format: 'url'.*stream"),
        ({"user": 3}, "user: 3"),
        ({"style": "vivid"}, "style: 'vivid'.*prompt"),
        ({"complexity": "low"}, "complexity: 'low'"),
        ({"frame_count": 3}, "frame_count: 3"),
        ({"svg": {"model": "a"}}, "svg: "),
        ({"input_fidelity": "high"}, "input_fidelity: 'high'.*none for generations"),
        ({"n": 2, "batch_size": 2}, "n, batch_size: both"),
        ({"n": 2, "num_images_per_prompt": 2}, "n, num_images_per_prompt: both"),
        ({"size": "64x64", "width": 64}, "size, width: both"),
        ({"quality": "high", "steps": 64}, "quality, steps: both"),
        ({"quality": "low", "num_inference_steps": 64}, "quality, num_inference_steps: both"),
        ({"cfg_scale": 2, "guidance_scale": 3}, "cfg_scale, guidance_scale: both"),
        ({"steps": 2, "num_inference_steps": 3}, "num_inference_steps, steps: both"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        read_options({"prompt": "a", **fields}, GENERATIONS)


def test_variations_are_not_streamed() -> None:
    with pytest.raises(ConfigError, match=r"^stream: True.*none for variations"):
        read_options({"stream": True}, VARIATIONS)


def test_fidelity_and_strength_say_the_same() -> None:
    with pytest.raises(ConfigError, match="input_fidelity, strength: both"):
        read_options({"input_fidelity": "low", "strength": 0.3}, EDITS)


def test_sides_that_a_format_cannot_hold_are_refused() -> None:
    check_side("webp", 16383, 8)
    check_side("png", 16384, 8)
    with pytest.raises(ConfigError, match=r"size: '8x16384'.*16383 pixels a side in webp"):
        check_side("webp", 8, 16384)
