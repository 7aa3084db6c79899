"""Engine on a GPU: one file, and execution contexts of it that compute in memory of the arena."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdengine import _native
from sdengine.backends.shared_arena import SharedArena, region_of
from sdengine.backends.tensorrt.arena import scratch_of
from sdengine.backends.tensorrt.runtime_cache import RuntimeCache
from sdengine.bundle.manifest import NetworkEntry
from sdengine.bundle.tensors import TensorSpec, symbol_sizes
from sdengine.errors import BundleError, DeviceError, OutOfMemoryError
from sdengine.storage.regular_file import open_regular

Shapes = Mapping[str, tuple[int, ...]]
_LOGGERS: dict[str, Any] = {}  # by TensorRT's module


class GpuEngine:
    """An engine that TensorRT has read: its weights are on the GPU for as long as this lives.

    Args:
        trt: the module, tensorrt or tensorrt_rtx.
        name: of the network.
        path: of the engine.
        entry: what the manifest says about the network.
        kernels: what TensorRT-RTX compiled of the engine before; None keeps nothing.

    Raises:
        BundleError: the engine was built without its weights.
        DeviceError: this GPU or this TensorRT cannot run the engine.
    """

    def __init__(
        self,
        trt: Any,
        name: str,
        path: Path,
        entry: NetworkEntry,
        kernels: RuntimeCache | None = None,
    ) -> None:
        if entry.options.stripped:  # it would compute with whatever lies in their place
            raise BundleError(
                f"{name}: the engine was built without its weights (--strip), so it does not run."
            )
        self.name = name
        self.entry = entry
        self.kernels = kernels
        self._trt: Any = trt
        runtime = trt.Runtime(_logger(trt))
        self._engine: Any = runtime.deserialize_cuda_engine(_mapped(path))
        if self._engine is None:
            raise DeviceError(
                f"{path}: {trt.__name__} {trt.__version__} cannot load this engine on this "
                "GPU. Build the bundle again: sdengine build CHECKPOINT -o BUNDLE --gpu NAME."
            )

    def profiles_of(self, shapes: Shapes) -> list[int]:
        """Return the numbers of the profiles that shapes fit into, whatever their rows.

        Raises:
            BundleError: there is none.
        """
        found = [
            index
            for index in range(self._engine.num_optimization_profiles)
            if all(self._fits(name, shape, index) for name, shape in shapes.items())
        ]
        if not found:
            raise BundleError(f"{self.name}: the engine has no profile for {dict(shapes)}.")
        return found

    def profile_of(self, shapes: Shapes) -> int:
        """Return the number of the profile that computes shapes with the fewest rows.

        Where none has as many rows as they, it is the one with most, which then runs several times.

        Raises:
            BundleError: there is none.
        """
        profiles = self.profiles_of(shapes)
        wanted = next(iter(shapes.values()))[0]
        rows = {index: self.largest_sizes(index)["batch"] for index in profiles}
        enough = [index for index in profiles if rows[index] >= wanted]
        return min(enough, key=rows.__getitem__) if enough else max(profiles, key=rows.__getitem__)

    def _fits(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        pairs = zip(tuple(least)[1:], shape[1:], tuple(most)[1:], strict=True)
        return all(low <= size <= high for low, size, high in pairs)

    def largest_sizes(self, profile: int) -> dict[str, int]:
        """Return the value of each symbol at the largest shapes of a profile."""
        shapes = {
            tensor.name: tuple(self._engine.get_tensor_profile_shape(tensor.name, profile)[2])
            for tensor in self.entry.inputs
        }
        return symbol_sizes(self.entry.inputs, shapes)

    def scratch_bytes(self, profile: int) -> int:
        """Return what a context computes in at a profile."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(
        self,
        arena: SharedArena,
        set_name: str,
        profile: int,
        shapes: Shapes,
        measured: Callable[[str], None] = lambda set_name: None,
    ) -> GpuContext:
        """Make a context at fixed shapes, bound to the arena's addresses.

        Args:
            arena: of the bundle.
            set_name: the image size whose regions it uses.
            profile: of the engine.
            shapes: of every input, at the engine's own rows.
            measured: told the set's name once the context's `overhead_bytes` are known.

        Raises:
            OutOfMemoryError: the GPU has no memory for it.
            DeviceError: the engine refuses the profile, a shape or an address.
        """
        return GpuContext(self, arena, set_name, profile, shapes, measured)

    def open_context(self, profile: int, queue: _native.Queue) -> tuple[Any, Any]:
        """Return a context of TensorRT's, and what must live as long as it does."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        # Kept kernels are checked against this thread's CUDA context, which this makes current.
        queue.synchronize()
        config = None if self.kernels is None else self.kernels.config(self._engine, strategy)
        context = self._engine.create_execution_context(strategy if config is None else config)
        if context is None:
            raise OutOfMemoryError(f"{self.name}: the GPU has no memory for an execution context.")
        if not context.set_optimization_profile_async(profile, queue.stream):
            raise DeviceError(f"{self.name}: the engine refuses its profile {profile}.")
        queue.synchronize()
        return context, config


class GpuContext:
    """A context whose tensors and scratch lie at fixed addresses, so that graphs can hold it.

    `overhead_bytes` is what it takes of the GPU's memory beside them: what TensorRT keeps for it,
    the kernels that its first run compiled or loaded, graphs that hold it.
    """

    def __init__(
        self,
        engine: GpuEngine,
        arena: SharedArena,
        set_name: str,
        profile: int,
        shapes: Shapes,
        measured: Callable[[str], None],
    ) -> None:
        self.name = engine.name
        self.overhead_bytes = 0
        self._engine = engine  # whose weights it reads
        self._device = arena.device
        self._set = set_name
        self._told = measured
        with self.measuring():
            self._context, self._config = engine.open_context(profile, arena.queue)
        self._free_before_run: int | None = None
        self._has_run = False
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise DeviceError(f"{self.name}: the engine refuses {name} {list(shape)}.")
        for tensor in (*engine.entry.inputs, *engine.entry.outputs):
            address = arena.pool.address(set_name, region_of(self.name, tensor.name))
            if not self._context.set_tensor_address(tensor.name, address):
                raise DeviceError(f"{self.name}: the engine has no tensor {tensor.name!r}.")
        self._use_scratch(arena, set_name)

    def _use_scratch(self, arena: SharedArena, set_name: str) -> None:
        region = scratch_of(self.name)
        planned = arena.sets[set_name][region]
        needed = int(self._context.update_device_memory_size_for_shapes())
        if needed > planned:
            raise DeviceError(
                f"{self.name}: the engine computes in {needed} bytes at this size, and "
                f"{planned} were planned from what it said before."
            )
        self._context.set_device_memory(arena.pool.address(set_name, region), planned)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what the block takes of the GPU's memory to the context."""
        before, _ = self._device.memory_info()
        yield
        self._count(before)

    def _count(self, before: int) -> None:
        free, _ = self._device.memory_info()
        self.overhead_bytes += max(0, before - free)

    def enqueue(self, stream: int) -> None:
        """Queue one run, or have it recorded where the stream captures."""
        if not self._has_run and self._free_before_run is None:
            self._free_before_run, _ = self._device.memory_info()
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"{self.name}: the engine did not run.")

    def has_run(self) -> None:
        """Keep the kernels that the first run compiled; nothing may be queued when it is told.

        Raises:
            OutOfMemoryError: the run took more memory than may be had.
        """
        if not self._has_run:
            self._has_run = True
            if self._engine.kernels is not None:
                self._engine.kernels.save()
            if self._free_before_run is not None:
                self._count(self._free_before_run)
            self.tell()

    def tell(self) -> None:
        """Have the budget know what the context takes.

        Raises:
            OutOfMemoryError: all that is kept takes more memory than may be had.
        """
        self._told(self._set)

    def why_not_capturable(self, stream: int) -> str:
        """Say why a graph cannot hold the context; nothing where it can."""
        # Full TensorRT does not tell: there the capture itself shows it.
        asked = getattr(self._context, "is_stream_capturable", None)
        if asked is None or asked(stream):
            return ""
        return "the engine's context says that it is not capturable"


def _logger(trt: Any) -> Any:
    """Return the process's one logger, which lives as long as it.

    TensorRT writes to the first that it was given, whichever an engine was made with.
    """
    if trt.__name__ not in _LOGGERS:
        _LOGGERS[trt.__name__] = trt.Logger(trt.Logger.ERROR)
    return _LOGGERS[trt.__name__]


def _mapped(path: Path) -> memoryview:
    """Return a file's content without holding it in memory beside what is made of it."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def piece_shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return a tensor's shape with another number of rows."""
    shape = [int(size) for size in spec.shape]
    shape[row_axis(spec)] = rows
    return tuple(shape)


def row_axis(spec: TensorSpec) -> int:
    """Return which axis counts rows: hidden states have their layer before it."""
    return 1 if spec.name in ("hidden_states", "normed_hidden_states") else 0
