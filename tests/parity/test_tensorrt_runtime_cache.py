"""Requests with kept kernels: what compiles again, and what becomes of a bad file; on stand-ins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt

import sdengine

OPTIONS: dict[str, Any] = {"steps": 2, "seed": 7, "sampler": "euler"}
PROMPT = "a large red circle on a blue background"
NETWORKS = ["text_encoder", "unet", "vae_decoder"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"]}
        sdengine.build("demo", place, resolutions=(128, (192, 128)), **options)
        return place


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    return tmp_path / "tensorrt"


def picture(engine: sdengine.Engine, **options: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = engine.generate(PROMPT, **{**OPTIONS, **options}).arrays[0]
    return found


def compiled() -> list[str]:
    """Return the networks that compiled since the last call."""
    found = sorted(fake_tensorrt.Engine.compiled)
    fake_tensorrt.Engine.compiled.clear()
    return found


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_the_next_load_compiles_nothing(bundle: Path, kept: Path) -> None:
    with sdengine.load(bundle) as engine:
        first = picture(engine)
        written = contents(kept)  # not only where an engine is closed in good order
        assert len(written) == 3 and all(name.endswith(".cache") for name in written)
        picture(engine, seed=8)
    assert compiled() == NETWORKS
    assert contents(kept) == written
    with sdengine.load(bundle) as engine:
        assert np.array_equal(picture(engine), first)
        assert compiled() == []
        picture(engine, width=192, height=128)
        assert compiled() == ["unet", "vae_decoder"]  # and with them their files change
    with sdengine.load(bundle, low_memory=True) as engine:
        for options in ({}, {"width": 192, "height": 128}):
            picture(engine, **options)
    assert compiled() == []
    assert contents(kept).keys() == written.keys()


def test_kernels_that_come_later_are_kept_at_the_end(bundle: Path, kept: Path) -> None:
    with sdengine.load(bundle) as engine:
        picture(engine)
        (made,) = fake_tensorrt.made("unet")
        (cache,) = made.caches
        cache.kernels.add("compiled in the background")
    assert sum(b"in the background" in content for _, content in contents(kept).values()) == 1


@pytest.mark.parametrize("how", ["damaged", "of another kind", "refused", "driver", "no folder"])
def test_pictures_are_made_whatever_is_kept(
    bundle: Path,
    kept: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with sdengine.load(bundle) as engine:
        expected = picture(engine)
    good = contents(kept)
    compiled()
    if how == "driver":
        monkeypatch.setattr("sdengine.backends.tensorrt.session.driver_version", lambda: "999.1")
    elif how == "refused":
        monkeypatch.setattr(fake_tensorrt.RuntimeCache, "START", b"kernels of 0.1: ")
    elif how == "no folder":
        for path in kept.iterdir():
            path.unlink()
        kept.rmdir()
        kept.write_text("a file")
    else:
        for path in kept.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[:-1] if how == "damaged" else b"precious")
    caplog.clear()
    with caplog.at_level(logging.WARNING), sdengine.load(bundle) as engine:
        assert np.array_equal(picture(engine), expected)
        assert np.array_equal(picture(engine), expected)
    assert compiled() == NETWORKS
    assert [record.name for record in caplog.records] == [
        "sdengine.backends.tensorrt.runtime_cache"
    ] * 3
    if how == "of another kind":
        assert {content for _, content in contents(kept).values()} == {b"precious"}
    elif how == "no folder":
        assert kept.read_text() == "a file"
    else:
        assert contents(kept).keys() == good.keys()
        with sdengine.load(bundle) as engine:
            assert np.array_equal(picture(engine), expected)
        assert compiled() == []


@pytest.mark.parametrize("lacking", ["create_runtime_config", "create_runtime_cache"])
def test_a_tensorrt_without_such_a_cache_keeps_nothing(
    bundle: Path, kept: Path, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = fake_tensorrt.Engine if "config" in lacking else fake_tensorrt.RuntimeConfig
    monkeypatch.delattr(owner, lacking)
    for _ in range(2):
        with sdengine.load(bundle) as engine:
            picture(engine)
        assert compiled() == NETWORKS
    assert not kept.exists()
