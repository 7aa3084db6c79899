"""Captions of scenes: many wordings of the same content."""

from __future__ import annotations

import random

from sdengine.training.scenes import Scene, SceneObject

_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "ring": ("ring", "ring", "donut"),
    "cross": ("cross", "cross", "plus"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
_SIZE_WORDS = {
    "large": ("large", "large", "big", "huge"),
    "small": ("small", "small", "little", "tiny"),
}
_RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_OPENINGS = ("a picture of", "an image of", "a drawing of", "a photo of")


def caption(scene: Scene, rng: random.Random) -> str:
    """Say in words what a scene shows, in one of its many wordings."""
    if scene.relation is None:
        body = _single(scene, rng)
    else:
        first, second = (_thing(o, rng) for o in scene.objects)
        body = f"{first} {rng.choice(_RELATION_WORDS[scene.relation])} {second}"
    text = _with_background(body, scene.background, rng)
    if rng.random() < 0.12:
        text = f"{rng.choice(_OPENINGS)} {text}"
    return text


def _thing(thing: SceneObject, rng: random.Random) -> str:
    words = [thing.color, rng.choice(_SHAPE_WORDS.get(thing.shape, (thing.shape,)))]
    if thing.size in _SIZE_WORDS:
        words.insert(0, rng.choice(_SIZE_WORDS[thing.size]))
    return f"{_article(words[0])} {' '.join(words)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _single(scene: Scene, rng: random.Random) -> str:
    body = _thing(scene.objects[0], rng)
    place = scene.place
    if place is None:
        return body
    if place == "center":
        where = rng.choice(("in the center", "in the middle", "at the center"))
    elif " " in place:
        where = rng.choice((f"in the {place} corner", f"at the {place}", f"in the {place}"))
    else:
        where = rng.choice((f"on the {place}", f"at the {place}", f"on the {place} side"))
    return f"{body} {where}" if rng.random() < 0.8 else f"{where}, {body}"


def _with_background(body: str, background: str, rng: random.Random) -> str:
    a = _article(background)
    wordings = (
        f"{body} on {a} {background} background",
        f"{body}, {background} background",
        f"{body} with {a} {background} background",
        f"{background} background, {body}",
        f"{body} on {a} {background} backdrop",
        f"{body} on {background}",
    )
    return rng.choices(wordings, weights=(0.4, 0.25, 0.1, 0.1, 0.08, 0.07))[0]
