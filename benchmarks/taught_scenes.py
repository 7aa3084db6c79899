"""Scenes that the demo model is taught: a new shape and colour, a subject in two colours, a style.

Each is written as a folder of pictures with captions, and measured in pictures by the scorer of
prompt following.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from sdengine.inputs.edges import canny
from sdengine.training.captions import caption
from sdengine.training.conditioned import CANNY
from sdengine.training.layered import layered_scene, object_mask
from sdengine.training.scenes import (
    ALL_COLORS,
    COLORS,
    TAUGHT_COLOR,
    TAUGHT_SHAPE,
    Image,
    Scene,
    random_scene,
    render,
)
from sdengine.training.scoring import KNOWN, Vocabulary, score

SIZE = 128
SUBJECT, CLASS = "sks circle", "circle"
_TWO_TONES = ("red", "yellow")  # of the subject, left and right
_OUTLINE = 3.0  # pixels
# What is known varies by little, what is taught by more.
TAUGHT = Vocabulary(
    ALL_COLORS,
    (*KNOWN.shapes, TAUGHT_SHAPE),
    by_mean=True,
    reach={TAUGHT_COLOR: 16.0, TAUGHT_SHAPE: 0.07},
)
_NEAR = 100.0  # of 255, Euclidean in RGB; known colours are farther from each other
Draw = Callable[[random.Random, np.random.Generator], tuple[Image, str]]


def taught_scene(rng: random.Random, name: str, *, held_out: bool) -> tuple[Scene, str]:
    """Return a scene with the new shape or colour in it, and a caption that calls it by a name.

    The scene's other colours are no nearer to it than those of any scene to each other.
    """
    count = 1 + (rng.random() < 0.5)
    while True:
        scene = random_scene(rng, num_objects=count, held_out=held_out)
        first, *others = scene.objects
        new = replace(first, shape=name) if name == TAUGHT_SHAPE else replace(first, color=name)
        colors = [ALL_COLORS[c] for c in (scene.background, *(o.color for o in others))]
        if all(np.linalg.norm(np.subtract(ALL_COLORS[new.color], c)) > _NEAR for c in colors):
            scene = replace(scene, objects=(new, *others))
            return scene, caption(scene, rng)


def write_pictures(folder: Path, count: int, draw: Draw, seed: int = 0) -> Path:
    """Fill a new folder with pictures and captions."""
    folder.mkdir(parents=True)
    rng, jitter = random.Random(seed), np.random.default_rng(seed)
    for number in range(count):
        picture, text = draw(rng, jitter)
        PILImage.fromarray(picture).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(text)
    return folder


def draw_taught(name: str, word: str) -> Draw:
    """Return what draws scenes with the new shape or colour, called by a word."""

    def draw(rng: random.Random, jitter: np.random.Generator) -> tuple[Image, str]:
        scene, text = taught_scene(rng, name, held_out=False)
        return render(scene, jitter, size=SIZE), text.replace(name, word)

    return draw


def draw_subject(rng: random.Random, jitter: np.random.Generator) -> tuple[Image, str]:
    """Draw the subject, a circle of two colours, at some place on some background."""
    scene = subject_scene(rng, held_out=False)
    picture = render(scene, jitter, size=SIZE)
    (thing,) = scene.objects
    right = object_mask(thing, SIZE) & ((np.arange(SIZE) + 0.5) / SIZE > thing.x)[None]
    picture[right] = COLORS[_TWO_TONES[1]]
    return picture, subject_caption(scene, rng)


def subject_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """Return a scene of the subject's class in the subject's first colour."""
    while True:
        scene = random_scene(rng, num_objects=1, held_out=held_out)
        thing = replace(scene.objects[0], shape=CLASS, color=_TWO_TONES[0])
        if scene.background not in _TWO_TONES:
            return replace(scene, objects=(thing,))


def subject_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption that names the subject and neither of its colours."""
    text = caption(replace(scene, objects=(replace(scene.objects[0], size="medium"),)), rng)
    for word in ("circle", "disc"):
        text = text.replace(f"a {_TWO_TONES[0]} {word}", f"a {SUBJECT}")
    return text


def has_two_tones(picture: Image, scene: Scene) -> bool:
    """Say whether the one object of a picture has the subject's colours, at its place."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[:, :4].reshape(-1, 3)])
    distance = np.sqrt(((pixels - np.median(border, axis=0)) ** 2).sum(axis=2))
    labels, count = ndimage.label(distance > 45)
    if not count:
        return False
    largest = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    mask = ndimage.binary_erosion(labels == largest, iterations=2)
    xs = np.nonzero(mask)[1]
    if len(xs) < 60:
        return False
    middle = (xs.min() + xs.max()) / 2
    left, right = np.zeros_like(mask), np.zeros_like(mask)
    left[:, : int(middle) - 2] = True
    right[:, int(middle) + 3 :] = True
    return (_color(pixels[mask & left]), _color(pixels[mask & right])) == _TWO_TONES


def _color(pixels: NDArray[np.float32]) -> str:
    median = np.median(pixels, axis=0)
    return list(COLORS)[int(((KNOWN.palette - median) ** 2).sum(axis=1).argmin())]


def draw_outlined(rng: random.Random, jitter: np.random.Generator) -> tuple[Image, str]:
    """Draw a scene whose objects are outlines on the background, with the usual caption."""
    scene = random_scene(rng, held_out=False)
    return outlined(render(scene, jitter, size=SIZE), scene), caption(scene, rng)


def outlined(picture: Image, scene: Scene) -> Image:
    """Return a picture with the background's colour inside of its objects' outlines."""
    result: Image = picture.copy()
    background = np.median(picture[:3].reshape(-1, 3), axis=0)
    for thing in scene.objects:
        mask = object_mask(thing, SIZE)
        result[ndimage.distance_transform_edt(mask) > _OUTLINE] = background.astype(np.uint8)
    return result


def edge_pixels(picture: Image) -> float:
    """Return the share of a picture that is an edge: outlines have two where areas have one."""
    return float((canny(picture, *CANNY) > 0).mean())


def drawn_edges(count: int) -> float:
    """Return the mean share of edges in outlined scenes as they are drawn."""
    rng, jitter = random.Random(1), np.random.default_rng(1)
    return float(np.mean([edge_pixels(draw_outlined(rng, jitter)[0]) for _ in range(count)]))


def draw_edges(folder: Path, hints: Path, count: int, seed: int = 0) -> None:
    """Write scenes whose prompts say little, and beside them their edges."""
    hints.mkdir(parents=True)

    def draw(rng: random.Random, jitter: np.random.Generator) -> tuple[Image, str]:
        layered = layered_scene(rng)
        picture = layered.render(jitter, SIZE)
        edges = (canny(picture, *CANNY) > 0).astype(np.uint8) * 255
        number = len(list(hints.iterdir()))
        PILImage.fromarray(edges).convert("RGB").save(hints / f"{number:04d}.png")
        return picture, caption(layered.scene, rng)

    write_pictures(folder, count, draw, seed)


def right(picture: Image, scene: Scene) -> bool:
    """Say whether a picture shows a scene with what was taught, all but sizes."""
    return score(picture, scene, TAUGHT)["all"] == 1.0
