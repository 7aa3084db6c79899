"""U-Net on a GPU, with the sampler's steps beside it: a step is one launch of a graph."""

from __future__ import annotations

import logging
import weakref

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.device_run import GpuRun, why_too_long
from sdengine.backends.shared_arena import (
    MAX_EVALUATIONS,
    MAX_REGISTERS,
    NOISE_PRED,
    SAMPLE,
    TIMESTEP,
    SharedArena,
    region_of,
)
from sdengine.backends.tensorrt.engine import GpuContext
from sdengine.backends.tensorrt.module import Binding, GpuModule
from sdengine.errors import DeviceError
from sdengine.samplers import SamplerProgram

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
        if reason := why_too_long(kind):
            return reason
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
        run = GpuRun(self._arena, self._set, steps, self.staged.send, len(program.t) - first)
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
