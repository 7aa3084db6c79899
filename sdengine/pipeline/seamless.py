"""Seamless pictures: what their opposite edges see of each other, in the U-Net and in the VAE.

Networks pad with zeros, so that edges differ from the rest. Where a backend's networks can read the
other edge instead (`Networks.can_wrap`), they do, and nothing else is needed. Elsewhere, and for a
U-Net that runs on tiles, the latents of an image are shifted around before each evaluation, each
time by another number of cells, and what is predicted is shifted back: over the steps every cell
lies inside. The VAE runs once, on a picture that goes on beyond its edges as far as its
convolutions see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs.picture import Pixels
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.decoding import decode
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.tiny_autoencoder import decode_tiny
from sdengine.request.request import Request

Array = NDArray[np.float32]
Moves = list[tuple[int, int]]
# Latent cells: by its convolutions a pixel of the decoder's sees 11 of them to each side.
MARGIN = 12


class Shifts:
    """By how many latent cells images are shifted at each evaluation, downward and to the right.

    The numbers are even, follow from an image's seed alone, and take nothing from its noise.

    Args:
        seeds: one an image.
        canvas: height and width in latent cells.
        seamless: as in `sdengine.Request`.
    """

    def __init__(self, seeds: Sequence[int], canvas: tuple[int, int], seamless: str) -> None:
        self._seeds = tuple(seeds)
        self._choices = tuple(
            max(side // 2, 1) if axis in seamless else 1
            for side, axis in zip(canvas, "yx", strict=True)
        )

    def at(self, k: int) -> Moves:
        """Return the shift of each image at evaluation k."""
        found = []
        for seed in self._seeds:
            drawn = hashlib.sha256(f"seamless {seed} {k}".encode()).digest()
            down, right = (
                2 * (int.from_bytes(drawn[8 * i : 8 * i + 8], "little") % choices)
                for i, choices in enumerate(self._choices)
            )
            found.append((down, right))
        return found


def shifted(maps: Array, moves: Moves, scale: int = 1) -> Array:
    """Shift maps around their edges.

    Args:
        maps: [N,C,h,w] of the images, block by block, or one for all images.
        moves: of each image, in cells.
        scale: values of a cell's side.
    """
    count = max(len(maps), len(moves))
    pairs = ((maps[i % len(maps)], moves[i % len(moves)]) for i in range(count))
    return np.stack(
        [np.roll(one, (scale * down, scale * right), (1, 2)) for one, (down, right) in pairs]
    )


def shifted_back(maps: Array, moves: Moves) -> Array:
    """Undo `shifted`."""
    return shifted(maps, [(-down, -right) for down, right in moves])


def continued(maps: NDArray[Any], seamless: str, margin: int, rows_axis: int = 2) -> NDArray[Any]:
    """Let maps go on beyond the edges that meet, by as many rows and columns; see `inner`."""
    around = [(0, 0)] * maps.ndim
    for axis, name in enumerate("yx", rows_axis):
        around[axis] = (margin, margin) if name in seamless else (0, 0)
    return np.pad(maps, around, mode="wrap")


def inner(maps: NDArray[Any], seamless: str, margin: int, rows_axis: int = 2) -> NDArray[Any]:
    """Take away what `continued` added."""
    part = [slice(None)] * maps.ndim
    for axis, name in enumerate("yx", rows_axis):
        part[axis] = slice(margin, -margin) if name in seamless else slice(None)
    return np.ascontiguousarray(maps[tuple(part)])


def vae_size(size: tuple[int, int], seamless: str, cell: int) -> tuple[int, int]:
    """Return the width and height in pixels at which the VAE computes those of a picture."""
    width, height = (
        side + 2 * MARGIN * cell * (axis in seamless) for side, axis in zip(size, "xy", strict=True)
    )
    return width, height


def decode_seamless(
    latents: Array,
    seamless: str,
    networks: WeightedNetworks,
    clock: StageClock,
    decoder: str = "vae",
) -> list[Pixels]:
    """Decode images whose edges meet, or do not, by the VAE or the tiny one; see `decode`."""
    by = decode_tiny if decoder == "tiny" else decode
    if seamless == "none" or networks.can_wrap:
        return by(latents, networks, clock, seamless)
    margin = MARGIN * networks.bundle.manifest.architecture.vae.downscale
    images = by(continued(latents, seamless, MARGIN), networks, clock)
    return [inner(image, seamless, margin, 0) for image in images]


def require_seamless(request: Request, size: tuple[int, int]) -> None:
    """Refuse, before any work, a picture whose edges are not those that are computed.

    Args:
        request: of the picture.
        size: width and height of the computation.

    Raises:
        ConfigError: so it is.
    """
    if request.seamless == "none":
        return
    if request.inpaint_area == "masked":
        accepted = "none where inpaint_area is masked"
        raise ConfigError.for_field("seamless", request.seamless, accepted)
    for axis, name in enumerate(("width", "height")):
        own = getattr(request, name)
        if "xy"[axis] in request.seamless and size[axis] != own:
            accepted = f"{size[axis]}, or another that needs no padding, with seamless"
            raise ConfigError.for_field(name, own, accepted)
