"""Who has the arena, and what the registers hold."""

from __future__ import annotations

import numpy as np

from sdengine import _native
from sdengine.backends.tensorrt.shared_arena import SharedArena


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
