"""Who has the arena, what the registers hold, and what a run on it tells."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sdengine import _native
from sdengine.backends.device_run import GpuRun
from sdengine.backends.shared_arena import SharedArena
from sdengine.samplers.noise import NoiseSource


class Tenant:
    """Counts how often others take the arena from it."""

    def __init__(self) -> None:
        self.left = 0

    def leave(self) -> None:
        self.left += 1


def test_latents_that_are_there_are_not_copied_and_their_run_is_told_all_the_same() -> None:
    device = _native.CpuDevice()
    arena = SharedArena(device, {"set": [("registers", 64, 0, 0)]}, 0)
    run, decoder = Tenant(), Tenant()
    latents = np.arange(16, dtype=np.float32)
    arena.take(run)
    arena.queue.upload("set", "registers", latents)
    arena.keep_latents("set", latents)
    before = device.ledger()["uploads"]
    arena.bring_latents(decoder, "set", latents)
    assert device.ledger()["uploads"] == before
    assert run.left == 1  # or it would go on in memory that the decoder has written to
    arena.bring_latents(decoder, "set", latents)
    assert device.ledger()["uploads"] == before and decoder.left == 0
    arena.bring_latents(decoder, "set", latents.copy())
    assert device.ledger()["uploads"] == before + 1
    assert not arena.take(run) and decoder.left == 1


def test_a_run_whose_graph_cannot_be_captured_again_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arena = SharedArena(_native.CpuDevice(), {"set": [("registers", 64, 0, 0)]}, 0)
    steps: Any = SimpleNamespace(
        why_not_captured="", advance=lambda count, noise: None, steps_done=lambda: 3
    )
    run = GpuRun(arena, "set", cast("_native.ProgramRunner", steps), lambda *given: None, 5)
    noise = NoiseSource([1], (4, 8, 8))
    with caplog.at_level(logging.WARNING):
        run.advance(1, noise)
        assert not caplog.records
        steps.why_not_captured = "the engine did not run"
        run.advance(2, noise)
        run.advance(2, noise)
    (record,) = caplog.records
    assert "piece by piece, without a graph: the engine did not run" in record.message
    assert run.steps_done() == 3
