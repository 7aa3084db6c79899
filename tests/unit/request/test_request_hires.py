"""Requests with a second pass: forms of its size, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.request.request import Request


@pytest.mark.parametrize(
    ("value", "kept", "size"),
    [
        (2, 2.0, (1024, 1536)),
        ("2x", 2.0, (1024, 1536)),
        ("1.5", 1.5, (768, 1152)),
        (1.3, 1.3, (665, 998)),  # rounded down, as the web UI does
        ("1024x1024", (1024, 1024), (1024, 1024)),
        ([1024, 0], (1024, 0), (1024, 1536)),
        ("0x1000", (0, 1000), (666, 1000)),
    ],
)
def test_sizes(value: Any, kept: Any, size: tuple[int, int]) -> None:
    made = Request("a", width=512, height=768, hires=value)
    assert made.hires == kept and made.hires_size(512, 768) == size
    assert json.loads(made.to_json())["hires"] == (list(kept) if isinstance(kept, tuple) else kept)
    assert Request.from_json(made.to_json()) == made
    assert "hires_steps" not in json.loads(Request("a").to_json())


@pytest.mark.parametrize(
    ("own", "target", "cover"),
    [
        ((512, 768), (1024, 1024), (1024, 1536)),
        ((768, 512), (1024, 1024), (1536, 1024)),
        ((512, 512), (768, 768), (768, 768)),
        ((512, 768), (0, 1200), (800, 1200)),
    ],
)
def test_both_sides_are_covered(
    own: tuple[int, int], target: tuple[int, int], cover: tuple[int, int]
) -> None:
    assert Request("a", hires=target).hires_cover(*own) == cover


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hires": 0.5}, r"^hires: 0.5 .*factor from 1 to 8"),
        ({"hires": 9}, r"^hires: 9 "),
        ({"hires": "much"}, r"^hires: 'much'"),
        ({"hires": "2x3x4"}, r"^hires: '2x3x4'"),
        ({"hires": (0, 0)}, r"^hires: "),
        ({"hires": (1, 2, 3)}, r"^hires: "),
        ({"hires": (-1, 64)}, r"^hires: -1"),
        ({"hires": True}, r"^hires: True"),
        ({"hires": float("nan")}, r"^hires: nan"),
        ({"hires": "20000x20000"}, r"^hires: 20000"),
        ({"hires": (16384, 0), "width": 64, "height": 128}, r"^hires: .16384x32768 from 64x128"),
        ({"hires": 8, "width": 4096}, r"^hires: .32768x4096"),
        ({"hires": (16384, 8), "width": 64, "height": 4096}, r"^hires: .*out of 16384x1048576"),
        ({"hires": 2, "hires_upscaler": "esrgan"}, r"^hires_upscaler: .*latent_nearest, .*lanczos"),
        ({"hires": 2, "hires_strength": 1.5}, r"^hires_strength: "),
        ({"hires": 2, "hires_strength": 0.0}, r"^hires_strength: .*at least 0.025"),
        (
            {"hires": 2, "hires_strength": 0.4, "hires_steps": 500},
            r"^hires_strength: .*at least 0.5",
        ),
        ({"hires": 2, "hires_steps": -1}, r"^hires_steps: "),
        ({"hires": 2, "steps": 1000, "hires_strength": 1.0}, r"^hires_steps: .*1 to 999"),
        ({"hires_steps": 4}, r"^hires_steps: .*without hires"),
        ({"hires_upscaler": "lanczos"}, r"^hires_upscaler: .*without hires"),
        ({"hires": 2, "image": np.zeros((64, 64), np.uint8)}, r"^hires: '2x' .*none with image"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request("a", **fields)
