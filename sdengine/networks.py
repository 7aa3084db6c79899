"""The networks of an open bundle, loaded for the sizes that requests ask for, and timed."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sdengine.backends.base import Array, Backend, Module, resolve_shapes
from sdengine.bundle.reader import Bundle
from sdengine.errors import DeviceError
from sdengine.memory_budget import PlansMemory
from sdengine.result import Timings

MAX_SHAPES_LOADED = 3


class StageClock:
    """Add up the time of a request's stages; time that the caller holds it does not count."""

    def __init__(self) -> None:
        self._stages: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._active_ns = 0
        self._resumed_ns = time.perf_counter_ns()

    @contextmanager
    def stage(self, name: str, calls: int = 1) -> Iterator[None]:
        """Count the time inside the block, and the calls that it makes, for a stage."""
        started_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self._stages[name] += time.perf_counter_ns() - started_ns
            self._calls[name] += calls

    def timed(self, stage: str, module: Module) -> Module:
        """Return the module with its runs counted for a stage."""
        return _TimedModule(self, stage, module)

    def pause(self) -> None:
        """Stop counting until `resume`."""
        self._active_ns += time.perf_counter_ns() - self._resumed_ns

    def resume(self) -> None:
        """Count again."""
        self._resumed_ns = time.perf_counter_ns()

    def timings(self) -> Timings:
        """Return the figures up to now."""
        total_ns = self._active_ns + time.perf_counter_ns() - self._resumed_ns
        ms = {name: value / 1e6 for name, value in self._stages.items()}
        return Timings(
            load_ms=ms.get("load", 0.0),
            text_encoder_ms=ms.get("text_encoder", 0.0),
            unet_ms=ms.get("unet", 0.0),
            vae_decoder_ms=ms.get("vae_decoder", 0.0),
            other_ms=total_ns / 1e6 - sum(ms.values()),
            total_ms=total_ns / 1e6,
            text_encoder_calls=self._calls["text_encoder"],
            unet_calls=self._calls["unet"],
            vae_decoder_calls=self._calls["vae_decoder"],
        )


class _TimedModule:
    def __init__(self, clock: StageClock, stage: str, module: Module) -> None:
        self._clock = clock
        self._stage = stage
        self._module = module
        self.inputs = module.inputs
        self.outputs = module.outputs

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with self._clock.stage(self._stage):
            return self._module.run(inputs)

    def close(self) -> None:
        self._module.close()


class Networks:
    """Load a bundle's networks on first use and keep the latest shapes of each.

    Args:
        bundle: an open bundle.
        backend: what runs it.
        precision: "fp32" or "bf16".
        threads: CPU threads, or None.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, precision: str, threads: int | None
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = precision
        self.threads = threads
        self._loaded: dict[str, OrderedDict[tuple[int, ...], Module]] = {}
        self._loading = threading.Lock()
        self._closed = False

    def get(
        self,
        network: str,
        batch: int,
        height: int,
        width: int,
        *,
        sequence: int | None = None,
        clock: StageClock | None = None,
    ) -> Module:
        """Return a network for a batch and an image size, loading it when needed.

        Args:
            network: name in the manifest.
            batch: rows of its inputs.
            height, width: image size in pixels.
            sequence: tokens of the prompt, of all its chunks; None is one chunk.
            clock: where the time of loading is counted.
        """
        with self._loading:
            if self._closed:
                raise DeviceError("the engine was closed; load the bundle again.")
            shapes_loaded = self._loaded.setdefault(network, OrderedDict())
            length = self.bundle.manifest.architecture.text_encoders[0].max_length
            key = (batch, height, width, sequence or length)
            if key in shapes_loaded:
                shapes_loaded.move_to_end(key)
                return shapes_loaded[key]
            with (clock or StageClock()).stage("load"):
                module = self._load(network, *key)
            shapes_loaded[key] = module
            if len(shapes_loaded) > MAX_SHAPES_LOADED:
                # Not closed: another request may be in the middle of using it.
                shapes_loaded.popitem(last=False)
            return module

    def release(self, *networks: str) -> None:
        """Forget some networks, so that their memory is free once nobody is using them."""
        with self._loading:
            for network in networks:
                self._loaded.pop(network, None)

    def _load(self, network: str, batch: int, height: int, width: int, sequence: int) -> Module:
        sizes = {"batch": batch, "height": height, "width": width, "sequence": sequence}
        entry = self.bundle.network(network)
        return self.backend.load(
            self.bundle,
            network,
            resolve_shapes(network, entry.inputs, sizes),
            precision=self.precision,
            threads=self.threads,
        )

    def close(self) -> None:
        """Free every network; a second call does nothing."""
        with self._loading:
            self._closed = True
            for shapes_loaded in self._loaded.values():
                for module in shapes_loaded.values():
                    module.close()
            self._loaded.clear()
        if isinstance(self.backend, PlansMemory):
            self.backend.close()
