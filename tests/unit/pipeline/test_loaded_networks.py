from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_bundle import make_tiny_bundle

from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.errors import BundleError, DeviceError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.loaded_networks import MAX_SHAPES_LOADED, Networks


class RecordingBackend:
    """Loads nothing, and remembers what it was asked for."""

    name = "recording"

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Mapping[str, tuple[int, ...]], dict[str, Any]]] = []
        self.closed = 0

    def load(self, bundle: Bundle, network: str, shapes: Any, **options: Any) -> Any:
        self.loaded.append((network, shapes, options))
        return SimpleNamespace(close=self._close)

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def networks(backend: RecordingBackend, tmp_path: Path) -> Networks:
    bundle = open_bundle(make_tiny_bundle(tmp_path / "tiny"))
    return Networks(bundle, backend, "fp32", 3)  # type: ignore[arg-type]


def test_shapes_follow_the_request(networks: Networks, backend: RecordingBackend) -> None:
    networks.get("unet", 2, 64, 128)
    network, shapes, options = backend.loaded[0]
    assert network == "unet"
    assert shapes["sample"] == (2, 4, 8, 16)
    assert shapes["encoder_hidden_states"] == (2, 77, 8)
    assert shapes["mid_residual"] == (2, 4, 1, 2)
    assert options == {"precision": "fp32", "threads": 3}


def test_a_shape_loads_once(networks: Networks, backend: RecordingBackend) -> None:
    first = networks.get("unet", 2, 64, 64)
    assert networks.get("unet", 2, 64, 64) is first
    assert networks.get("unet", 1, 64, 64) is not first
    assert len(backend.loaded) == 2


def test_only_the_latest_shapes_stay(networks: Networks, backend: RecordingBackend) -> None:
    for batch in range(1, MAX_SHAPES_LOADED + 1):
        networks.get("unet", batch, 64, 64)
    networks.get("unet", 1, 64, 64)
    networks.get("unet", 9, 64, 64)
    loads = len(backend.loaded)
    networks.get("unet", 1, 64, 64)
    assert len(backend.loaded) == loads
    networks.get("unet", 2, 64, 64)
    assert len(backend.loaded) == loads + 1
    assert backend.closed == 0  # whoever still uses it may go on


def test_unknown_network(networks: Networks) -> None:
    with pytest.raises(BundleError, match="no network 'controlnet'"):
        networks.get("controlnet", 1, 64, 64)


def test_close(networks: Networks, backend: RecordingBackend) -> None:
    networks.get("unet", 1, 64, 64)
    networks.get("vae_decoder", 1, 64, 64)
    networks.close()
    networks.close()
    assert backend.closed == 2
    with pytest.raises(DeviceError, match="closed"):
        networks.get("unet", 1, 64, 64)


def test_clock_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(
        "sdengine.pipeline.clock.time",
        SimpleNamespace(perf_counter_ns=lambda: now[0] * 10**6),
    )
    clock = StageClock()
    for stage, duration in (("load", 5), ("text_encoder", 1), ("unet", 10), ("unet", 20)):
        with clock.stage(stage):
            now[0] += duration
        now[0] += 2
    clock.pause()
    now[0] += 1000
    clock.resume()
    with clock.stage("vae_decoder"):
        now[0] += 4
    timings = clock.timings()
    assert (timings.load_ms, timings.text_encoder_ms) == (5, 1)
    assert (timings.unet_ms, timings.unet_calls) == (30, 2)
    assert (timings.vae_decoder_ms, timings.vae_decoder_calls) == (4, 1)
    assert (timings.other_ms, timings.total_ms) == (8, 48)
    assert timings.to_dict()["total_ms"] == 48
