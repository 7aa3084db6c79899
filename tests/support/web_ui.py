"""Web UI's API of the tests: tokens, pictures in base64, and a request that is soon done."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from PIL import Image

from sdengine.serving.tokens import Token

Client = Callable[[str], httpx.Client]
PLAIN: dict[str, Any] = {"prompt": "a", "width": 64, "height": 64, "steps": 2, "seed": 1}


def token(name: str) -> Token:
    """Return the token of a name."""
    return Token(name, hashlib.sha256(f"secret of {name}".encode()).hexdigest())


def png(width: int = 16, height: int = 16, mode: str = "RGB", **texts: Any) -> str:
    """Return a picture of noise."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    Image.fromarray(pixels).save(content, "PNG", **texts)
    return base64.b64encode(content.getvalue()).decode()


def opened(text: str) -> Image.Image:
    """Return the picture of a text."""
    return Image.open(io.BytesIO(base64.b64decode(text)))
