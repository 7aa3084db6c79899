"""Pictures that start from pictures: image to image and inpainting with the demo model, measured.

    python benchmarks/picture_tasks.py

Scenes are drawn, of compositions that training never saw, with one object each. Inpainting asks for
the same scene with the object in another colour and masks the object's surroundings; what it gives
is scored by measurement (sdengine.training.scoring). The record has every count.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as PILImage

import sdengine
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.training.captions import caption
from sdengine.training.scenes import COLORS, Image, Scene, random_scene, render
from sdengine.training.scoring import score

SEED, SIZE, STEPS = 30_000, 128, 20
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
BLUR = 2.0
KINDS: dict[str, dict[str, Any]] = {
    "whole picture": {},
    "fill": {"masked_content": "fill"},
    "diffusers' blending": {"mask_blend": "latents"},
    "only masked": {"inpaint_area": "masked"},
    "ancestral sampler": {"sampler": "euler_a", "schedule": "normal"},
}


def recoloured(count: int) -> Iterator[tuple[Scene, Image, Scene, str, Image]]:
    """Yield a scene, its picture, the scene with another colour, its caption, and a mask."""
    rng, jitter = random.Random(SEED), np.random.default_rng(SEED)
    for _ in range(count):
        scene = random_scene(rng, num_objects=1, held_out=True)
        thing = scene.objects[0]
        free = [c for c in COLORS if c not in (thing.color, scene.background)]
        wanted = replace(scene, objects=(replace(thing, color=rng.choice(free)),))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        reach = 1.25 * thing.radius
        x, y = (
            slice(max(0, round((at - reach) * SIZE)), round((at + reach) * SIZE))
            for at in (thing.x, thing.y)
        )
        mask[y, x] = 255
        yield scene, render(scene, jitter, size=SIZE), wanted, caption(wanted, rng), mask


def inpainting(engine: sdengine.Engine, count: int) -> dict[str, dict[str, Any]]:
    """Count, for each kind, right colours and pictures whose rest is the same to the byte."""
    found: dict[str, dict[str, Any]] = {}
    for kind, fields in KINDS.items():
        color = whole = kept = 0
        for i, (_, picture, wanted, text, mask) in enumerate(recoloured(count)):
            result = engine.generate(
                text, image=picture, mask=mask, mask_blur=BLUR, strength=0.95, steps=STEPS, seed=i,
                **fields,
            ).arrays[0]  # fmt: skip
            scored = score(result, wanted)
            color += scored["color"] == 1
            whole += scored["all"] == 1
            reach = int(2.5 * BLUR + 0.5)
            wide = PILImage.fromarray(mask).resize((SIZE, SIZE))
            rest = ~_grown(np.asarray(wide) > 0, reach)
            kept += bool((result[rest] == picture[rest]).all())
        found[kind] = {"color_right": color, "all_right": whole, "rest_equal": kept}
        print(kind, found[kind], flush=True)
    return found


def image_to_image(engine: sdengine.Engine, count: int) -> dict[str, Any]:
    """Measure how far pictures go from where they start, by strength, and what they then show."""
    distances: dict[float, list[float]] = {s: [] for s in STRENGTHS}
    follows = dict.fromkeys(STRENGTHS, 0)
    rising = 0
    for i, (_, picture, wanted, text, _mask) in enumerate(recoloured(count)):
        own = []
        for strength in STRENGTHS:
            result = engine.generate(
                text, image=picture, strength=strength, steps=STEPS, seed=i, schedule="normal"
            ).arrays[0]
            own.append(float(np.abs(result.astype(int) - picture).mean()))
            distances[strength].append(own[-1])
            follows[strength] += score(result, wanted)["all"] == 1
        rising += own == sorted(own)
    print({s: np.median(d) for s, d in distances.items()}, follows, rising, flush=True)
    return {
        "median_distance": {f"{s:g}": round(float(np.median(d)), 2) for s, d in distances.items()},
        "follows_prompt": {f"{s:g}": n for s, n in follows.items()},
        "never_falls": rising,
    }


def _grown(mask: np.ndarray[Any, np.dtype[np.bool_]], reach: int) -> Any:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((2 * reach + 1, 2 * reach + 1), bool))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="scenes")
    options = parser.parse_args()
    with sdengine.load("demo") as engine:
        record = {
            "scenes": options.count,
            "size": SIZE,
            "steps": STEPS,
            "blur": BLUR,
            "precision": engine.precision,
            "inpainting": inpainting(engine, options.count),
            "image_to_image": image_to_image(engine, options.count),
        }
    write_record(stamped(record), RESULTS / "picture-tasks.json")


if __name__ == "__main__":
    main()
