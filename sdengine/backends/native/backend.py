"""The native backend: bundles of target `native` on sdengine's own CPU kernels."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import (
    DEFAULTS,
    Array,
    Module,
    Session,
    SessionOptions,
    require_no_device,
)
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.memory_budget import MemoryBudget, check_memory_bytes
from sdengine.backends.native.banded_module import BandedModule
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.kept_weights import KeptWeights
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.backends.native.packed_cache import PackedWeights, merged_weights, packed_weights
from sdengine.backends.native.prepare import DTYPES, Prepared, prepare
from sdengine.backends.native.sampler_steps import (
    MAX_REGISTERS,
    NOISE_PRED,
    SAMPLE,
    TIMESTEP,
    NativeRun,
)
from sdengine.backends.native.split import Placement, open_split
from sdengine.bundle.image_prompts import is_image_prompt
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, symbol_sizes
from sdengine.errors import ConfigError, DeviceError, NonFiniteError
from sdengine.machine import usable_processors
from sdengine.samplers import SamplerProgram

PRECISIONS = ("auto", *DTYPES)
Tensors = Mapping[str, Array]
_Shapes = frozenset[tuple[str, tuple[int, ...]]]


class _LaidOut:
    """One network at fixed shapes, on memory of its own, for whatever weights.

    What only adds inputs that are not given or all zero is left out of a run; a second layout with
    it is made at the first run where they are not. One that reads keys and values of pictures is
    made at the first run that is given some, and freed at one that is given others.
    """

    def __init__(
        self,
        prepared: Prepared,
        specs: Sequence[TensorSpec],
        tensors: Tensors,
        threads: int,
        place: str = "",
    ) -> None:
        self.prepared = prepared
        self.specs = tuple(specs)
        self.additive = prepared.additive()
        self.threads, self.place = threads, place
        program = prepared.program_without(self.additive)
        without = LaidOutNetwork(program, tensors, threads, place)
        self._layouts: dict[tuple[bool, _Shapes], LaidOutNetwork] = {(False, frozenset()): without}
        self.outputs = tuple(
            TensorSpec(key, shape, "float32") for key, (_, shape) in program.outputs.items()
        )

    def bound(self, tensors: Tensors, is_added: bool, prompts: _Shapes) -> LaidOutNetwork:
        """Return a layout that computes with some weights.

        Args:
            tensors: the packed weights.
            is_added: with what is additive.
            prompts: names and shapes of the keys and values that it reads of pictures.
        """
        found = self._layouts.get((is_added, prompts))
        if found is None:
            others = [key for key in self._layouts if key[1] and key[1] != prompts]
            for key in others if prompts else ():
                del self._layouts[key]
            left_out = frozenset() if is_added else self.additive
            program = self.prepared.program_without(left_out, dict(prompts))
            found = LaidOutNetwork(program, tensors, self.threads, self.place)
            self._layouts[is_added, prompts] = found
        found.bind(tensors)
        return found

    def bind_all(self, tensors: Tensors) -> None:
        """Have every layout compute with some weights, so that none holds others."""
        for layout in self._layouts.values():
            layout.bind(tensors)


class NativeModule:
    """One network at fixed shapes with its weights; see `sdengine.backends.base.Module`.

    Modules of the same shapes share the memory that they compute in, and change its weights for
    their own where another one ran in between.
    """

    def __init__(self, name: str, laid_out: _LaidOut, packed: PackedWeights) -> None:
        self.name = name
        self.inputs, self.outputs = laid_out.specs, laid_out.outputs
        self.prepared = laid_out.prepared
        self._packed = packed
        self._additive = laid_out.additive
        self._laid_out: _LaidOut | None = laid_out

    def zero_unless_given(self) -> frozenset[str]:
        """Name the inputs that are only added to something."""
        return self._additive

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; inputs must be given at their shapes."""
        laid_out = self._write(inputs)
        laid_out.network.run()
        return laid_out.outputs

    def run_timed(self, inputs: Mapping[str, Array]) -> list[float]:
        """Run, and return the seconds that each operation took, in the plan's order."""
        return self._write(inputs).network.run_timed()

    def bound(self) -> LaidOutNetwork:
        """Return the network without what only adds, computing with this module's weights."""
        return self._opened().bound(self._packed.tensors, False, frozenset())

    def rest(self) -> object:
        """Return layout and the bundle's own weights; see `device_protocols.SharesItsRest`."""
        base = self._packed.base
        if base is None or base.tensors.keys() != self._packed.tensors.keys():
            return None  # a hypernetwork's layout is its own
        laid_out = self._opened()
        laid_out.bind_all(base.tensors)
        # What this module's weights lie in, if nobody else has them, becomes the other one's.
        return laid_out, base, _native.SparePages()

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        self._laid_out = None
        self._packed = PackedWeights({})

    def _write(self, inputs: Mapping[str, Array]) -> LaidOutNetwork:
        """Copy the inputs to where the network reads them."""
        laid_out = self._opened()
        for spec in self.inputs:
            given = inputs.get(spec.name)
            if given is None:
                if spec.name not in self._additive:
                    raise ConfigError(f"{self.name}: input {spec.name!r} is not given.")
            elif given.shape != spec.shape:
                raise ConfigError(
                    f"{self.name}: input {spec.name!r} is {list(given.shape)}; this network was "
                    f"loaded for {list(spec.shape)}."
                )
        is_added = any(name in inputs and inputs[name].any() for name in self._additive)
        if is_added:
            lacking = [spec for spec in self.inputs if spec.name not in inputs]
            zeros = {s.name: np.zeros([int(n) for n in s.shape], np.float32) for s in lacking}
            inputs = {**inputs, **zeros}
        prompts = frozenset((name, x.shape) for name, x in inputs.items() if is_image_prompt(name))
        network = laid_out.bound(self._packed.tensors, is_added, prompts)
        network.write(inputs)
        return network

    def _opened(self) -> _LaidOut:
        """Return what it computes in; refuse one that was closed."""
        if self._laid_out is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        return self._laid_out


class NativeUNet(NativeModule):
    """The U-Net; see `sdengine.backends.device_protocols.RunsTrajectories` for what it adds."""

    def runs_at_once(self) -> bool:
        """Say that evaluations have run when `advance` returns."""
        return True

    def refuses(self, kind: TrajectoryKind) -> str:
        """Say why a trajectory cannot run beside the network; nothing where it can."""
        rows, channels, refusal = self._maps
        if rows != kind.batch * kind.copies:
            return f"it has {kind.batch * kind.copies} rows, the network {rows}"
        if channels != kind.channels:
            return f"the network reads {channels} channels, {kind.channels} are latents"
        if kind.registers > MAX_REGISTERS:
            return f"its sampler takes {kind.registers} registers, of {MAX_REGISTERS} at most"
        return refusal

    @cached_property
    def _maps(self) -> tuple[int, int, str]:
        """Rows and channels of the latents it reads, and why steps cannot run on its maps."""
        shapes = {spec.name: spec.shape for spec in (*self.inputs, *self.outputs)}
        rows, channels = (int(size) for size in shapes[SAMPLE][:2])
        laid_out = self.bound()
        maps = (laid_out.inputs[SAMPLE], laid_out.inputs[TIMESTEP], laid_out.outputs[NOISE_PRED])
        refusal = ""
        if shapes[NOISE_PRED] != shapes[SAMPLE]:
            refusal = "the network predicts other channels than it reads"
        elif any(one.dtype != np.float32 or not one.flags.c_contiguous for one in maps):
            refusal = "the network reads or writes latents that are not rows of fp32"
        elif not all(view.flags.c_contiguous for view in laid_out.inputs.values()):
            refusal = "the network has an input whose rows do not follow each other"
        return rows, channels, refusal

    def is_ready(self, kind: TrajectoryKind) -> bool:
        """Say that there is nothing to prepare."""
        return True

    def prepare(self, kind: TrajectoryKind) -> None:
        """Do nothing: there is nothing to prepare."""

    def begin(
        self,
        kind: TrajectoryKind,
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int = 0,
    ) -> NativeRun:
        """Take a program and its registers before evaluation `first`."""
        return NativeRun(self.bound, program, guidance_scale, registers.copy(), first)


class NativeDecoder(NativeModule):
    """The VAE's decoder; see `sdengine.backends.device_protocols.DecodesPixels`."""

    def decode(self, latents: Array, scale: float) -> tuple[NDArray[np.uint8], int]:
        """Decode images one after the other."""
        started = time.perf_counter_ns()
        (spec,), maps = self.inputs, self.bound()
        if latents.shape[1:] != spec.shape[1:]:
            raise ConfigError(
                f"{self.name}: latents are {list(latents.shape)}; this network was loaded for "
                f"{list(spec.shape)}."
            )
        (sample,), (images,) = maps.inputs.values(), maps.outputs.values()
        pixels, is_finite, network_ns = maps.network.run_decoder(latents, scale, sample, images)
        if not is_finite:
            raise NonFiniteError.at(self.name)
        return pixels, time.perf_counter_ns() - started - network_ns


def _made(network: str, laid_out: _LaidOut, packed: PackedWeights) -> NativeModule:
    """Return a module of the kind that its network has."""
    if network == "unet":
        return NativeUNet(network, laid_out, packed)
    if network == "vae_decoder":
        (latents,) = laid_out.bound(packed.tensors, False, frozenset()).inputs.values()
        if latents.dtype == np.float32 and latents.flags.c_contiguous:
            return NativeDecoder(network, laid_out, packed)
    return NativeModule(network, laid_out, packed)


class NativeSession:
    """One bundle on the native kernels; see `sdengine.backends.base.Session`.

    Networks of the same shapes share the memory that they compute in, and all share the packed
    weights that are the bundle's own; both are freed with the last module that uses them.

    Args:
        bundle: of target native.
        options: how it is run; the precision is what networks compute in.
        budget: that it shares with others of the bundle; None for one of its own.
        placement: where it computes; None for anywhere.
    """

    max_chunks: int | None = None
    works_after_fork: bool = True  # the kernels' threads start anew

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        budget: NativeBudget | None = None,
        placement: Placement | None = None,
    ) -> None:
        require_no_device(NativeBackend.name, options.device)
        check_memory_bytes(options.memory_bytes)
        self.precision = options.precision
        self._bundle = bundle
        usable = usable_processors().threads
        _native.use_processors(max(usable, options.threads or 0))  # by all engines together
        threads = options.threads or usable
        self._threads = threads if placement is None else placement.threads
        self._place, self._memory = (
            ("", "") if placement is None else (placement.place, placement.memory)
        )
        self._budget = budget or NativeBudget(bundle, options, chosen_isa())
        self.budget: MemoryBudget = self._budget
        self._kept = KeptWeights(options.memory_bytes is None and not options.low_memory)
        self._laid_out: WeakValueDictionary[Hashable, _LaidOut] = WeakValueDictionary()

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Lay one network out for its shapes and map its packed weights, or merge new ones."""
        return self.load_wrapping(network, shapes, weights, "none")

    def load_wrapping(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet,
        axes: str,
    ) -> Module:
        """Load one whose edges meet, on memory of its own and the same packed weights."""
        nets = tuple((one.sha256, strength) for one, strength in weights.applied(network))
        key = (network, tuple(sorted(shapes.items())), nets, axes)
        laid_out = self._laid_out.get(key)
        if laid_out is not None:
            packed = self._packed(network, laid_out.prepared, shapes, weights)
            return _made(network, laid_out, packed)
        prepared = self._prepared(network, shapes, weights, axes)
        packed = self._packed(network, prepared, shapes, weights)
        entry = self._bundle.network(network)
        dtypes = {t.name: t.dtype for t in entry.inputs}
        specs = [TensorSpec(n, s, dtypes.get(n, "float32")) for n, s in prepared.shapes.items()]
        sides = symbol_sizes(entry.inputs, shapes)
        size = (sides.get("width", 0), sides.get("height", 0))
        if (plan := self._budget.bands(network, prepared, size)) is not None:
            return BandedModule(network, plan, packed, tuple(specs), self._threads)
        laid_out = _LaidOut(prepared, specs, packed.tensors, self._threads, self._place)
        self._laid_out[key] = laid_out
        return _made(network, laid_out, packed)

    def _prepared(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet,
        wraps: str = "none",
    ) -> Prepared:
        limit = self._budget.weight_limits.get(network)
        isa = chosen_isa()
        return prepare(self._bundle, network, shapes, self.precision, isa, limit, weights, wraps)

    def _packed(
        self,
        network: str,
        prepared: Prepared,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet,
    ) -> PackedWeights:
        own = prepared
        if weights.applied(network):  # they have tensors of their own, and part joined products
            own = self._prepared(network, shapes, PRISTINE)
        base = packed_weights(network, own.source, own.packing, own.weights, self._memory)
        if not weights.identity(network):
            return base
        packed = merged_weights(
            network, own.packing, base, prepared.source, prepared.packing, prepared.weights,
            weights, self._kept.make_room, self._memory,
        )  # fmt: skip
        self._kept.keep(packed)
        return packed

    def close(self) -> None:
        """Forget the merged weights that are kept; nothing else is left once modules are closed."""
        self._kept.clear()


class NativeBackend:
    """Run bundles of target `native` on the CPU."""

    name = "native"

    def available(self) -> tuple[bool, str]:
        """Say which instruction set's kernels run; there is always one."""
        return True, f"kernels for {chosen_isa()}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what `auto` means: bf16, but fp32 without vectors to round it fast."""
        if precision not in PRECISIONS:
            raise ConfigError.for_field("precision", precision, ", ".join(PRECISIONS))
        if precision != "auto":
            return precision
        return "fp32" if chosen_isa() == "portable" else "bf16"

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session, its weights shrunk to a limit; see `Backend.open`, `memory_limit`."""
        options = replace(options, precision=self.resolve(options.precision))
        if options.split_guidance is None:
            return NativeSession(bundle, options)
        return open_split(bundle, options, partial(NativeSession, bundle, options))
