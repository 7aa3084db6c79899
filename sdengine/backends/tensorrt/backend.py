"""The tensorrt and tensorrt-rtx backends: networks as engines of NVIDIA's, run on its GPUs."""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine import _native
from sdengine.backends.base import Module
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.tensorrt.arena import (
    Region,
    Sizes,
    needs_of,
    plan_size,
    recorded_scratch,
    text_encoders,
    usual_sizes,
)
from sdengine.backends.tensorrt.engine import GpuEngine, piece_shape
from sdengine.backends.tensorrt.kept_content import present_gpu
from sdengine.backends.tensorrt.module import GpuDecoder, GpuModule
from sdengine.backends.tensorrt.runtime_cache import (
    RuntimeCache,
    RuntimeKey,
    driver_version,
)
from sdengine.backends.tensorrt.session import GpuSession
from sdengine.backends.tensorrt.unet import GpuUNet
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes, symbol_sizes
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork


class TensorRtRtxBackend:
    """Run bundles of target `tensorrt-rtx` on GeForce RTX and professional RTX GPUs."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    extra = "sdengine[tensorrt-rtx]"

    def __init__(self) -> None:
        self._engines: weakref.WeakValueDictionary[str, GpuEngine] = weakref.WeakValueDictionary()
        self._kept: list[GpuEngine] = []  # unless memory is low, until the bundle is closed
        self._budget: MemoryBudget | None = None
        self._session: GpuSession | None = None

    def available(self) -> tuple[bool, str]:
        """Say whether the module and a GPU are there, and the version or what is lacking."""
        if importlib.util.find_spec(self.module) is None:
            return False, f"{self.module} is not installed. Install it: pip install '{self.extra}'."
        usable, reason = _native.cuda_available()
        if not usable:
            return False, f"{reason}."
        return True, f"{self.module} {importlib.import_module(self.module).__version__}, {reason}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the engines compute in, which was decided when they were built."""
        if precision not in ("auto", stored):
            raise ConfigError.for_field(
                "precision", precision, f"auto or {stored}, which the engines were built in"
            )
        return stored

    def compile(self, network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
        """Write the network's engine; see `sdengine.compilers.tensorrt.engine.compile_engine`."""
        from sdengine.compilers.tensorrt.engine import FLAVOURS, compile_engine

        if importlib.util.find_spec(self.module) is None:
            raise BackendUnavailableError(
                f"target {self.name} needs {self.module}, which is not installed. Install it: "
                f"pip install '{self.extra}'."
            )
        return compile_engine(network, out_dir, spec, FLAVOURS[self.name])

    def load(
        self,
        bundle: Bundle,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        precision: str = "auto",
        threads: int | None = None,
    ) -> Module:
        """Open one network's engine at the profile of an image size; see `Backend.load`."""
        self.resolve(precision, bundle.manifest.precision)
        entry = bundle.network(network)
        session = self._opened_session(bundle)
        engine = self._engine(bundle, network)
        profile = engine.profile_of(shapes)
        size = self._size_of(bundle, network, shapes)
        set_name = self._set_for(size)
        rows = engine.largest_sizes(profile)["batch"]
        inputs = tuple(TensorSpec(t.name, shapes[t.name], _seen(t.dtype)) for t in entry.inputs)
        found = resolve_shapes(network, entry.outputs, symbol_sizes(entry.inputs, shapes))
        outputs = tuple(TensorSpec(t.name, found[t.name], _seen(t.dtype)) for t in entry.outputs)
        dtypes = {t.name: t.dtype for t in (*entry.inputs, *entry.outputs)}
        pieces = {spec.name: piece_shape(spec, rows) for spec in inputs}
        context = engine.context(session, set_name, profile, pieces)
        arguments = (context, session, set_name, rows, inputs, outputs, dtypes)
        if network == "unet" and size is not None:
            return GpuUNet(*arguments, image_size=size)
        return (GpuDecoder if network == "vae_decoder" else GpuModule)(*arguments)

    def plan_memory(
        self, bundle: Bundle, memory_bytes: int | None, low_memory: bool, precision: str = "auto"
    ) -> MemoryBudget:
        """Compare weights, scratch and tensors with the limit and with what the GPU has free."""
        free_bytes, _ = self._device().memory_info()
        available = min(free_bytes, memory_bytes or free_bytes)
        source = "memory_bytes" if available == memory_bytes else "free on the GPU"
        manifest = bundle.manifest
        for name in (*text_encoders(manifest), "unet", "vae_decoder"):
            bundle.network(name)  # or the bundle is no good
        needs = []
        for size in manifest.resolutions:
            scratch = recorded_scratch(manifest, size)
            sizes = {name: usual_sizes(manifest, name, *size) for name in scratch}
            regions = plan_size(manifest, size, sizes, scratch)
            needs.append(needs_of(bundle, size, regions, scratch))
        self._budget = MemoryBudget(needs, available, source, low_memory)
        return self._budget

    def close(self) -> None:
        """Free engines and arena; a second call does nothing."""
        for engine in list(self._engines.values()):
            if engine.kernels is not None:  # some may be compiled while an engine runs
                engine.kernels.save()
        self._kept.clear()
        self._session = None

    def _device(self) -> _native.Device:
        return _native.cuda_device()

    def _opened_session(self, bundle: Bundle) -> GpuSession:
        """Return the arena and what belongs to it, planned once from what the engines say."""
        if self._session is None:
            budget = self._budget or self.plan_memory(bundle, None, False)
            try:
                sets, needs = self._measured_sets(bundle, budget.low_memory)
                budget.update(needs)
            except BaseException:
                self._kept.clear()
                raise
            fitting = budget.fitting()
            largest = max(fitting, key=lambda size: size.arena_bytes)
            others = largest.total_bytes(budget.low_memory) - largest.arena_bytes
            self._session = GpuSession(
                self._device(),
                {size.name: sets[size.name] for size in fitting},
                cap_bytes=budget.available_bytes - others,
            )
        return self._session

    def _measured_sets(
        self, bundle: Bundle, low_memory: bool
    ) -> tuple[dict[str, list[Region]], list[SizeNeeds]]:
        """Ask each engine what it computes in; keep all open, or one at a time."""
        manifest = bundle.manifest
        resolutions = [(width, height) for width, height in manifest.resolutions]
        scratch: dict[tuple[int, int], dict[str, int | None]] = {s: {} for s in resolutions}
        sizes: dict[tuple[int, int], dict[str, Sizes]] = {s: {} for s in resolutions}
        for name in recorded_scratch(manifest, resolutions[0]):
            engine = self._engine(bundle, name)
            for width, height in resolutions:
                usual = usual_sizes(manifest, name, width, height)
                usual["sequence"] = manifest.architecture.text_encoders[0].max_length
                profile = engine.profile_of(resolve_shapes(name, engine.entry.inputs, usual))
                sizes[width, height][name] = engine.largest_sizes(profile)
                scratch[width, height][name] = engine.scratch_bytes(profile)
            if not low_memory:
                self._kept.append(engine)
            del engine  # or it would be there beside the next one
        sets, needs = {}, []
        for size in resolutions:
            regions = plan_size(manifest, size, sizes[size], scratch[size])
            needs.append(needs_of(bundle, size, regions, scratch[size]))
            sets[needs[-1].name] = regions
        return sets, needs

    def _set_for(self, size: tuple[int, int] | None) -> str:
        """Return the set of regions for height and width in pixels; any where there are none."""
        assert self._session is not None and self._budget is not None
        if size is None:
            return next(iter(self._session.sets))
        height, width = size
        self._budget.check(width, height)
        name = f"{width}x{height}"
        if name not in self._session.sets:
            raise BundleError(f"the bundle was not built for {name}.")
        return name

    def _size_of(
        self, bundle: Bundle, network: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, int] | None:
        """Return height and width in pixels of an image, where the network's inputs tell."""
        found = symbol_sizes(bundle.network(network).inputs, shapes)
        return (found["height"], found["width"]) if "height" in found else None

    def _engine(self, bundle: Bundle, network: str) -> GpuEngine:
        """Return a network's engine; its weights are on the GPU once, whatever its sizes."""
        engine = self._engines.get(network)
        if engine is None:
            trt = importlib.import_module(self.module)
            entry = bundle.network(network)
            (sha256,) = (f.sha256 for f in bundle.manifest.files if f.path == entry.files[0])
            kernels = RuntimeCache(
                RuntimeKey(str(trt.__version__), *present_gpu(), driver_version(), sha256)
            )
            engine = GpuEngine(trt, network, bundle.path(entry.files[0]), entry, kernels)
            self._engines[network] = engine
        return engine


class TensorRtBackend(TensorRtRtxBackend):
    """Run bundles of target `tensorrt`, built for one GPU, on such a GPU."""

    name = "tensorrt"
    module = "tensorrt"
    extra = "sdengine[tensorrt]"


def _seen(dtype: str) -> str:
    return "int64" if dtype == "int64" else "float32"
