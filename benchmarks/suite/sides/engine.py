"""Engines of ours as sides: every backend of the product, eager torch among them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import STAGES, Arrays, Place, Served
from sdengine.benchmarks.suite.task_inputs import given_fields

if TYPE_CHECKING:
    from sdengine.engine import Engine
    from sdengine.images.timings import Timings
    from sdengine.request.request import Request


class EngineSide:
    """An engine of ours; see `Side`."""

    backend = "native"

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        self.setting = setting
        self.precision = precision
        self.place = place
        self._engine: Engine | None = None

    def start(self) -> dict[str, float]:
        """Import and open; loading and packing of networks is told by the shortest request."""
        started = time.perf_counter()
        self._import()
        imported = time.perf_counter()
        self._engine = self._open()
        opened = time.perf_counter()
        load_ms = self._engine.run(self._request(self.setting.least_steps)).timings.load_ms
        return {"import": imported - started, "load": opened - imported, "pack": load_ms / 1e3}

    def serve(self, steps: int) -> Served:
        """Serve the request, with its texts encoded anew."""
        engine = self._engine
        assert engine is not None
        engine.forget_prompts()
        if self.setting.device == "cuda":
            return self._serve_on_gpu(engine, steps)
        latents = None
        times = [time.perf_counter()]
        step = None
        for step in engine.stream(self._request(steps)):
            times.append(time.perf_counter())
            latents = step.latents if step.latents is not None else latents
        assert step is not None and step.result is not None
        result = step.result
        return Served(
            np.stack(result.arrays),
            _stages(result.timings, self.setting.batch_size),
            latents=None if latents is None else latents.copy(),
        )

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Run each network once, in a session of its own that is freed."""
        from sdengine.benchmarks.verification import network_outputs

        assert self._engine is not None
        return network_outputs(self._engine, self.setting, states)

    def kernels(self) -> dict[str, Any]:
        """Return which operations our Triton kernels computed, by network."""
        from sdengine.benchmarks.gpu import kernels_of

        return kernels_of(self._engine.session) if self._engine is not None else {}

    def close(self) -> None:
        """Close the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _import(self) -> None:
        """Import what loading needs."""
        import sdengine.loading
        from sdengine.backends import get_backend

        assert sdengine.loading
        get_backend(self.backend).available()

    def _open(self) -> Engine:
        import sdengine

        assert self.place.bundle is not None
        return sdengine.load(self.place.bundle, self.backend, self.precision, self.setting.threads)

    def _request(self, steps: int) -> Request:
        return self.setting.request(steps, **given_fields(self.setting))

    def _serve_on_gpu(self, engine: Engine, steps: int) -> Served:
        """Serve as a caller would: a GPU that runs the steps itself is not asked for each."""
        from sdengine.benchmarks.gpu import timed

        result: Any
        result, timings = timed(engine, self._request(steps))
        return Served(np.stack(result.arrays), _stages(timings, self.setting.batch_size))


class NativeSide(EngineSide):
    """Our kernels for processors."""


class OpenVinoSide(EngineSide):
    """OpenVINO."""

    backend = "openvino"


class TensorRtRtxSide(EngineSide):
    """TensorRT-RTX."""

    backend = "tensorrt-rtx"


class TensorRtSide(EngineSide):
    """TensorRT."""

    backend = "tensorrt"


class TritonSide(EngineSide):
    """torch with our Triton kernels."""

    backend = "triton"


class EagerSide(EngineSide):
    """Torch as it is, of networks that are ours."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        super().__init__(setting, precision, place)
        self.backend = "torch-cuda" if setting.device == "cuda" else "torch"


def _stages(timings: Timings, batch_size: int) -> dict[str, float]:
    """Return milliseconds by name of STAGES; see `Served`."""
    found = {
        "outside": timings.other_ms / batch_size,
        "end_to_end": timings.total_ms / batch_size,
    }
    for name, stage in timings.stages.items():
        shown = {"unet": "unet_step"}.get(name, name)
        if stage.calls and shown in STAGES:
            found[shown] = stage.ms / (1 if name == "text_encoder" else stage.calls)
    return found
