"""Latents in files: what comes back, how many bytes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError, OutputError, SdengineError
from sdengine.images.latents import Latents


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


def psnr_db(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_a_picture_comes_back_from_its_latents(engine: Engine, tmp_path: Path) -> None:
    whole = engine.generate("a large red circle on a blue background", seed=7, steps=12).arrays[0]
    for picture in (whole, whole[:100, :75]):
        latents = engine.encode(picture)
        exact = engine.decode(latents)
        assert exact.shape == picture.shape and psnr_db(exact, picture) > 30
        file = latents.save(tmp_path / "a.safetensors", overwrite=True)
        # A byte a value: 4 of them for 8 x 8 pixels, and a header.
        assert latents.values.size < file.stat().st_size < latents.values.size + 512
        loaded = Latents.load(file)
        assert loaded.size == (picture.shape[1], picture.shape[0])
        reach = np.ptp(latents.values, axis=(1, 2))
        error = np.abs(loaded.values - latents.values).max(axis=(1, 2))
        assert (error <= reach / 255 * 0.51).all()
        assert psnr_db(engine.decode(loaded), picture) > psnr_db(exact, picture) - 2
    from safetensors.numpy import load_file

    assert load_file(file)["levels"].dtype == np.uint8


def test_a_channel_without_change_and_no_hash(tmp_path: Path) -> None:
    values = np.zeros((4, 2, 3), np.float32)
    values[1] = 7
    file = Latents(values, (24, 16), "").save(tmp_path / "a.safetensors")
    found = Latents.load(file)
    np.testing.assert_array_equal(found.values, values)
    assert found.model_hash == ""
    with pytest.raises(OutputError, match="is there already"):
        found.save(file)
    with pytest.raises(OutputError, match="cannot be written"):
        found.save(tmp_path / "none" / "a.safetensors")


def test_what_is_no_latents_is_refused(engine: Engine, tmp_path: Path) -> None:
    values = np.zeros((4, 16, 16), np.float32)
    model = engine.provenance.model_hash
    for wrong in (values, [values], Latents(values[0], (128, 128), model)):
        with pytest.raises(
            ConfigError, match=r"^latents: .*sdengine.Latents with values \[C,h,w\]"
        ):
            engine.decode(wrong)  # type: ignore[arg-type]
    made = Latents(values, (128, 128), model)
    assert len(repr(made)) < 200  # no table of numbers
    doubled = Latents(values.astype(float), (128, 128), model)  # as arithmetic may leave them
    assert np.array_equal(engine.decode(doubled), engine.decode(made))
    with pytest.raises(ConfigError, match=r"^path: .*ending in \.safetensors"):
        made.save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_another_models_latents_are_refused(engine: Engine) -> None:
    own = engine.encode(np.zeros((32, 32), np.uint8))
    for other in (
        Latents(own.values, own.size, "ab" * 32),
        Latents(own.values[:3], own.size, own.model_hash),
    ):
        with pytest.raises(ConfigError, match=r"^latents: "):
            engine.decode(other)
    with pytest.raises(ConfigError, match=r"^latents: .*33x32 pixels.* more than the 32x32"):
        engine.decode(Latents(own.values, (33, 32), own.model_hash))
    with pytest.raises(SdengineError, match="multiples of 32"):
        engine.decode(Latents(own.values[:, :3], (32, 24), own.model_hash))
    with pytest.raises(ConfigError, match=r"^image: "):
        engine.encode("/nowhere.png")


@pytest.mark.parametrize("cut", [0, 5, 9, 40, 200, 300])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = Latents(np.ones((4, 4, 4), np.float32), (32, 32), "").save(tmp_path / "a.safetensors")
    content = path.read_bytes()
    for damaged in (content[:cut], content[:cut] + b"\xff" * 8 + content[cut + 8 :]):
        path.write_bytes(damaged)
        try:
            Latents.load(path)
        except ConfigError as error:
            assert str(error).startswith("latents: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": np.zeros((4, 4), np.uint8)}, "other tensors"),
        ({"more": np.zeros(1, np.uint8)}, "other tensors"),
        ({"range": np.zeros((3, 2), np.float32)}, "do not fit together"),
        ({"range": np.full((4, 2), np.nan, np.float32)}, "do not fit together"),
        (
            {"levels": np.full((4, 4, 4), 9, np.uint8), "range": np.full((4, 2), 3e38, np.float32)},
            "beyond fp32",
        ),
        ({"size": np.array([32, 10**6], np.int32)}, "which do not fit"),
        ({"size": np.array([-1, 32], np.int32)}, "which do not fit"),
        ({"size": np.array([32, 32, 3], np.int32)}, "do not fit together"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from safetensors.numpy import save_file

    tensors: dict[str, Any] = {
        "levels": np.zeros((4, 4, 4), np.uint8),
        "range": np.zeros((4, 2), np.float32),
        "size": np.array([32, 32], np.int32),
        "model": np.zeros(32, np.uint8),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert Latents.load(tmp_path / "a.safetensors").size == (32, 32)
    save_file({**tensors, **changes}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=rf"^latents: .*{message}"):
        Latents.load(tmp_path / "b.safetensors")
