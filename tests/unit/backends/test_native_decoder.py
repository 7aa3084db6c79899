"""The native VAE decoder: pixels made beside it are those that the host makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import _native
from sdengine.backends.native.backend import NativeDecoder
from sdengine.engine import Engine
from sdengine.errors import ConfigError, NonFiniteError

SCALE = 5.5


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def decoder(engine: Engine) -> NativeDecoder:
    module = engine._networks.get("vae_decoder", 1, 64, 48)
    assert isinstance(module, NativeDecoder)
    return module


def some_latents(count: int) -> Any:
    return np.random.default_rng(8).standard_normal((count, 4, 8, 6), dtype=np.float32)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_pixels_are_the_hosts(decoder: NativeDecoder, count: int) -> None:
    latents = some_latents(count)
    pixels, others_ns = decoder.decode(latents, SCALE)
    assert pixels.shape == (count, 64, 48, 3) and others_ns >= 0
    for one, made in zip(latents, pixels, strict=True):
        images = decoder.run({"latents": one[None] * np.float32(SCALE)})["images"]
        np.testing.assert_array_equal(made, _native.images_to_uint8(images)[0])


def test_what_is_no_number_is_an_error(decoder: NativeDecoder) -> None:
    latents = some_latents(2)
    latents[1, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="vae_decoder: gave NaN or infinity"):
        decoder.decode(latents, SCALE)
    decoder.decode(some_latents(1), SCALE)


def test_latents_of_another_size_are_refused(decoder: NativeDecoder) -> None:
    with pytest.raises(ConfigError, match=r"\[1, 4, 6, 8\]; this network was loaded for"):
        decoder.decode(some_latents(1).transpose(0, 1, 3, 2), SCALE)
    assert decoder.inputs[0].shape == (1, 4, 8, 6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"latents": np.zeros((1, 4, 8, 7), np.float32)}, "latents: has shape"),
        ({"sample": np.zeros((1, 4, 8, 7), np.float32)}, "latents: has shape"),
        ({"images": np.zeros((1, 4, 64, 48), np.float32)}, "images: has shape"),
        ({"images": np.zeros((2, 3, 64, 48), np.float32)}, "images: has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    decoder: NativeDecoder, change: dict[str, Any], match: str
) -> None:
    maps = decoder.bound()
    given: dict[str, Any] = {
        "latents": some_latents(1),
        "scale": 1.0,
        "sample": maps.inputs["latents"],
        "images": maps.outputs["images"],
        **change,
    }
    with pytest.raises(ValueError, match=match):
        maps.network.run_decoder(**given)
