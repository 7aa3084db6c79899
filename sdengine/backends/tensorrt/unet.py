"""U-Net on a GPU, with the sampler's steps beside it: a step is one launch of a graph."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Container, Mapping

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.tensorrt.arena import (
    MAX_EVALUATIONS,
    MAX_REGISTERS,
    NOISE_PRED,
    SAMPLE,
    STEP_TENSORS,
    TIMESTEP,
    region_of,
)
from sdengine.backends.tensorrt.engine import GpuContext
from sdengine.backends.tensorrt.module import Binding, GpuModule
from sdengine.backends.tensorrt.shared_arena import SharedArena
from sdengine.errors import DeviceError
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

_log = logging.getLogger(__name__)
_Key = tuple[str, int, int, int, str]


class GpuUNet(GpuModule):
    """The U-Net; see `sdengine.backends.device_protocols.RunsTrajectories` for what it adds.

    Args:
        context, arena, binding: as for `GpuModule`.
        image_size: height and width in pixels.
    """

    def __init__(
        self,
        context: GpuContext,
        arena: SharedArena,
        binding: Binding,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__(context, arena, binding)
        self._image_size = image_size
        self._captured: dict[_Key, bool] = {}
        self._graph_keys: list[_Key] = []
        # Graphs hold what was captured of the context, so they go first: also where the module is
        # forgotten and nobody closes it.
        self._drop_graphs = weakref.finalize(self, _drop, arena, self._graph_keys, context)

    def refuses(self, kind: TrajectoryKind) -> str:
        """Say why a trajectory cannot run beside the network; nothing where it can."""
        rows = kind.batch * kind.copies
        if rows > self._rows:
            return f"it has {rows} rows, the engine {self._rows}"
        if kind.evaluations > MAX_EVALUATIONS or kind.registers > MAX_REGISTERS:
            return (
                f"its sampler takes {kind.evaluations} evaluations of {kind.registers} registers; "
                f"{MAX_EVALUATIONS} and {MAX_REGISTERS} were planned"
            )
        if self._dtypes[SAMPLE] != self._dtypes[NOISE_PRED]:
            return "the engine reads and writes different number types"
        if self._dtypes[TIMESTEP] != "float32":
            return f"the engine reads timesteps as {self._dtypes['timestep']}"
        (sample,) = (spec.shape for spec in self.inputs if spec.name == SAMPLE)
        if sample[1] != kind.channels:
            return f"the engine reads {sample[1]} channels, {kind.channels} are latents"
        return ""

    def is_ready(self, kind: TrajectoryKind) -> bool:
        """Say whether `prepare` has nothing left to do."""
        return self._key(kind) in self._captured

    def prepare(self, kind: TrajectoryKind) -> None:
        """Run the engine once and capture the step's graph, ahead of the first trajectory."""
        self._arena.take(self)
        self._captured[self._key(kind)] = self._capture(kind)
        self._opened().tell()

    def begin(
        self,
        kind: TrajectoryKind,
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int = 0,
    ) -> GpuRun:
        """Bring a program and its registers before evaluation `first` to the GPU."""
        # Runs of a kind share their graph, but not the program that they have brought.
        steps = self._make(kind, self._captured[self._key(kind)])
        run = GpuRun(self._arena, self._set, steps, self.send_all, len(program.t) - first)
        run.start(program, guidance_scale, registers, first)
        return run

    def close(self) -> None:
        """Free the context and its graphs; a second call does nothing."""
        self._drop_graphs()
        super().close()

    def _capture(self, kind: TrajectoryKind) -> bool:
        context, queue = self._opened(), self._arena.queue
        for spec in self.inputs:  # rows that no image has are computed too
            queue.clear(self._set, region_of(self.name, spec.name))
        # The first run at a shape does work that must not become part of a graph.
        context.enqueue(queue.stream)
        queue.synchronize()
        context.has_run()
        reason = context.why_not_capturable(queue.stream)
        if not reason:
            try:
                self._graph_keys.append(self._key(kind))
                with context.measuring():
                    self._make(kind, captured=True).warm_up()
                return True
            except DeviceError as error:
                reason = str(error)
        _log.warning("unet: every step is queued piece by piece, without a graph: %s", reason)
        return False

    def _key(self, kind: TrajectoryKind) -> _Key:
        height, width = self._image_size
        tokens = self._host["encoder_hidden_states"].shape[1]
        guided = "guided" if kind.copies == 2 else "unguided"
        return (self.name, kind.batch, height, width, f"{tokens} tokens, {guided}")

    def _make(self, kind: TrajectoryKind, captured: bool) -> _native.ProgramRunner:
        return _native.ProgramRunner(
            self._arena.pool,
            self._set,
            self._arena.graphs,
            self._key(kind),
            (kind.batch, *self._host[SAMPLE].shape[1:]),
            kind.copies,
            MAX_EVALUATIONS,
            MAX_REGISTERS,
            self._opened().enqueue,
            dtype=self._dtypes[SAMPLE],
            num_timesteps=self._rows,
            captured=captured,
            queue=self._arena.queue,
        )


def _drop(arena: SharedArena, keys: list[_Key], context: GpuContext) -> None:
    """Drop the graphs that were captured from a context, which is there until they are gone."""
    for key in keys:
        arena.graphs.drop(key)


class GpuRun:
    """One trajectory on the GPU; see `sdengine.backends.device_protocols.DeviceRun`.

    When others use the arena meanwhile, its registers wait in the host's memory.

    Args:
        arena: of the bundle.
        set_name: the image size whose regions it uses.
        steps: of the native runtime, not started.
        send_all: queues the copies of the U-Net's inputs; see `GpuModule`.
        evaluations: that it computes.
    """

    def __init__(
        self,
        arena: SharedArena,
        set_name: str,
        steps: _native.ProgramRunner,
        send_all: Callable[[Mapping[str, Array], Container[str]], None],
        evaluations: int,
    ) -> None:
        self._arena = arena
        self._set = set_name
        self._steps = steps
        self._send_all = send_all
        self._inputs: Mapping[str, Array] = {}
        self._registers: Array | None = None
        self._left = evaluations
        self._has_warned = False

    def start(
        self, program: SamplerProgram, guidance_scale: float, registers: Array, first: int
    ) -> None:
        """Bring the program and its registers before evaluation `first` to the GPU."""
        self._arena.take(self)
        tables = program.t, program.c_in, program.A, program.b, program.d
        self._steps.start(*tables, guidance_scale, registers[0])
        if first:
            self._steps.resume(registers, first)

    def use(self, inputs: Mapping[str, Array]) -> None:
        """Bring the network's inputs to the GPU, other than those that steps write."""
        self._inputs = inputs
        self._return()
        self._send_inputs()

    def advance(self, count: int, noise: NoiseSource) -> None:
        """Queue the next evaluations, without Python between them."""
        self._return()
        self._steps.advance(count, noise.generators)
        self._left -= count
        if self._steps.why_not_captured and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "unet: the rest of the run is queued piece by piece, without a graph: %s",
                self._steps.why_not_captured,
            )

    def steps_done(self) -> int:
        """Tell how many evaluations have run, without waiting."""
        return self._steps.steps_done()

    def latents(self) -> Array:
        """Wait for what is queued and return the latents."""
        self._return()
        latents = self._steps.read()
        latents.flags.writeable = False
        self._arena.keep_latents(self._set, latents)
        return latents

    def hand_over(self) -> Array:
        """Wait for what is queued, and return the registers for another run."""
        self._return()
        self._steps.read()
        self._left = 0
        return self._steps.save()

    def cancel(self) -> None:
        """End `advance`, in another thread, before its next evaluation."""
        self._steps.cancel()

    def leave(self) -> None:
        """Save the registers: others write to the arena from now on."""
        if self._left:
            self._registers = self._steps.save()

    def _return(self) -> None:
        """Take the arena back if others have used it."""
        if self._arena.take(self) or self._registers is None:
            return
        self._steps.resume(self._registers)
        self._registers = None
        self._send_inputs()

    def _send_inputs(self) -> None:
        self._send_all(self._inputs, STEP_TENSORS)
