"""Session of a bundle of engines on a GPU: engines, memory budget, and the arena they share."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Mapping
from typing import Any

from sdengine import _native
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Module, require_pristine
from sdengine.backends.cache_file import driver_version, present_gpu
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds, check_memory_bytes
from sdengine.backends.shared_arena import Region, SharedArena
from sdengine.backends.tensorrt.arena import (
    Sizes,
    built_chunks,
    engine_sizes,
    max_chunks,
    needs_of,
    own_regions,
    plan_size,
    recorded_scratch,
    rows_of,
    used_networks,
)
from sdengine.backends.tensorrt.engine import GpuContext, GpuEngine, Shapes, piece_shape
from sdengine.backends.tensorrt.gpu_budget import GpuBudget
from sdengine.backends.tensorrt.module import Binding, GpuDecoder, GpuModule
from sdengine.backends.tensorrt.runtime_cache import RuntimeCache, RuntimeKey
from sdengine.backends.tensorrt.unet import GpuUNet
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes, size_name, symbol_sizes
from sdengine.errors import BundleError

_Size = tuple[int, int]


class TensorRtSession:
    """One bundle of engines on a GPU; see `sdengine.backends.base.Session`.

    Opening it adds up what the bundle takes by what its manifest says. Engines and arena come with
    the first network that is loaded; the budget then has the engines' own figures.

    Args:
        bundle: of target tensorrt or tensorrt-rtx.
        precision: what the engines compute in.
        module: name of TensorRT's Python module.
        memory_bytes: the most of the GPU's memory that may be taken; None for what is free.
        low_memory: an engine is freed once a request is done with it.
        device: number of the GPU.

    Raises:
        ConfigError: memory_bytes is invalid.
        BundleError: the manifest does not describe such a bundle.
        OutOfMemoryError: no image size fits.
    """

    works_after_fork: bool = False  # CUDA does not

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        module: str,
        memory_bytes: int | None,
        low_memory: bool,
        device: int = 0,
    ) -> None:
        check_memory_bytes(memory_bytes)
        self.bundle = bundle
        self.precision = precision
        self.max_chunks: int | None = max_chunks(bundle.manifest)
        self._module = module
        self._device_number = device
        self._device = _native.cuda_device(device)
        # Those that modules use; they go with the last of them.
        self._contexts: weakref.WeakValueDictionary[Any, GpuContext] = weakref.WeakValueDictionary()
        self._gpu_budget = self._foretold_budget(memory_bytes, low_memory)
        self.budget: MemoryBudget = self._gpu_budget
        self.arena: SharedArena | None = None  # until the first network is loaded
        self._engines: weakref.WeakValueDictionary[str, GpuEngine] = weakref.WeakValueDictionary()
        # Of networks that only some requests run; each goes with the last module that uses it.
        self._own: weakref.WeakValueDictionary[str, SharedArena] = weakref.WeakValueDictionary()
        self._kept: list[GpuEngine] = []  # unless memory is low, until the session is closed

    def load(self, network: str, shapes: Shapes, weights: WeightSet = PRISTINE) -> Module:
        """Open one network's engine at the profile of an image size with the fewest rows."""
        require_pristine(self.bundle.manifest.target, network, weights)
        entry = self.bundle.network(network)
        arena = self._opened_arena()
        engine = self._engine(network)
        if network not in used_networks(self.bundle.manifest):
            arena = self._own_arena(engine)
        profile = engine.profile_of(shapes)
        size = self._size_of(network, shapes)
        rows = engine.largest_sizes(profile)["batch"]
        found = resolve_shapes(network, entry.outputs, symbol_sizes(entry.inputs, shapes))
        binding = Binding(
            set_name=self._set_for(arena, size),
            rows=rows,
            inputs=tuple(TensorSpec(t.name, shapes[t.name], _seen(t.dtype)) for t in entry.inputs),
            outputs=tuple(TensorSpec(t.name, found[t.name], _seen(t.dtype)) for t in entry.outputs),
            engine_dtypes={t.name: t.dtype for t in (*entry.inputs, *entry.outputs)},
        )
        pieces = {spec.name: piece_shape(spec, rows) for spec in binding.inputs}
        context = self._context(engine, arena, binding.set_name, profile, pieces)
        if network == "unet" and size is not None:
            return GpuUNet(context, arena, binding, image_size=(size[1], size[0]))
        return (GpuDecoder if network == "vae_decoder" else GpuModule)(context, arena, binding)

    def _context(
        self, engine: GpuEngine, arena: SharedArena, set_name: str, profile: int, shapes: Shapes
    ) -> GpuContext:
        """Return a context at some shapes; modules whose rows fill up the same ones share it."""
        key = (engine.name, set_name, tuple(sorted(shapes.items())))
        context = self._contexts.get(key)
        if context is None:
            told = self._gpu_budget.measured
            context = engine.context(arena, set_name, profile, shapes, told)
            self._contexts[key] = context
        return context

    def close(self) -> None:
        """Free engines and arena; a second call does nothing."""
        for engine in list(self._engines.values()):
            if engine.kernels is not None:  # some may be compiled while an engine runs
                engine.kernels.save()
        self._kept.clear()
        self.arena = None

    def _foretold_budget(self, memory_bytes: int | None, low_memory: bool) -> GpuBudget:
        """Compare weights, scratch and tensors with the limit and with what the GPU has free."""
        manifest = self.bundle.manifest
        for name in used_networks(manifest):
            self.bundle.network(name)  # or the bundle is no good
        needs = []
        for size in manifest.resolutions:
            scratch = recorded_scratch(manifest, size)
            sizes = {
                name: engine_sizes(size, rows_of(name, manifest.max_batch), built_chunks(manifest))
                for name in scratch
            }
            regions = plan_size(manifest, size, sizes, scratch)
            needs.append(needs_of(self.bundle, size, regions, scratch))
        return GpuBudget(needs, low_memory, self._device, memory_bytes, self._contexts)

    def _opened_arena(self) -> SharedArena:
        """Return the arena, planned once from what the engines say."""
        if self.arena is None:
            budget = self.budget
            try:
                sets, needs = self._measured_sets(budget.low_memory)
                budget.update(needs)
            except BaseException:
                self._kept.clear()
                raise
            fitting = budget.fitting()
            largest = max(fitting, key=lambda size: size.arena_bytes)
            others = largest.total_bytes(budget.low_memory) - largest.arena_bytes
            self.arena = SharedArena(
                self._device,
                {size.name: sets[size.name] for size in fitting},
                cap_bytes=budget.available_bytes - others,
            )
        return self.arena

    def _own_arena(self, engine: GpuEngine) -> SharedArena:
        """Return the arena of a network that only some requests run, beside that of the others.

        Raises:
            OutOfMemoryError: it does not fit there.
        """
        arena, low_memory = self._own.get(engine.name), self.budget.low_memory
        if arena is None:
            fitting = self.budget.fitting()
            sets = {}
            for one in fitting:
                sizes, scratch = self._asked(engine, (one.width, one.height))
                sets[one.name] = own_regions(engine.name, engine.entry, sizes, scratch)
            files = {entry.path: entry.size_bytes for entry in self.bundle.manifest.files}
            taken = max(one.total_bytes(low_memory) for one in fitting)
            taken += sum(files[path] for path in engine.entry.files)
            taken += sum(one.planned_bytes for one in list(self._own.values()))
            left = max(1, self.budget.available_bytes - taken)
            arena = SharedArena(self._device, sets, cap_bytes=left)
            self._own[engine.name] = arena
        return arena

    def _asked(self, engine: GpuEngine, size: _Size) -> tuple[Sizes, int]:
        """Ask an engine for the largest that it runs at an image size, and what it computes in."""
        rows = rows_of(engine.name, self.bundle.manifest.max_batch)
        usual = engine_sizes(size, rows)
        shapes = resolve_shapes(engine.name, engine.entry.inputs, usual)
        scratch = max(map(engine.scratch_bytes, engine.profiles_of(shapes)))
        return engine.largest_sizes(engine.profile_of(shapes)), scratch

    def _measured_sets(self, low_memory: bool) -> tuple[dict[str, list[Region]], list[SizeNeeds]]:
        """Ask each engine what it computes in; keep all open, or one at a time."""
        manifest = self.bundle.manifest
        scratch: dict[_Size, dict[str, int | None]] = {s: {} for s in manifest.resolutions}
        sizes: dict[_Size, dict[str, Sizes]] = {s: {} for s in manifest.resolutions}
        for name in used_networks(manifest):
            engine = self._engine(name)
            for size in manifest.resolutions:
                sizes[size][name], scratch[size][name] = self._asked(engine, size)
            if not low_memory:
                self._kept.append(engine)
            del engine  # or it would be there beside the next one
        sets, needs = {}, []
        for size in manifest.resolutions:
            regions = plan_size(manifest, size, sizes[size], scratch[size])
            needs.append(needs_of(self.bundle, size, regions, scratch[size]))
            sets[needs[-1].name] = regions
        return sets, needs

    def _set_for(self, arena: SharedArena, size: _Size | None) -> str:
        """Return the set of regions for an image size; any where a network has none."""
        if size is None:
            return next(iter(arena.sets))
        self.budget.check(*size)
        if size_name(size) not in arena.sets:
            raise BundleError(f"the bundle was not built for {size_name(size)}.")
        return size_name(size)

    def _size_of(self, network: str, shapes: Mapping[str, tuple[int, ...]]) -> _Size | None:
        """Return width and height of an image in pixels, where the network's inputs tell."""
        found = symbol_sizes(self.bundle.network(network).inputs, shapes)
        return (found["width"], found["height"]) if "height" in found else None

    def _engine(self, network: str) -> GpuEngine:
        """Return a network's engine; its weights are on the GPU once, whatever its sizes."""
        engine = self._engines.get(network)
        if engine is None:
            trt = importlib.import_module(self._module)
            entry = self.bundle.network(network)
            with self.bundle.open(entry.files[0]) as file:  # what it claims to be proves nothing
                sha256 = self.bundle.hashed(entry.files[0], file).sha256
            gpu = present_gpu(self._device_number)
            kernels = RuntimeCache(RuntimeKey(str(trt.__version__), *gpu, driver_version(), sha256))
            self._device.make_current()  # TensorRT takes the calling thread's GPU
            engine = GpuEngine(trt, network, self.bundle.path(entry.files[0]), entry, kernels)
            self._engines[network] = engine
        return engine


def _seen(dtype: str) -> str:
    """Return a tensor's dtype on the caller's side."""
    return "int64" if dtype == "int64" else "float32"
