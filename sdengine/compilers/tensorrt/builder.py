"""Builder of TensorRT or TensorRT-RTX: make engines with it, and read what its log tells."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdengine.backends.cache_file import Key
from sdengine.compilers.tensorrt import timing_cache
from sdengine.export.process_memory import PeakMemory

# Told the phase, the step that was done, all steps; False cancels the build.
Tell = Callable[[str, int, int], bool]

_MAX_LOG_LINES = 40
_PROFILE = re.compile(r"Constructing optimization profile number (\d+)")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


class BuilderFailure(Exception):
    """Say why there is no engine."""


class BuilderLog:
    """Keep the builder's problems, and the figures among its messages.

    Args:
        problems: warnings and errors, the last ones.
        weights_bytes: that the engine keeps on the GPU; None where the builder did not say.
    """

    def __init__(self) -> None:
        self.problems: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self.weights_bytes: int | None = None
        self._activations: dict[int, int] = {}
        self._profile = 0

    def add(self, severity: str, message: str, is_problem: bool) -> None:
        """Take a message of the builder."""
        if is_problem:
            self.problems.append(f"{severity}: {message[:400]}")
        elif found := _PROFILE.search(message):
            self._profile = int(found[1])
        elif found := _ACTIVATIONS.search(message):
            # Each GPU that is built for says it once; a context must do for any of them.
            most = max(int(found[1]), self._activations.get(self._profile, 0))
            self._activations[self._profile] = most
        elif found := _WEIGHTS.search(message):
            self.weights_bytes = max(int(found[1]), self.weights_bytes or 0)

    def activation_bytes(self, num_profiles: int) -> list[int] | None:
        """Return what a context computes in, by profile; None unless all were told."""
        found = [self._activations.get(index) for index in range(num_profiles)]
        return None if None in found else [int(size or 0) for size in found]


def build_file(trt: Any, job: dict[str, Any], log: BuilderLog, tell: Tell) -> dict[str, Any]:
    """Build the engine that a job describes, write it, and say what it took.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        job: `onnx` and `output` are paths; `profiles` has the least, usual and largest shape of
            each input, by profile; `capabilities` are compute capabilities to build for, none
            where full TensorRT builds for the GPU that is present; `workspace_bytes` and
            `optimization_level` may be None; `timing_cache` may be None, or have `path` (or None),
            `gpu` and `compute_capability`.
        log: where the builder's messages go.
        tell: told of progress.

    Raises:
        BuilderFailure: there is no engine, or no place for it.
    """
    started = time.perf_counter()
    memory = PeakMemory()
    cache = open_timing_cache(trt, job["timing_cache"])
    engine = build_engine(trt, job, make_logger(trt, log), tell, cache)
    output = Path(job["output"])
    try:
        with output.open("wb") as file:
            file.write(engine)
    except OSError as error:
        raise BuilderFailure(f"{output}: {error.strerror}") from None
    if cache is not None:
        cache.save()
    return {
        "version": str(trt.__version__),
        "seconds": time.perf_counter() - started,
        "peak_bytes": memory.end(),
        "engine_bytes": output.stat().st_size,
        "activation_bytes": log.activation_bytes(len(job["profiles"])),
        "weights_bytes": log.weights_bytes,
        "notes": [] if cache is None else cache.notes,
    }


def build_engine(
    trt: Any, job: dict[str, Any], logger: Any, tell: Tell, cache: TimingCache | None = None
) -> Any:
    """Return the engine that a job describes, serialised; see `build_file`."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["onnx"]):
        problems = [str(parser.get_error(i)) for i in range(min(parser.num_errors, 3))]
        raise BuilderFailure(f"the parser refuses the graph: {'; '.join(problems)}")
    _let_attention_decompose(trt, network)
    config = _make_config(trt, builder, job)
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise BuilderFailure(f"the builder refuses the shapes {shapes}")
    if cache is not None:
        cache.attach(config)
    monitor = _make_monitor(trt, tell)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuilderFailure("cancelled" if monitor.cancelled else "the builder gave no engine")
    if cache is not None:
        cache.take(config)
    return engine


class TimingCache:
    """What one process reads from, adds to and writes to a file of measurements.

    Args:
        path: of the file.
        key: what the measurements hold for.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path = path
        self.key = key
        self.notes: list[str] = []
        loaded = timing_cache.load(path, key)
        self._content = loaded.content
        self._replaceable = loaded.replaceable
        if loaded.reason:
            self._note(f"is not used: {loaded.reason}")

    def attach(self, config: Any) -> None:
        """Give a build what is known; TensorRT has the last word on whether it fits."""
        known = config.create_timing_cache(self._content)
        if self._content and (known is None or not config.set_timing_cache(known, False)):
            self._note("is not used: TensorRT refuses what it holds")
            self._content = b""
        if not self._content:
            fresh = config.create_timing_cache(b"")
            if fresh is None or not config.set_timing_cache(fresh, False):
                self._note("is not used: TensorRT makes none")

    def take(self, config: Any) -> None:
        """Keep what a build added."""
        cache = config.get_timing_cache()
        if cache is not None:
            self._content = bytes(cache.serialize())

    def save(self) -> None:
        """Write the file, unless it is of another kind."""
        if not self._content or not self._replaceable:
            return
        try:
            timing_cache.save(self.path, self.key, self._content)
        except OSError as error:
            self._note(f"cannot be written: {error.strerror}")

    def _note(self, text: str) -> None:
        self.notes.append(f"timing cache {self.path} {text}")


def open_timing_cache(trt: Any, wanted: dict[str, Any] | None) -> TimingCache | None:
    """Return the timing cache that a job names, or the one kept for its GPU; None for none."""
    if wanted is None:
        return None
    version, cc = str(trt.__version__), int(wanted["compute_capability"])
    key = Key(version, str(wanted["gpu"]), cc)
    if wanted["path"] is not None:
        return TimingCache(Path(wanted["path"]), key)
    with contextlib.suppress(OSError):  # the user has no place for it
        return TimingCache(timing_cache.cache_path(key), key)
    return None


def make_logger(trt: Any, log: BuilderLog) -> Any:
    """Return a logger of TensorRT's that fills a log."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            is_problem = bool(severity <= trt.ILogger.Severity.WARNING)
            log.add(severity.name.lower(), message, is_problem)

    return Logger()


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Allow other operations where no fused kernel takes the size of a head."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            # Layers come as their base class; the real one is the caller's to name.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _make_config(trt: Any, builder: Any, job: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    if job["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    if job["optimization_level"] is not None:
        config.builder_optimization_level = job["optimization_level"]
    if job["capabilities"]:
        config.num_compute_capabilities = len(job["capabilities"])
        for index, cc in enumerate(job["capabilities"]):
            name = f"SM{cc}"
            if not hasattr(trt.ComputeCapability, name):
                raise BuilderFailure(f"{trt.__name__} {trt.__version__} does not know {name}")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    # So that a context can be captured into a CUDA graph.
    if job["user_allocation"] and hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _make_monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tell of the outermost phase; a reader that is gone cancels the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                told = tell(phase_name, step, self._phases[phase_name])
                self.cancelled = self.cancelled or not told
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()
