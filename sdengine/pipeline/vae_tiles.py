"""VAE tiles: a VAE's half at a size that it was not built for, by overlapping parts of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.bundle.tensors import TensorSpec
from sdengine.pipeline.tile_grid import TileGrid

Array = NDArray[np.float32]
VAE = ("vae_decoder", "vae_encoder", "tiny_decoder", "tiny_encoder")


class VaeTiles:
    """Run a VAE's decoder or encoder at its own size on parts of a larger picture.

    Parts share half of their sides, so that each counts next to nothing where it lacks what lies
    around it. Its groups are still normalised by parts, so that tones differ a little from those of
    a VAE that was built for the whole.

    Args:
        module: loaded for one part, with one input and one output.
        size: width and height of the picture in pixels.
        downscale: pixels of a latent cell's side.
    """

    def __init__(self, module: Module, size: tuple[int, int], downscale: int) -> None:
        (read,), (given,) = module.inputs, module.outputs
        self.inputs: tuple[TensorSpec, ...]
        self.outputs: tuple[TensorSpec, ...]
        self._module = module
        self._scales = tuple(downscale if spec.name == "images" else 1 for spec in (read, given))
        canvas = size[1] // downscale, size[0] // downscale
        height, width = (int(side) // self._scales[0] for side in read.shape[2:])
        self._grid = TileGrid(canvas, (height, width), min(height, width) // 2, downscale)
        self.inputs, self.outputs = (
            (_enlarged(spec, canvas, scale),)
            for spec, scale in zip((read, given), self._scales, strict=True)
        )

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the output by name; see `Module.run`."""
        (read,), (given,) = self.inputs, self.outputs
        whole = np.zeros(tuple(map(int, given.shape)), np.float32)
        before, after = self._scales
        for tile in self._grid:
            part = np.ascontiguousarray(tile.of(inputs[read.name], before))
            found = self._module.run({read.name: part})[given.name]
            weights = tile.weights.repeat(after, axis=0).repeat(after, axis=1)
            tile.of(whole, after)[...] += weights * found
        return {given.name: whole}

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        self._module.close()


def part_size(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the largest of some sizes that lies in a larger picture; None where none does."""
    smaller = [size for size in sizes if size[0] <= width and size[1] <= height]
    return max(smaller, key=lambda size: size[0] * size[1], default=None)


def _enlarged(spec: TensorSpec, canvas: tuple[int, int], scale: int) -> TensorSpec:
    height, width = canvas
    shape = (*spec.shape[:2], height * scale, width * scale)
    return TensorSpec(spec.name, shape, spec.dtype)
