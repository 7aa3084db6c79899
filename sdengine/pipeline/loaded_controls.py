"""Loaded controls: the networks that steer a trajectory, and its tiles where it has some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.plan import Plan, Prepared
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.steering import Steering, first_row


def load_steerings(
    plan: Plan,
    prepared: Prepared,
    row_plans: Sequence[RowPlan],
    networks: WeightedNetworks,
    clock: StageClock,
) -> list[Steering]:
    """Load the networks of a plan's controls for each number of rows that they run with.

    Returns:
        A steering for each tile, by its part of the controls' pictures; one without tiles, none
        without controls.
    """
    sequence = prepared.conditioning.prompt_embeds.shape[1]
    wanted: dict[tuple[str, int], None] = {}
    for planned in plan.controls:
        for k in sorted(planned.active):
            rows = row_plans[int(plan.program.step[k])]
            count = len(rows.rows) - first_row(planned, rows)
            wanted[planned.network, 1 if planned.runs_once else count] = None
    modules = {
        (network, rows): networks.get(
            network,
            rows,
            *plan.unet_size[::-1],
            sequence=sequence,
            clock=clock,
            wraps=plan.unet_wraps,
        )
        for network, rows in wanted
    }
    if not plan.controls:
        return []
    hints = [prepared.hints]
    if plan.tiles is not None:
        cell = plan.tiles.cell
        hints = [
            tuple(np.ascontiguousarray(tile.of(hint, cell)) for hint in prepared.hints)
            for tile in plan.tiles
        ]
    # Those of shifted pictures differ from one evaluation to the next.
    kept = {} if plan.is_shifted else prepared.features
    return [
        Steering(plan.controls, own, modules, kept.setdefault(index, {}))
        for index, own in enumerate(hints)
    ]
