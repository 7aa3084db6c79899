"""Uses of image to image with the demo model: variations, strangers, enlarging, and a codec."""

from __future__ import annotations

import io
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

import sdengine
from sdengine.benchmarks.measures import psnr
from sdengine.training.captions import caption
from sdengine.training.scenes import RADII_ALONE, Image, Scene, random_scene, render
from sdengine.training.scoring import score

SEED, STEPS = 40_000, 20
ALIKE = 8  # pictures of one caption among which the original is looked for
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
ENLARGING = (0.2, 0.4)


def variations(engine: sdengine.Engine, count: int) -> dict[str, dict[str, Any]]:
    """Measure by strength whether captions still hold, and whether the original is known again.

    It is, where of the pictures of one caption, which differ in place, size and shade, it is the
    nearest to the result, by the mean absolute difference.
    """
    found: dict[str, dict[str, Any]] = {}
    rng, jitter = random.Random(SEED), np.random.default_rng(SEED)
    scenes = [random_scene(rng, num_objects=1, held_out=True) for _ in range(count)]
    groups = [[render(_like(scene, rng), jitter) for _ in range(ALIKE)] for scene in scenes]
    texts = [caption(scene, rng) for scene in scenes]
    for strength in STRENGTHS:
        holds = known = 0
        moved = []
        for i, (scene, group, text) in enumerate(zip(scenes, groups, texts, strict=True)):
            own = i % ALIKE
            result = engine.generate(
                text, image=group[own], strength=strength, steps=STEPS, seed=i
            ).arrays[0]
            away = [float(np.abs(result.astype(int) - one).mean()) for one in group]
            known += int(np.argmin(away)) == own
            holds += score(result, scene)["all"] == 1
            moved.append(away[own])
        found[f"{strength:g}"] = {
            "caption_holds": holds,
            "known_again": known,
            "median_distance": round(float(np.median(moved)), 2),
        }
        print(strength, found[f"{strength:g}"], flush=True)
    return found


def enlarging(engine: sdengine.Engine, count: int) -> dict[str, dict[str, Any]]:
    """Compare drawn scenes of 256 pixels with what is made of them at 128, in dB."""
    rng = random.Random(SEED)
    made: dict[str, list[float]] = {"Lanczos": [], **{f"{s:g}": [] for s in ENLARGING}}
    holds = dict.fromkeys(made, 0)
    for i in range(count):
        scene = random_scene(rng, num_objects=1, held_out=True)
        text = caption(scene, rng)
        large, small = (render(scene, np.random.default_rng(i), size=s) for s in (256, 128))
        pictures = {"Lanczos": _lanczos(small, 256)}
        for strength in ENLARGING:
            pictures[f"{strength:g}"] = engine.generate(
                text, image=small, width=256, height=256, strength=strength, steps=STEPS, seed=i
            ).arrays[0]
        for name, picture in pictures.items():
            made[name].append(psnr(picture, large))
            holds[name] += score(picture, scene)["all"] == 1
    found = {
        name: {"median_db": round(float(np.median(values)), 1), "caption_holds": holds[name]}
        for name, values in made.items()
    }
    print(found, flush=True)
    return found


def codec(engine: sdengine.Engine, count: int) -> dict[str, dict[str, Any]]:
    """Measure latents of a byte a value, beside JPEG files of no more bytes."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in (128, 256):
            rng, jitter = random.Random(SEED), np.random.default_rng(SEED)
            rows = []
            for _ in range(count):
                picture = render(random_scene(rng, held_out=True), jitter, size=side)
                file = engine.encode(picture).save(Path(folder) / "a.safetensors", overwrite=True)
                size = file.stat().st_size
                own = psnr(engine.decode(sdengine.Latents.load(file)), picture)
                rows.append((size, own, *_best_jpeg(picture, size)))
            size, own, jpeg_size, jpeg = np.median(rows, axis=0)
            found[str(side)] = {
                "bytes": int(size),
                "db": round(float(own), 1),
                "jpeg_bytes": int(jpeg_size),
                "jpeg_db": round(float(jpeg), 1),
                "better_than_jpeg": int(sum(row[1] > row[3] for row in rows)),
            }
            print(side, found[str(side)], flush=True)
    return found


def _like(scene: Scene, rng: random.Random) -> Scene:
    """Return a scene of the same caption, elsewhere and of another size by a little."""
    (thing,) = scene.objects
    moved = replace(
        thing,
        x=thing.x + rng.uniform(-0.03, 0.03),
        y=thing.y + rng.uniform(-0.03, 0.03),
        radius=rng.uniform(*RADII_ALONE[thing.size]),
    )
    return replace(scene, objects=(moved,))


def _lanczos(pixels: Image, side: int) -> Image:
    return np.asarray(PILImage.fromarray(pixels).resize((side, side), PILImage.Resampling.LANCZOS))


def _best_jpeg(picture: Image, most_bytes: int) -> tuple[int, float]:
    """Return bytes and dB of the best JPEG file within a size, or of the smallest one."""
    best = None
    for quality in range(1, 96):
        buffer = io.BytesIO()
        PILImage.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
        if best is not None and buffer.tell() > most_bytes:
            break
        again = np.asarray(PILImage.open(io.BytesIO(buffer.getvalue())))
        best = buffer.tell(), psnr(again, picture)
    assert best is not None
    return best
