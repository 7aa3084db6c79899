"""stable-diffusion.cpp as a side, by its Python binding."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import PROMPT, SEED, Setting
from sdengine.benchmarks.suite.sides.side import Arrays, Place, Served


class StableDiffusionCppSide:
    """stable-diffusion.cpp; see `Side`."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        self.setting = setting
        self.precision = precision
        self.place = place
        self._model: Any = None

    def start(self) -> dict[str, float]:
        """Import, and load the checkpoint, which is read as a folder of diffusers."""
        started = time.perf_counter()
        import stable_diffusion_cpp

        imported = time.perf_counter()
        given: dict[str, Any] = {}
        if self.setting.threads is not None:
            given["n_threads"] = self.setting.threads
        self._model = stable_diffusion_cpp.StableDiffusion(
            model_path=f"{self.place.checkpoint}/",
            wtype=self.precision,
            rng_type="cuda",
            vae_decode_only=True,
            flash_attn=True,
            verbose=False,
            **given,
        )
        return {"import": imported - started, "load": time.perf_counter() - imported}

    def serve(self, steps: int) -> Served:
        """Serve the request on diffusers' noise levels; it tells when each step has ended."""
        ends: list[float] = []

        def at_step(step: int, of: int, seconds: float) -> None:
            if of == steps:  # and not the tensors of loading or of the VAE's tiles
                ends.append(time.perf_counter())

        started = time.perf_counter()
        images = self._model.generate_image(
            PROMPT,
            sample_method="euler",
            sample_steps=steps,
            cfg_scale=self.setting.guidance_scale,
            seed=SEED,
            width=self.setting.resolution,
            height=self.setting.resolution,
            batch_count=self.setting.batch_size,
            sigmas=",".join(f"{sigma:.7g}" for sigma in self._sigmas(steps)),
            progress_callback=at_step,
        )
        total_ms = (time.perf_counter() - started) * 1e3
        steps_ms = [(b - a) * 1e3 for a, b in pairwise(ends)]
        stages = {"end_to_end": total_ms / self.setting.batch_size}
        if steps_ms:
            stages["unet_step"] = float(np.median(steps_ms))
        return Served(
            np.stack([np.asarray(image.convert("RGB")) for image in images]), stages, steps_ms
        )

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Give nothing: it gives no access to them."""
        return {}

    def close(self) -> None:
        """Forget the model."""
        self._model = None

    def _sigmas(self, steps: int) -> list[float]:
        """Return the noise levels of diffusers' EulerDiscreteScheduler, by the checkpoint's own."""
        from sdengine.samplers.noise_schedule import NoiseSchedule
        from sdengine.samplers.timesteps import sigmas_at, spaced_timesteps

        file = Path(str(self.place.checkpoint)) / "scheduler" / "scheduler_config.json"
        schedule = NoiseSchedule.from_config(json.loads(file.read_text()))
        levels = sigmas_at(schedule, spaced_timesteps(schedule, steps, rounded=False))
        return [*map(float, levels), 0.0]
