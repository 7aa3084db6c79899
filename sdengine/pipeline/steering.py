"""Steering of a trajectory: its controls run beside the U-Net, and what they give summed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.bundle.tensors import numpy_dtype, require_tensors
from sdengine.errors import BundleError, NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.control_plan import PlannedControl
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.unet_inputs import UNetInputs

Array = NDArray[np.float32]
HINT, TYPE, CELLS = "controlnet_cond", "control_type", "hint"
_SHARED = ("timestep", "encoder_hidden_states", "text_embeds", "time_ids")


def first_row(planned: PlannedControl, plan: RowPlan) -> int:
    """Return the first of an evaluation's rows that a control runs with; it runs with the rest."""
    return plan.num_images if planned.is_conditional_only and plan.has_negative else 0


def in_cells(hint: Array, cell: int) -> Array:
    """Return a picture [1,C,H,W] with the pixels of squares as channels: [1,C*cell*cell,h,w]."""
    _, channels, height, width = hint.shape
    rows, columns = height // cell, width // cell
    squares = hint.reshape(1, channels, rows, cell, columns, cell).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(squares.reshape(1, channels * cell * cell, rows, columns))


def _of_rows(maps: Array, rows: int, first: int) -> Array:
    """Return what rows from one on read, of maps of one image each or of one for all."""
    return np.tile(maps, (rows // len(maps), 1, 1, 1))[first:]


@dataclass
class _Run:
    """One control's network at the rows of some U-Net inputs; what it reads mostly is theirs."""

    module: Module
    arrays: dict[str, NDArray[Any]]
    sample: Array | None  # of its own, where the U-Net reads more channels
    outputs: Mapping[str, Array] = field(default_factory=dict)


class Steering:
    """The controls of one trajectory.

    Args:
        controls: at least one.
        hints: [1,C,H,W] fp32 that each of them reads.
        modules: by network and number of rows, loaded for all that `arrays` comes across.
        kept: what T2I-Adapters gave, by number of the control; shared with the request's other
            trajectories.
    """

    def __init__(
        self,
        controls: Sequence[PlannedControl],
        hints: Sequence[Array],
        modules: Mapping[tuple[str, int], Module],
        kept: dict[int, Mapping[str, Array]] | None = None,
    ) -> None:
        self._controls = controls
        self._hints = hints
        self._modules = modules
        self._runs: dict[tuple[int, int, int], _Run] = {}  # by control, U-Net's rows, first row
        self._kept = {} if kept is None else kept
        self._scaled = np.empty(0, np.float32)  # one residual before it is added to others

    def arrays(
        self, k: int, inputs: UNetInputs, plan: RowPlan, clock: StageClock
    ) -> Mapping[str, NDArray[Any]]:
        """Return what the U-Net reads at evaluation k, whose own inputs are filled already."""
        filled = {False: False, True: False}  # of T2I-Adapters or not
        for index, planned in enumerate(self._controls):
            if k not in planned.active:
                continue
            is_adapter = planned.runs_once
            first = first_row(planned, plan)
            with clock.stage(planned.network):
                if is_adapter:
                    given, targets = self._features(index), inputs.features
                    if len(self._hints[index]) > 1:
                        given = {n: _of_rows(x, len(plan.rows), first) for n, x in given.items()}
                else:
                    run = self._run(index, inputs, first)
                    if run.sample is not None:
                        np.copyto(run.sample, inputs.sample[first:])
                    given = run.outputs = run.module.run(run.arrays)
                    targets = inputs.residuals
                self._add(planned, given, targets, first, not filled[is_adapter])
            filled[is_adapter] = True
        return inputs.steered(residuals=filled[False], features=filled[True])

    def show(self, hints: Sequence[Array]) -> None:
        """Have the controls read other pictures from now on, [B,C,H,W] with one of each image."""
        self._hints = tuple(map(np.ascontiguousarray, hints))
        self._kept.clear()
        for (index, rows, first), run in self._runs.items():
            np.copyto(run.arrays[HINT], _of_rows(self._hints[index], rows, first))

    def require_finite(self, k: int) -> None:
        """Refuse numbers that a control gave at evaluation k.

        Raises:
            NonFiniteError: one is NaN or infinite; the message names the control.
        """
        given = [(index, run.outputs) for (index, _, _), run in self._runs.items()]
        for index, outputs in (*given, *self._kept.items()):
            planned = self._controls[index]
            if k in planned.active and not all(np.isfinite(x).all() for x in outputs.values()):
                raise NonFiniteError.at(planned.network)

    def _features(self, index: int) -> Mapping[str, Array]:
        """Return what a T2I-Adapter gives: the same for all images, rows and evaluations."""
        if index not in self._kept:
            planned, hint = self._controls[index], self._hints[index]
            module, cell = self._modules[planned.network, 1], planned.architecture.cell
            names, parts = [spec.name for spec in module.outputs], []
            for one in np.split(hint, len(hint)):
                given = in_cells(one, cell)
                require_tensors(planned.network, module.inputs, {CELLS: given.shape}, "float32")
                found = module.run({CELLS: given})
                parts.append({name: found[name].copy() for name in names})
            self._kept[index] = {n: np.concatenate([part[n] for part in parts]) for n in names}
        return self._kept[index]

    def _run(self, index: int, inputs: UNetInputs, first: int) -> _Run:
        rows = inputs.latents_shape[0]
        key = (index, rows, first)
        if key not in self._runs:
            planned = self._controls[index]
            module = self._modules[planned.network, rows - first]
            self._runs[key] = self._made(planned, module, self._hints[index], inputs, first)
        return self._runs[key]

    def _made(
        self, planned: PlannedControl, module: Module, hint: Array, inputs: UNetInputs, first: int
    ) -> _Run:
        rows = inputs.latents_shape[0] - first
        shape = (rows, *inputs.latents_shape[1:])
        name = planned.network
        require_tensors(name, module.inputs, {"sample": shape}, "float32")
        require_tensors(name, module.inputs, {HINT: (rows, *hint.shape[1:])}, "float32")
        given = {key: (rows, *array.shape[1:]) for key, array in inputs.residuals.items()}
        require_tensors(name, module.outputs, given, "float32")
        sample = np.empty(shape, np.float32) if inputs.has_extra else None
        arrays: dict[str, NDArray[Any]] = {
            "sample": inputs.arrays["sample"][first:] if sample is None else sample,
            HINT: _of_rows(hint, inputs.latents_shape[0], first),
        }
        if planned.architecture.control_types:
            arrays[TYPE] = np.repeat(planned.type_vector, rows, axis=0)
            require_tensors(name, module.inputs, {TYPE: arrays[TYPE].shape}, "float32")
        for spec in module.inputs:
            if spec.name in arrays:
                continue
            if spec.name not in _SHARED or spec.name not in inputs.arrays:
                raise BundleError(f"{name}: input {spec.name!r} is unknown to this release.")
            shared = inputs.arrays[spec.name]  # a view of its last rows is contiguous
            require_tensors(name, [spec], {spec.name: (rows, *shared.shape[1:])})
            if numpy_dtype(spec.dtype) != shared.dtype:
                raise BundleError(f"{name}: {spec.name!r} is not what the U-Net reads.")
            arrays[spec.name] = shared[first:]
        return _Run(module, arrays, sample)

    def _add(
        self,
        planned: PlannedControl,
        outputs: Mapping[str, Array],
        targets: Mapping[str, Array],
        first: int,
        is_first: bool,
    ) -> None:
        """Add what a control gave, weighted, to what others gave at the same evaluation."""
        for weight, (name, total) in zip(planned.weights, targets.items(), strict=True):
            given = outputs[name]
            if planned.architecture.global_pool:
                given = given.mean(axis=(2, 3), keepdims=True)
            if is_first:
                total[:first] = 0
                np.multiply(given, np.float32(weight), out=total[first:])
            elif weight == 1:
                total[first:] += given
            elif weight:
                if self._scaled.size < given.size:
                    self._scaled = np.empty(given.size, np.float32)
                scaled = self._scaled[: given.size].reshape(given.shape)
                total[first:] += np.multiply(given, np.float32(weight), out=scaled)
