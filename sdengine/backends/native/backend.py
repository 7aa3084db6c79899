"""The native backend: bundles of target `native` on sdengine's own CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import (
    DEFAULTS,
    Array,
    Module,
    Session,
    SessionOptions,
    require_no_device,
)
from sdengine.backends.machine import usable_processors
from sdengine.backends.memory_budget import MemoryBudget, check_memory_bytes
from sdengine.backends.native.banded_module import BandedModule
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.backends.native.packed_cache import PackedWeights, packed_weights
from sdengine.backends.native.prepare import DTYPES, Prepared, prepare
from sdengine.bundle.image_prompts import is_image_prompt
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, symbol_sizes
from sdengine.errors import ConfigError, DeviceError

PRECISIONS = ("auto", *DTYPES)
_Shapes = frozenset[tuple[str, tuple[int, ...]]]


class NativeModule:
    """One network at fixed shapes, on memory of its own; see `sdengine.backends.base.Module`.

    What only adds inputs that are not given or all zero is left out of a run; a second layout with
    it is made at the first run where they are not. One that reads keys and values of pictures is
    made at the first run that is given some, and freed at one that is given others.
    """

    def __init__(
        self,
        name: str,
        prepared: Prepared,
        packed: PackedWeights,
        specs: Sequence[TensorSpec],
        threads: int,
    ) -> None:
        self.name = name
        self.inputs = tuple(specs)
        self._prepared = prepared
        self._packed = packed  # shared with the same network at other sizes
        self._threads = threads
        self._additive = prepared.additive()
        self._with_all: LaidOutNetwork | None = None
        self._prompted: dict[tuple[bool, _Shapes], LaidOutNetwork] = {}
        program = prepared.program_without(self._additive)
        self._without: LaidOutNetwork | None = LaidOutNetwork(program, packed.tensors, threads)
        self.outputs = tuple(
            TensorSpec(key, shape, "float32") for key, (_, shape) in program.outputs.items()
        )

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

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        self._without = self._with_all = None
        self._prompted.clear()

    def _write(self, inputs: Mapping[str, Array]) -> LaidOutNetwork:
        """Copy the inputs to where the network reads them."""
        if self._without is None:
            raise DeviceError(f"{self.name}: the network was closed.")
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
        laid_out = self._without
        is_added = any(name in inputs and inputs[name].any() for name in self._additive)
        if is_added:
            lacking = [spec for spec in self.inputs if spec.name not in inputs]
            zeros = {s.name: np.zeros([int(n) for n in s.shape], np.float32) for s in lacking}
            inputs = {**inputs, **zeros}
        prompts = frozenset((name, x.shape) for name, x in inputs.items() if is_image_prompt(name))
        if prompts:
            laid_out = self._with_prompts(is_added, prompts)
        elif is_added:
            if self._with_all is None:
                program = self._prepared.program()
                self._with_all = LaidOutNetwork(program, self._packed.tensors, self._threads)
            laid_out = self._with_all
        laid_out.write(inputs)
        return laid_out

    def _with_prompts(self, is_added: bool, prompts: _Shapes) -> LaidOutNetwork:
        if (is_added, prompts) not in self._prompted:
            others = [key for key in self._prompted if key[1] != prompts]
            for key in others:
                del self._prompted[key]
            left_out = frozenset() if is_added else self._additive
            program = self._prepared.program_without(left_out, dict(prompts))
            made = LaidOutNetwork(program, self._packed.tensors, self._threads)
            self._prompted[is_added, prompts] = made
        return self._prompted[is_added, prompts]


class NativeSession:
    """One bundle on the native kernels; see `sdengine.backends.base.Session`.

    Networks share only packed weights, which are freed with the last module that reads them.
    """

    max_chunks: int | None = None
    works_after_fork: bool = True  # the kernels' threads start anew

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        require_no_device(NativeBackend.name, options.device)
        check_memory_bytes(options.memory_bytes)
        self.precision = options.precision
        self._bundle = bundle
        self._threads = options.threads or usable_processors().threads
        self._budget = NativeBudget(bundle, options, chosen_isa())
        self.budget: MemoryBudget = self._budget

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Lay one network out for its shapes and map its packed weights."""
        limit = self._budget.weight_limits.get(network)
        prepared = prepare(
            self._bundle, network, shapes, self.precision, chosen_isa(), limit, weights
        )
        entry = self._bundle.network(network)
        dtypes = {t.name: t.dtype for t in entry.inputs}
        specs = [TensorSpec(n, s, dtypes.get(n, "float32")) for n, s in prepared.shapes.items()]
        merged = weights.weights(network, prepared.weights)
        packed = packed_weights(network, prepared.source, prepared.packing, merged, weights)
        sides = symbol_sizes(entry.inputs, shapes)
        size = (sides.get("width", 0), sides.get("height", 0))
        if (plan := self._budget.bands(network, prepared, size)) is not None:
            return BandedModule(network, plan, packed, tuple(specs), self._threads)
        return NativeModule(network, prepared, packed, specs, self._threads)

    def close(self) -> None:
        """Do nothing: nothing is left once the modules are closed."""


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
        return NativeSession(bundle, replace(options, precision=self.resolve(options.precision)))
