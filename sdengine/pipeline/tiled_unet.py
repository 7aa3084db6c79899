"""Tiled U-Net: predictions of a canvas, averaged from those of overlapping tiles of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import check_size
from sdengine.errors import ConfigError, UnsupportedShapeError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.plan import Plan
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.seamless import Shifts, require_seamless, shifted, shifted_back
from sdengine.pipeline.steering import Steering
from sdengine.pipeline.tile_grid import TileGrid
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.request.request import Request
from sdengine.request.tile_fields import usual_overlap

Array = NDArray[np.float32]
_MAX_TILES = 4096


class TiledUNet:
    """What one trajectory's tiles read, and how their predictions become one.

    Predictions are averaged, not latents, so that every sampler sees one prediction of the whole
    canvas; noise is of the canvas too. All rows of a tile's images run at once.

    Args:
        grid: in latent cells.
        extra: [1,E,H,W] or [B,E,H,W] fp32 of the canvas that is read behind the latents, if any.
        steerings: the controls of each tile, which read its part of their pictures; or nothing.
        hints: [1,C,H,W] fp32 of the controls' whole pictures.
        shifts: of seamless pictures' latents at each evaluation; None for others.
    """

    def __init__(
        self,
        grid: TileGrid,
        extra: Array | None = None,
        steerings: Sequence[Steering] = (),
        hints: Sequence[Array] = (),
        shifts: Shifts | None = None,
    ) -> None:
        self.grid = grid
        self._extra = extra
        self._steerings = steerings
        self._hints = hints
        self._shifts = shifts

    def predict(
        self,
        k: int,
        scaled: Array,
        inputs: UNetInputs,
        plan: RowPlan,
        clock: StageClock,
        cancel: threading.Event | None,
    ) -> Array:
        """Return the prediction of each row for the canvas, [rows,C,H,W] fp32.

        Args:
            k: the evaluation.
            scaled: [B,C,H,W] latents of the canvas, scaled.
            inputs: of a U-Net of the tiles' size; prompts and timestep are filled.
            plan: what the rows are.
            clock: where time is counted.
            cancel: setting it ends the trajectory before the next tile.

        Raises:
            NonFiniteError: a control gave NaN or infinity.
            Cancelled: the caller cancelled.
        """
        count, extra = plan.num_images, self._extra
        moves = None if self._shifts is None else self._shifts.at(k)
        if moves is not None:
            scaled = shifted(scaled, moves)
            extra = None if extra is None else shifted(extra, moves)
            hints = [shifted(hint, moves, self.grid.cell) for hint in self._hints]
            for own, shown in zip(self.grid, self._steerings, strict=False):  # or without any
                shown.show([own.of(hint, self.grid.cell) for hint in hints])
        total = np.zeros((len(plan.rows), *scaled.shape[1:]), np.float32)
        for index, tile in enumerate(self.grid):
            check_cancelled(cancel)
            part = tile.of(scaled)
            for first in range(0, len(plan.rows), count):
                inputs.sample[first : first + count] = part
            if extra is not None:
                inputs.read_beside(tile.of(extra))
            steering = self._steerings[index] if self._steerings else None
            arrays = inputs.arrays
            if steering is not None:
                arrays = dict(steering.arrays(k, inputs, plan, clock))
            with clock.stage("unet"):
                found = inputs.predict(k, plan, arrays)
            if steering is not None and not np.isfinite(found).all():
                steering.require_finite(k)
            tile.of(total)[...] += tile.weights * found
        return total if moves is None else shifted_back(total, moves)


def tiled_unet(
    plan: Plan,
    images: range,
    hints: Sequence[Array],
    extra: Array | None,
    steerings: Sequence[Steering],
) -> TiledUNet | None:
    """Return how some images of a plan are divided; None for not at all. The rest as above."""
    grid, request = plan.tiles, plan.request
    if grid is None:
        return None
    shifts = None
    if plan.is_shifted:
        shifts = Shifts([request.seeds[i] for i in images], grid.canvas, request.seamless)
    return TiledUNet(grid, extra, steerings, hints, shifts)


def with_tiles(request: Request, manifest: Manifest) -> Request:
    """Return a request that names its tiles, where it has some."""
    if not request.tiled_diffusion:
        return request
    tile = request.tile_size or (manifest.defaults.width, manifest.defaults.height)
    overlap = usual_overlap(tile) if request.tile_overlap is None else request.tile_overlap
    return replace(request, tile_size=tile, tile_overlap=overlap)


def tile_grid(
    request: Request, size: tuple[int, int], manifest: Manifest, *, wraps: bool = False
) -> TileGrid | None:
    """Return the grid, in latent cells, of a request whose tiles are known; None for one tile.

    What the U-Net reads of seamless pictures is shifted where its own edges do not meet, for which
    one tile is a grid too.

    Args:
        request: with tile_size and tile_overlap, if it asks for tiles.
        size: width and height of the canvas in pixels.
        manifest: of the bundle.
        wraps: the U-Net's own edges can meet.

    Raises:
        UnsupportedShapeError: the bundle's U-Net does not run the tiles.
    """
    require_seamless(request, size)
    cell = manifest.architecture.vae.downscale
    canvas = size[1] // cell, size[0] // cell
    is_whole = request.seamless == "none" or wraps
    whole = None if is_whole else TileGrid(canvas, canvas, 0, cell)
    if request.tile_size is None or request.tile_overlap is None:
        return whole
    pixels = *request.tile_size, request.tile_overlap, *size
    if odd := [one for one in pixels if one % cell]:
        raise UnsupportedShapeError(
            f"width, height, tile_size, tile_overlap: {odd[0]} is not accepted; expected multiples "
            f"of {cell}, the pixels of this model's latent cells."
        )
    width, height, overlap = (one // cell for one in pixels[:3])
    grid = TileGrid(canvas, (height, width), overlap, cell)
    if grid.is_whole:
        return whole
    if grid.count > _MAX_TILES:
        shown = f"{grid.count} tiles of {{}}x{{}} pixels".format(*request.tile_size)
        raise ConfigError.for_field("tile_size", shown, f"at most {_MAX_TILES} tiles")
    try:
        check_size(*grid.pixels, manifest)
    except UnsupportedShapeError as error:
        text = str(error).removeprefix("width, height: ")
        raise UnsupportedShapeError(f"tile_size: {text}") from None
    return grid


def tile_warnings(request: Request, passes: Sequence[TileGrid | None]) -> tuple[str, ...]:
    """Say that no pass of a request that asks for tiles has more than one."""
    if request.tiled_diffusion and all(grid is None or grid.is_whole for grid in passes):
        return ("tiled_diffusion: one tile covers the picture; it is computed as a whole.",)
    return ()
