"""Regions of the picture: how much each prompt that AND joins counts in each latent cell.

With a prompt for the whole picture in front, regions whose maps sum to S in a cell share 1 - base
of it, each by its map over the larger of S and 1, and that prompt has the rest: all of it where
there is no region. Without one they share all of it, each by its map over S. So what a cell's
prompts count always sums to 1; the weight of a part, as in `a AND b:0.6`, multiplies what it
counts.

Source: the base's share and the way in which predictions are combined are those of the web UI's
regional prompter in its latent mode; maps over their sum are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs.mask import Box, Weights, mask_weights, resized_weights
from sdengine.prompt.plan import ImageRows
from sdengine.request.region import USUAL_BASE, Region
from sdengine.request.request import Request

Array = NDArray[np.float32]


def require_regions(
    request: Request, images: Sequence[ImageRows], size: tuple[int, int], cell: int
) -> None:
    """Refuse, before any network runs, regions that do not go with the prompts.

    Args:
        request: whose regions they are.
        images: the rows of every image in a step of its prompt plan.
        size: width and height of the computation.
        cell: pixels along a side of a latent cell.

    Raises:
        ConfigError: a prompt has more or fewer parts, only the record of a mask is known, a region
            is nowhere or a cell in none, or region_base has no effect.
    """
    count = len(request.regions)
    if not count:
        return
    counts = [len(parts) for _, parts in images]
    for index, parts in enumerate(counts):
        if parts not in (count, count + 1):
            name = "the prompt" if len(counts) == 1 else f"prompt[{index}]"
            raise ConfigError(
                f"regions: there are {count}, and {name} is {_parts(parts)} joined by AND; "
                f"expected {_parts(count)}, one for each region, or {count + 1}, the first of them "
                "for the whole picture."
            )
    has_base = [parts > count for parts in counts]
    if request.region_base != USUAL_BASE and not any(has_base):
        hint = "Write a prompt for it in front, and AND, or leave it out."
        accepted = "its default where no prompt has a part for the whole picture"
        raise ConfigError.for_field("region_base", request.region_base, accepted, hint)
    for number, region in enumerate(request.regions, 1):
        if region.mask is not None and not region.mask.is_given:
            raise ConfigError(
                f"regions: of the mask of region {number} only the record with SHA-256 "
                f"{region.mask.sha256} is known. Give all regions again, with --region or regions=."
            )
    maps = region_maps(request, size, cell)
    for number, one in enumerate(maps, 1):
        if not one.any():
            raise ConfigError(
                f"regions: region {number} covers nothing of the picture, so that its prompt has "
                "no effect."
            )
    uncovered = float((maps.sum(axis=0) == 0).mean())
    if uncovered and not all(has_base):
        raise ConfigError(
            f"regions: {uncovered:.1%} of the picture are in none of them, and no prompt is for "
            "these. Write one for the whole picture in front: `everything AND left AND right`."
        )


def region_maps(
    request: Request, size: tuple[int, int], cell: int, part: tuple[int, int, Box] | None = None
) -> Array:
    """Return the maps of a request's regions, [regions,h,w] fp32 of latent cells.

    Args:
        request: with masks that are given.
        size: width and height of the computation; what pads the picture is as its edge.
        cell: pixels along a side of a latent cell.
        part: where only a part of a picture is computed, that one's width and height, and the part.
    """
    width, height = request.width, request.height
    found = np.empty((len(request.regions), size[1] // cell, size[0] // cell), np.float32)
    around = (0, size[1] - height), (0, size[0] - width)
    for own, region in zip(found, request.regions, strict=True):
        if part is None:
            weights = region_weights(region, width, height)
        else:
            whole_width, whole_height, box = part
            weights = region_weights(region, whole_width, whole_height)
            weights = weights[box.top : box.bottom, box.left : box.right]
            weights = resized_weights(weights, width, height, "stretch")
        squares = np.pad(weights, around, mode="edge")
        squares = squares.reshape(own.shape[0], cell, own.shape[1], cell)
        own[...] = squares.mean(axis=(1, 3), dtype=np.float64) * region.weight
    return found


def region_weights(region: Region, width: int, height: int) -> Weights:
    """Return how much a region covers of each pixel of a picture, [H,W] in 0 to 1."""
    if region.mask is not None:
        return resized_weights(mask_weights(region.mask, invert=False), width, height, "stretch")
    left, top, right, bottom = region.box
    return np.outer(_covered(top, bottom, height), _covered(left, right, width)).astype(np.float32)


def region_shares(maps: Array, base: float, parts: Sequence[int], blocks: int) -> Array | None:
    """Return what each part of each image counts in each cell, [blocks,B,1,h,w] fp32.

    Args:
        maps: [regions,h,w].
        base: what the prompt of the whole picture counts inside of regions.
        parts: of each image's prompt: as many as there are regions, or one more.
        blocks: of rows that parts have; those beyond an image's own count nothing anyway.

    Returns:
        The shares, or None where one part is all there is.
    """
    if blocks == 1:
        return None
    total = maps.sum(axis=0, dtype=np.float64)
    found = np.zeros((blocks, len(parts), 1, *maps.shape[1:]), np.float32)
    for image, count in enumerate(parts):
        if count == len(maps):
            # Beside a resized mask's edge nothing may be left of any map; there all are equal.
            shares = np.where(total > 0, maps / np.where(total > 0, total, 1), 1 / count)
        else:
            own = (1 - base) * maps / np.maximum(total, 1)
            shares = np.concatenate([1 - own.sum(axis=0, keepdims=True), own])
        found[:count, image, 0] = shares
    return found


def cut_regions(
    request: Request, cover: tuple[int, int], size: tuple[int, int], corner: tuple[int, int]
) -> tuple[Region, ...]:
    """Return a request's regions for a part of its picture.

    Args:
        request: with masks that are given, or none.
        cover: width and height of the picture.
        size, corner: those of the part, and its left and top.
    """
    left, top = corner
    found = []
    for region in request.regions:
        if region.mask is None or region.mask.is_given:
            levels = np.rint(region_weights(region, *cover) * 255).astype(np.uint8)
            own = levels[top : top + size[1], left : left + size[0]]
            region = replace(region, box=None, mask=own)
        found.append(region)
    return tuple(found)


def _covered(first: float, last: float, count: int) -> NDArray[np.float64]:
    """Return how much of each of so many pixels lies between two fractions of them all."""
    places = np.arange(count)
    ends = np.minimum(last * count, places + 1), np.maximum(first * count, places)
    return np.asarray((ends[0] - ends[1]).clip(0, 1))


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"
