"""Scores of a picture against the scene it should show, by measurement only.

Background colour from the corners, objects as connected regions, their colour, shape (overlap with
templates), size (from the area) and place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sdengine.training.scenes import (
    COLORS,
    PLACES,
    RADII_ALONE,
    RADII_OF_TWO,
    SHAPES,
    Image,
    Scene,
    SceneObject,
    signed_distance,
)

Mask = npt.NDArray[np.bool_]
ASPECTS = ("background", "count", "color", "shape", "place", "size", "all")
_TEMPLATE = 48  # side of the shape templates in cells
_FOREGROUND_DISTANCE = 45.0  # of 255, Euclidean in RGB; the palette's nearest pair is 105 apart


@dataclass(frozen=True)
class Vocabulary:
    """What pictures are measured against.

    Args:
        colors: by name.
        shapes: names, of which templates are drawn.
        by_mean: an object's colour is the mean of its pixels, which a blend of two has too; else
            the median.
        reach: by the names of what varies, how much nearer it counts: a colour's distance of 255,
            a shape's overlap of 1.
    """

    colors: Mapping[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    by_mean: bool = False
    reach: Mapping[str, float] = field(default_factory=dict)

    @functools.cached_property
    def palette(self) -> npt.NDArray[np.float32]:
        """The colours [N,3]."""
        return np.array(list(self.colors.values()), np.float32)

    @functools.cached_property
    def templates(self) -> dict[str, tuple[Mask, float]]:
        """A mask of each shape, and its share of a picture at a radius of 0.2."""
        return {shape: _template(shape) for shape in self.shapes}


@dataclass(frozen=True)
class Region:
    """Hold what was measured of one connected foreground region; lengths in picture units."""

    color: str
    shape: str
    x: float
    y: float
    area: float


def analyse(image: Image, known: Vocabulary | None = None) -> tuple[str, list[Region]]:
    """Return the background's colour name ("" when the corners disagree) and the regions found.

    Args:
        image: uint8 [side,side,3].
        known: colours and shapes; None for those of the demo model.
    """
    known = known or KNOWN
    side = image.shape[0]
    pixels = image.astype(np.float32)
    corner, edge = max(side // 16, 1), max(side // 32, 1)
    corners = [pixels[ys, xs] for ys in _ends(corner) for xs in _ends(corner)]
    names = [_nearest_color(np.median(c.reshape(-1, 3), axis=0), known) for c in corners]
    background = max(set(names), key=names.count)
    if names.count(background) < 3:
        background = ""
    border = [pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]]
    reference = np.median(np.concatenate([b.reshape(-1, 3) for b in border]), axis=0)
    foreground = np.sqrt(((pixels - reference) ** 2).sum(axis=2)) > _FOREGROUND_DISTANCE
    labels, count = ndimage.label(foreground)
    least = 40 * (side / 128) ** 2  # smaller regions are specks of noise
    regions = [_measure(pixels, labels == i, known) for i in range(1, count + 1)]
    kept = [r for r in regions if r.area * side**2 >= least]
    return background, sorted(kept, key=lambda r: -r.area)


def score(image: Image, scene: Scene, known: Vocabulary | None = None) -> dict[str, float]:
    """Return a value in [0,1] for every name of ASPECTS; "all" is everything but size right."""
    known = known or KNOWN
    background, regions = analyse(image, known)
    wanted = scene.objects
    result = dict.fromkeys(ASPECTS, 0.0)
    result["background"] = float(background == scene.background)
    result["count"] = float(len(regions) == len(wanted))
    if len(regions) >= len(wanted):
        found = [[regions[i] for i in order] for order in permutations(range(len(wanted)))]
        compared = [_compare(f, scene, known) for f in found]
        best = max(range(len(compared)), key=lambda i: _weight(compared[i]))
        result.update(compared[best])
    bound = result["color"] == 1.0 and result["shape"] == 1.0
    right = bound and all(result[k] == 1.0 for k in ("background", "count", "place"))
    result["all"] = float(right)
    return result


def summarise(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every aspect in percent."""
    rows = list(scores)
    return {k: round(100 * float(np.mean([r[k] for r in rows])), 1) for k in ASPECTS}


def _weight(values: dict[str, float]) -> float:
    return 2 * values["color"] + 1.5 * values["shape"] + values["place"]


def _compare(found: list[Region], scene: Scene, known: Vocabulary) -> dict[str, float]:
    wanted = scene.objects
    pairs = list(zip(found, wanted, strict=True))
    return {
        "color": float(np.mean([f.color == w.color for f, w in pairs])),
        "shape": float(np.mean([f.shape == w.shape for f, w in pairs])),
        "size": float(np.mean([_size_name(f, w, len(wanted), known) == w.size for f, w in pairs])),
        "place": float(_place_right(found, scene)),
    }


def _place_right(found: list[Region], scene: Scene) -> bool:
    if scene.relation is None:
        x, y = PLACES[scene.place or "center"]
        return abs(found[0].x - x) < 0.12 and abs(found[0].y - y) < 0.12
    dx, dy = found[1].x - found[0].x, found[1].y - found[0].y
    if scene.relation in ("right", "below"):
        dx, dy = -dx, -dy
    if scene.relation in ("left", "right"):
        return dx > 0.15 and dx > abs(dy)
    return dy > 0.15 and dy > abs(dx)


def _size_name(found: Region, wanted: SceneObject, count: int, known: Vocabulary) -> str:
    radii = RADII_ALONE if count == 1 else RADII_OF_TWO
    radius = 0.2 * np.sqrt(found.area / known.templates[wanted.shape][1])
    small_end = (radii["small"][1] + radii["medium"][0]) / 2
    large_start = (radii["medium"][1] + radii["large"][0]) / 2
    return "small" if radius < small_end else "large" if radius > large_start else "medium"


def _ends(length: int) -> tuple[slice, slice]:
    return slice(None, length), slice(-length, None)


def _nearest_color(rgb: npt.NDArray[np.float32], known: Vocabulary) -> str:
    distance = np.sqrt(((known.palette - rgb) ** 2).sum(axis=1))
    reach = [known.reach.get(name, 0.0) for name in known.colors]
    return list(known.colors)[int((distance - reach).argmin())]


def _measure(pixels: npt.NDArray[np.float32], mask: Mask, known: Vocabulary) -> Region:
    side = pixels.shape[0]
    ys, xs = np.nonzero(mask)
    core = ndimage.binary_erosion(mask)
    inside = core if core.sum() > 10 else mask
    cells = _normalised(mask)
    overlap = {
        s: (cells & t).sum() / (cells | t).sum() + known.reach.get(s, 0.0)
        for s, (t, _) in known.templates.items()
    }
    seen = pixels[inside]
    return Region(
        color=_nearest_color(
            seen.mean(axis=0) if known.by_mean else np.median(seen, axis=0), known
        ),
        shape=max(overlap, key=lambda s: overlap[s]),
        x=(xs.min() + xs.max() + 1) / 2 / side,
        y=(ys.min() + ys.max() + 1) / 2 / side,
        area=float(mask.sum()) / side**2,
    )


def _normalised(mask: Mask) -> Mask:
    """Crop a mask to its bounding box, pad it to a square, resample it to the template's cells."""
    ys, xs = np.nonzero(mask)
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    height, width = box.shape
    side = max(height, width)
    square = np.zeros((side, side), bool)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = box
    index = ((np.arange(_TEMPLATE) + 0.5) * side / _TEMPLATE).astype(int)
    cells: Mask = square[index][:, index]
    return cells


def _template(shape: str) -> tuple[Mask, float]:
    side = 512
    axis = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    mask = signed_distance(shape, x, y, 0.2) < 0
    return _normalised(mask), float(mask.mean())


KNOWN = Vocabulary(COLORS, SHAPES)
