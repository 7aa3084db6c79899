"""Stands for a system: it serves at once, and fails in the ways that systems do."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import Arrays, Place, Served


class FakeSide:
    """Its checkpoint's name says how it behaves; see the tests."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        self.setting = setting
        self.kind = place.checkpoint or ""
        self.served = 0

    def start(self) -> dict[str, float]:
        print("a system prints what it likes", flush=True)
        if self.kind == "raises":
            raise RuntimeError("Exception from a file:\nthe model is odd")
        if self.kind == "no memory":
            raise MemoryError
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "exits":
            os._exit(3)
        if self.kind == "slow":
            time.sleep(60)
        return {"import": 0.5, "load": 0.25}

    def serve(self, steps: int) -> Served:
        self.served += 1
        if self.kind == "killed later" and self.served == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        image = np.full((self.setting.batch_size, 8, 8, 3), 100, np.uint8)
        if self.kind == "other picture":
            image[:, ::2] = 0
        times: dict[str, Any] = {"end_to_end": 10.0 * steps + 5}
        if self.kind == "whole":  # tells nothing but the whole
            return Served(image, times)
        times |= {"unet_step": 10.0, "vae_decoder": 4.0, "outside": 1.0}
        latents = np.ones((1, 4, 2, 2), np.float32)
        return Served(image, times, [10.0] * steps, latents)

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        if self.kind == "whole":
            return {}
        wrong = 0.5 if self.kind == "wrong network" else 0.0
        return {
            "text_encoder": np.ones((1, 77, 4), np.float32),
            "unet": np.ones((2, 4, 2, 2), np.float32) + np.float32(wrong),
        }

    def close(self) -> None:
        """Hold nothing."""
