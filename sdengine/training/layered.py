"""Layered scenes: objects anywhere, one perhaps before another; what a prompt leaves open."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sdengine.training.scenes import (
    RADII_ALONE,
    RADII_OF_TWO,
    Image,
    Scene,
    SceneObject,
    random_scene,
    render,
    signed_distance,
)

Mask = npt.NDArray[np.bool_]
_MARGIN = 0.03  # kept free at the picture's sides
_APART = (0.35, 1.15)  # distance of two centres in units of the sum of their radii
_FAR, _BEFORE = (0.25, 0.6), (0.2, 0.4)  # how near the farther one is, and the other before it
_LEAST_COVERED = 40  # of 128 x 128 pixels of one object before another, so that the order is seen


@dataclass(frozen=True)
class Layered:
    """Describe a scene whose objects may cover each other.

    Attributes:
        scene: its objects in the caption's order.
        nearness: of each object, in (0,1]; the background's is 0. The nearer one is seen whole.
    """

    scene: Scene
    nearness: tuple[float, ...]

    @property
    def nearest(self) -> int:
        """Index of the object that is seen whole."""
        return int(np.argmax(self.nearness))

    @property
    def reversed(self) -> Layered:
        """The same scene with the objects' nearness exchanged."""
        return replace(self, nearness=self.nearness[::-1])

    def render(self, rng: np.random.Generator, size: int = 128) -> Image:
        """Draw it as `scenes.render` does, the farther objects first."""
        order = np.argsort(self.nearness)
        far_to_near = tuple(self.scene.objects[i] for i in order)
        return render(replace(self.scene, objects=far_to_near), rng, size=size)

    def depth(self, size: int = 128) -> npt.NDArray[np.float32]:
        """Return how near every pixel is, [size,size], larger nearer."""
        found = np.zeros((size, size), np.float32)
        for thing, near in zip(self.scene.objects, self.nearness, strict=True):
            inside = object_mask(thing, size)
            found[inside] = np.maximum(found[inside], near)
        return found

    def covered(self, size: int = 128) -> Mask:
        """Return the pixels [size,size] of one object before another, without their outlines."""
        inside = [object_mask(thing, size) for thing in self.scene.objects]
        both: Mask = ndimage.binary_erosion(np.logical_and.reduce(inside))
        return both if len(inside) > 1 else np.zeros_like(both)


def object_mask(thing: SceneObject, size: int) -> Mask:
    """Return the pixels [size,size] inside an object's outline."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    mask: Mask = signed_distance(thing.shape, x - thing.x, y - thing.y, thing.radius) < 0
    return mask


def layered_scene(
    rng: random.Random, *, num_objects: int | None = None, held_out: bool = False
) -> Layered:
    """Draw a scene as `random_scene` does, with its objects moved to where no caption says.

    Args:
        rng: source of randomness.
        num_objects: 1 or 2; None draws two with probability 0.6.
        held_out: which side of the split to draw from.
    """
    while True:
        scene = random_scene(rng, num_objects=num_objects, held_out=held_out)
        scene = _moved(scene, rng) if scene.relation is None else _drawn_together(scene, rng)
        if scene.held_out == held_out:  # the place that is left out may change the side
            break
    far = rng.uniform(*_FAR)
    nearness = [far + rng.uniform(*_BEFORE), far][: len(scene.objects)]
    rng.shuffle(nearness)
    return Layered(scene, tuple(nearness))


def covering_scene(rng: random.Random, *, held_out: bool = False) -> Layered:
    """Draw a scene as `layered_scene` does, of two objects, one of which visibly covers the other.

    Args:
        rng: source of randomness.
        held_out: which side of the split to draw from.
    """
    while True:
        layered = layered_scene(rng, num_objects=2, held_out=held_out)
        if layered.covered(128).sum() >= _LEAST_COVERED:
            return layered


def _moved(scene: Scene, rng: random.Random) -> Scene:
    """Move the one object; where it has a place that a caption names, mostly leave it there."""
    if scene.place is not None and rng.random() < 0.5:
        return scene
    (thing,) = scene.objects
    radius = rng.uniform(*RADII_ALONE[thing.size])
    room = _MARGIN + 1.1 * radius
    x, y = (rng.uniform(room, 1 - room) for _ in range(2))
    return replace(scene, place=None, objects=(replace(thing, x=x, y=y, radius=radius),))


def _drawn_together(scene: Scene, rng: random.Random) -> Scene:
    """Move two objects towards each other along their axis, and then both."""
    things = [replace(o, radius=rng.uniform(*RADII_OF_TWO[o.size])) for o in scene.objects]
    apart = rng.uniform(*_APART) * sum(o.radius for o in things)
    along, across = apart / 2, rng.uniform(-0.08, 0.08) * apart
    if scene.relation in ("right", "below"):
        along = -along
    offset = (along, across) if scene.relation in ("left", "right") else (across, along)
    places = [(-offset[0], -offset[1]), offset]
    middle = []
    for axis in (0, 1):
        low = max(1.1 * o.radius - p[axis] for o, p in zip(things, places, strict=True))
        high = min(1 - 1.1 * o.radius - p[axis] for o, p in zip(things, places, strict=True))
        middle.append(rng.uniform(low + _MARGIN, high - _MARGIN))
    objects = tuple(
        replace(o, x=middle[0] + p[0], y=middle[1] + p[1])
        for o, p in zip(things, places, strict=True)
    )
    return replace(scene, objects=objects)
