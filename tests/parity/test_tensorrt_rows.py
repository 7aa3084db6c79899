"""Rows that engines compute: as many as a request has, not as many as a bundle was built for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import fake_tensorrt

import sdengine
from sdengine.backends.tensorrt.arena import rows_of
from sdengine.bundle.reader import open_bundle
from sdengine.compilers.tensorrt import engine as tensorrt_engine

OPTIONS: dict[str, Any] = {"steps": 3, "seed": 7, "sampler": "euler", "width": 64, "height": 64}
PROMPT = "a large red circle"
BUILD: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "resolutions": (64,)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        sdengine.build("demo", place, batch=4, **BUILD)
        return place


def rows_run(bundle: Path, prompt: str = PROMPT, **options: Any) -> dict[str, list[int]]:
    """Return the rows of each run of the networks that a request has run."""
    with sdengine.load(bundle) as engine:
        result = engine.generate(prompt, **OPTIONS, **options)
        assert len(result.arrays) == options.get("batch_size", 1)
        names = ("text_encoder", "unet", "vae_decoder")
        found = {name: fake_tensorrt.made(name)[0].rows_run for name in names}
    first, *steps = found["unet"]  # the first run is that before the graph is captured
    assert set(steps) <= {first}
    return {**found, "unet": steps}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"guidance_scale": 1.0}, 1),  # LCM, Turbo
        ({}, 2),  # of a bundle for four images
        ({"guidance_scale": 1.0, "batch_size": 2}, 2),
        ({"batch_size": 2}, 4),
        ({"guidance_scale": 1.0, "batch_size": 3}, 4),
        ({"batch_size": 3}, 8),  # the nearest that there is
        ({"batch_size": 4}, 8),
        ({"prompt": f"{PROMPT} AND a star"}, 4),  # three rows, by the host
    ],
)
def test_a_request_pays_for_its_own_rows(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], rows: int
) -> None:
    fake_tensorrt.install(monkeypatch)
    on_host = "prompt" in options
    found = rows_run(bundle, **options)
    assert found["unet"] == [rows] * (OPTIONS["steps"] - on_host)
    assert found["vae_decoder"] == [1] * options.get("batch_size", 1)
    texts = 1 if options.get("guidance_scale") == 1 else 2
    assert found["text_encoder"] == [texts] * (2 if on_host else 1)


def test_rows_that_fill_up_the_same_ones_share_a_context(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle) as engine:
        engine.generate(PROMPT, **OPTIONS, batch_size=3)  # six rows
        engine.generate(PROMPT, **OPTIONS, batch_size=4)  # eight
        (unet,) = fake_tensorrt.made("unet")
        assert len(unet.contexts) == 1


def test_bundles_with_one_profile_a_size_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases built them, for the most rows."""
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(
        tensorrt_engine, "row_counts", lambda network, batch: [rows_of(network, batch)]
    )
    sdengine.build("demo", tmp_path / "old", batch=2, **BUILD)
    networks = open_bundle(tmp_path / "old").manifest.networks
    assert all(not entry.options.rows for entry in networks.values())
    assert rows_run(tmp_path / "old", guidance_scale=1.0)["unet"] == [4, 4, 4]
