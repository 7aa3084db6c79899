"""Procedural scenes: what is in a picture, drawn as an anti-aliased image of any size.

A scene is one or two flat shapes on a flat background, at places that a caption can name. Shapes
are signed-distance fields, so that a picture is exact at every resolution.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # fp32 or float64: drawing needs no particular precision
Image = npt.NDArray[np.uint8]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "orange": (245, 140, 30),
    "purple": (130, 50, 170),
    "white": (255, 255, 255),
    "black": (15, 15, 15),
    "pink": (250, 150, 190),
    "cyan": (60, 210, 225),
}
# A colour and a shape that the demo model does not know, for it to be taught: halfway between blue
# and purple, and a trapezoid that is wide at its top.
TAUGHT_COLOR, TAUGHT_SHAPE = "indigo", "pot"
ALL_COLORS = COLORS | {TAUGHT_COLOR: (85, 65, 195)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
SIZES = ("medium", "large", "small")
PLACES: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}
RELATIONS = ("left", "right", "above", "below")

# Radius ranges as fractions of the picture's side; two objects must fit side by side.
RADII_ALONE = {"small": (0.115, 0.135), "medium": (0.165, 0.185), "large": (0.225, 0.250)}
RADII_OF_TWO = {"small": (0.115, 0.130), "medium": (0.155, 0.170), "large": (0.195, 0.210)}


@dataclass(frozen=True)
class SceneObject:
    """Describe one shape: names as captions use them, centre and radius in [0,1] picture units."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Describe a picture; ``place`` is for one object, ``relation`` (first to second) for two."""

    background: str
    objects: tuple[SceneObject, ...]
    place: str | None
    relation: str | None

    @property
    def composition(self) -> str:
        """Name everything a prompt asks for, except sizes: the unit of the held-out split."""
        things = [f"{o.color} {o.shape}" for o in self.objects]
        return " | ".join([self.background, *things, self.place or "", self.relation or ""])

    @property
    def held_out(self) -> bool:
        """Tell whether this composition belongs to the tenth that is never trained on."""
        return hashlib.sha256(self.composition.encode()).digest()[0] % 10 == 0


def random_scene(
    rng: random.Random, *, num_objects: int | None = None, held_out: bool = False
) -> Scene:
    """Draw a scene of the training split, or of the held-out split.

    Args:
        rng: source of randomness.
        num_objects: 1 or 2; None draws two with probability 0.6.
        held_out: which side of the split to draw from.
    """
    while True:
        count = num_objects or (2 if rng.random() < 0.6 else 1)
        scene = _pair_scene(rng) if count == 2 else _single_scene(rng)
        if scene.held_out == held_out:
            return scene


def _single_scene(rng: random.Random) -> Scene:
    background, color = rng.sample(list(COLORS), 2)
    place = rng.choice(list(PLACES)) if rng.random() < 0.6 else None
    x, y = PLACES[place or "center"]
    size = _random_size(rng)
    thing = SceneObject(
        color=color,
        shape=rng.choice(SHAPES),
        size=size,
        x=x + rng.uniform(-0.02, 0.02),
        y=y + rng.uniform(-0.02, 0.02),
        radius=rng.uniform(*RADII_ALONE[size]),
    )
    return Scene(background, (thing,), place, None)


def _pair_scene(rng: random.Random) -> Scene:
    background, *colors = rng.sample(list(COLORS), 3)
    relation = rng.choice(RELATIONS)
    across = 0.5 + rng.uniform(-0.04, 0.04)
    near, far = 0.26, 0.74
    first, second = {
        "left": ((near, across), (far, across)),
        "right": ((far, across), (near, across)),
        "above": ((across, near), (across, far)),
        "below": ((across, far), (across, near)),
    }[relation]
    things = []
    for color, (x, y) in zip(colors, (first, second), strict=True):
        size = _random_size(rng)
        things.append(
            SceneObject(
                color=color,
                shape=rng.choice(SHAPES),
                size=size,
                x=x + rng.uniform(-0.02, 0.02),
                y=y + rng.uniform(-0.02, 0.02),
                radius=rng.uniform(*RADII_OF_TWO[size]),
            )
        )
    return Scene(background, tuple(things), None, relation)


def _random_size(rng: random.Random) -> str:
    return rng.choices(SIZES, weights=(0.5, 0.25, 0.25))[0]


def signed_distance(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Return the distance of points to a shape's outline, negative inside, in picture units.

    Args:
        shape: one of SHAPES, or TAUGHT_SHAPE.
        x, y: coordinates relative to the shape's centre, y downwards.
        radius: about half the shape's extent.
    """
    ax: Array = np.abs(x)
    ay: Array = np.abs(y)
    r = radius
    if shape == "circle":
        return _norm(x, y) - r
    if shape == "square":
        return _max(ax, ay) - 0.85 * r
    if shape == "diamond":
        return (ax + ay - 1.08 * r) * float(np.sqrt(0.5))
    if shape == "ring":
        return abs(_norm(x, y) - 0.74 * r) - 0.26 * r
    if shape == "cross":
        across = _max(ax - r, ay - 0.34 * r)
        return -_max(-across, -_max(ay - r, ax - 0.34 * r))
    if shape == "triangle":
        lowered = y - 0.22 * r
        return _max(lowered, 0.8660254 * ax - 0.5 * lowered) - 0.627 * r
    if shape == "star":
        return _star_distance(x, y, 1.1 * r)
    if shape == TAUGHT_SHAPE:
        return _max(ay - 0.75 * r, (ax - 0.72 * r + 0.3 * y) / float(np.hypot(1, 0.3)))
    if shape == "heart":
        return _heart_distance(ax, y, 1.75 * r)
    raise ValueError(f"unknown shape {shape!r}; expected one of {SHAPES}")


def _norm(x: Array, y: Array) -> Array:
    out: Array = np.hypot(x, y)
    return out


def _max(a: Array, b: Array) -> Array:
    out: Array = np.maximum(a, b)
    return out


def _star_distance(x: Array, y: Array, outer: float) -> Array:
    # Fold the plane into one fifth, then measure to the line from the tip to the inner corner.
    sector = 2 * np.pi / 5
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + sector / 2) % sector - sector / 2)
    length = np.hypot(x, y)
    px, py = length * np.cos(folded), length * np.sin(folded)
    inner = 0.45 * outer
    ex, ey = inner * np.cos(sector / 2) - outer, inner * np.sin(sector / 2)
    out: Array = (((px - outer) * ey - py * ex) / np.hypot(ex, ey)).astype(np.float32)
    return out


def _heart_distance(ax: Array, y: Array, scale: float) -> Array:
    # A square standing on its corner with a half disc on each upper side, in units of `scale`.
    px, py = ax / scale, 0.55 - y / scale
    lobe = np.hypot(px - 0.25, py - 0.75) - np.float32(np.sqrt(2) / 4)
    along = 0.5 * np.maximum(px + py, 0)
    to_notch = px**2 + (py - 1) ** 2
    to_side = (px - along) ** 2 + (py - along) ** 2
    body = np.sqrt(np.minimum(to_notch, to_side)) * np.sign(px - py)
    out: Array = (np.where(px + py > 1, lobe, body) * scale).astype(np.float32)
    return out


def render(
    scene: Scene,
    rng: np.random.Generator,
    *,
    size: int = 128,
    window: tuple[int, int, int] | None = None,
) -> Image:
    """Draw a scene.

    Args:
        scene: what to draw.
        rng: jitters every colour by up to 5 of 255, so that no colour is a single value.
        size: side of the whole picture in pixels.
        window: (left, top, side) of the part to draw, in pixels; the whole picture by default.

    Returns:
        uint8 [side,side,3], RGB.
    """
    left, top, side = window or (0, 0, size)
    xs = (left + np.arange(side, dtype=np.float32) + 0.5) / size
    ys = (top + np.arange(side, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(xs, ys)
    image = np.empty((side, side, 3), np.float32)
    image[:] = _jittered(scene.background, rng)
    for thing in scene.objects:
        distance = signed_distance(thing.shape, x - thing.x, y - thing.y, thing.radius)
        coverage = np.clip(0.5 - distance * size, 0, 1)[..., None]
        image += (_jittered(thing.color, rng) - image) * coverage
    pixels: Image = image.round().astype(np.uint8)
    return pixels


def _jittered(color: str, rng: np.random.Generator) -> Array:
    base = np.asarray(ALL_COLORS[color], np.float32)
    return np.clip(base + rng.uniform(-5, 5, 3), 0, 255).astype(np.float32)
