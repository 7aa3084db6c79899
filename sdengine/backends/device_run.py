"""Device run: one trajectory on a GPU, by the native runtime's steps in a shared arena."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.shared_arena import (
    MAX_EVALUATIONS,
    MAX_REGISTERS,
    STEP_TENSORS,
    SharedArena,
)
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

_log = logging.getLogger(__name__)


def why_too_long(kind: TrajectoryKind) -> str:
    """Say why steps were not planned for a trajectory's program; nothing where they were."""
    if kind.evaluations <= MAX_EVALUATIONS and kind.registers <= MAX_REGISTERS:
        return ""
    return (
        f"its sampler takes {kind.evaluations} evaluations of {kind.registers} registers; "
        f"{MAX_EVALUATIONS} and {MAX_REGISTERS} were planned"
    )


class GpuRun:
    """One trajectory on the GPU; see `sdengine.backends.device_protocols.DeviceRun`.

    When others use the arena meanwhile, its registers wait in the host's memory.

    Args:
        arena: of the bundle.
        set_name: the image size whose regions it uses.
        steps: of the native runtime, not started.
        send_all: queues the copies of the U-Net's inputs; see `StagedInputs.send`.
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

    def advance(self, count: int, noise: NoiseSource) -> int:
        """Queue the next evaluations, without Python between them; all of it counts as theirs."""
        self._return()
        self._steps.advance(count, noise.generators)
        self._left -= count
        if self._steps.why_not_captured and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "unet: the rest of the run is queued piece by piece, without a graph: %s",
                self._steps.why_not_captured,
            )
        return 0

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
