from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_bundle import make_tiny_bundle

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.bundle.reader import open_bundle
from sdengine.errors import BundleError, DeviceError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.loaded_networks import Networks


class RecordingSession:
    """Loads nothing, and remembers what it was asked for."""

    precision = "fp32"
    budget = MemoryBudget()
    max_chunks: int | None = None
    works_after_fork = False

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Mapping[str, tuple[int, ...]]]] = []
        self.modules_closed = 0
        self.closed = 0

    def load(
        self, network: str, shapes: Mapping[str, tuple[int, ...]], weights: WeightSet = PRISTINE
    ) -> Any:
        self.loaded.append((network, shapes))
        return SimpleNamespace(close=self._close_module)

    def close(self) -> None:
        self.closed += 1

    def _close_module(self) -> None:
        assert not self.closed, "a module is closed after its session"
        self.modules_closed += 1


@pytest.fixture
def session() -> RecordingSession:
    return RecordingSession()


@pytest.fixture
def networks(session: RecordingSession, tmp_path: Path) -> Networks:
    bundle = open_bundle(make_tiny_bundle(tmp_path / "tiny"))
    return Networks(bundle, session)


def test_shapes_follow_the_request(networks: Networks, session: RecordingSession) -> None:
    networks.get("unet", 2, 64, 128)
    network, shapes = session.loaded[0]
    assert network == "unet"
    assert shapes["sample"] == (2, 4, 8, 16)
    assert shapes["encoder_hidden_states"] == (2, 77, 8)
    assert shapes["mid_residual"] == (2, 4, 1, 2)


def test_a_shape_loads_once(networks: Networks, session: RecordingSession) -> None:
    first = networks.get("unet", 2, 64, 64)
    assert networks.get("unet", 2, 64, 64) is first
    assert networks.get("unet", 1, 64, 64) is not first
    assert len(session.loaded) == 2


def test_only_the_latest_shapes_stay(networks: Networks, session: RecordingSession) -> None:
    for batch in range(1, session.budget.most_shapes + 1):
        networks.get("unet", batch, 64, 64)
    networks.get("unet", 1, 64, 64)
    networks.get("unet", 9, 64, 64)
    loads = len(session.loaded)
    networks.get("unet", 1, 64, 64)
    assert len(session.loaded) == loads
    networks.get("unet", 2, 64, 64)
    assert len(session.loaded) == loads + 1
    assert session.modules_closed == 0  # whoever still uses it may go on


def test_unknown_network(networks: Networks) -> None:
    with pytest.raises(BundleError, match="no network 'controlnet'"):
        networks.get("controlnet", 1, 64, 64)


def test_close(networks: Networks, session: RecordingSession) -> None:
    networks.get("unet", 1, 64, 64)
    networks.get("vae_decoder", 1, 64, 64)
    networks.close()
    networks.close()
    assert session.modules_closed == 2 and session.closed
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
