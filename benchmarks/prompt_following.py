"""Prompt following of the demo model: how well its pictures show what the prompt says.

    python benchmarks/prompt_following.py                  # the table, the sheet, the record
    python benchmarks/prompt_following.py --choose-guidance  # compare scales on other prompts

Prompts describe compositions of the held-out tenth that training never saw. Every picture is scored
by measurement (sdengine.training.scoring); "all" is everything but the size right.
"""

from __future__ import annotations

import argparse
import random
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

import sdengine
from sdengine.benchmarks.accuracy_tables import prompt_following as as_markdown
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.training.captions import caption
from sdengine.training.scenes import Image, Scene, random_scene, render
from sdengine.training.scoring import score, summarise

TEST_SEED, CHOICE_SEED = 20_000, 10_000
SAMPLING: dict[str, Any] = {"sampler": "dpmpp_2m", "schedule": "karras", "steps": 25}


def draw_prompts(count: int, num_objects: int, seed: int) -> list[tuple[Scene, str]]:
    """Return held-out scenes with a caption each; different seeds give different scenes."""
    rng = random.Random(seed * 10 + num_objects)
    scenes = [random_scene(rng, num_objects=num_objects, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def generate(
    engine: sdengine.Engine, prompts: list[tuple[Scene, str]], guidance_scale: float, size: int
) -> list[Image]:
    """Return one picture a prompt, with seed i for prompt i."""
    return [
        engine.generate(
            text, seed=i, width=size, height=size, guidance_scale=guidance_scale, **SAMPLING
        ).arrays[0]
        for i, (_, text) in enumerate(prompts)
    ]


def evaluate(
    engine: sdengine.Engine, count: int, seed: int, guidance_scale: float, size: int
) -> tuple[dict[str, dict[str, float]], dict[str, list[tuple[Scene, str, Image]]]]:
    """Score `count` prompts of one object and as many of two."""
    table, shown = {}, {}
    for num_objects, name in ((1, "one object"), (2, "two objects")):
        prompts = draw_prompts(count, num_objects, seed)
        images = generate(engine, prompts, guidance_scale, size)
        table[name] = summarise(score(i, s) for i, (s, _) in zip(images, prompts, strict=True))
        shown[name] = [(s, t, i) for i, (s, t) in zip(images, prompts, strict=True)]
    return table, shown


def reconstruction(count: int, size: int = 128) -> dict[str, float]:
    """Score the autoencoder's reconstruction of real held-out scenes, half with two objects."""
    from sdengine.checkpoints import load_checkpoint
    from sdengine.training.vae import reconstruct

    rng, jitter = random.Random(TEST_SEED), np.random.default_rng(TEST_SEED)
    scenes = [random_scene(rng, num_objects=1 + i % 2, held_out=True) for i in range(count)]
    images = [render(s, jitter, size=size) for s in scenes]
    rebuilt = reconstruct(load_checkpoint("demo").vae(), images)
    return summarise(score(i, s) for i, s in zip(rebuilt, scenes, strict=True))


def draw_sheet(shown: dict[str, list[tuple[Scene, str, Image]]]) -> PILImage.Image:
    """Return the first 16 pictures of each set with their prompts; red frames mark the wrong.

    Larger pictures are shown reduced to 128 pixels.
    """
    cells = [cell for rows in shown.values() for cell in rows[:16]]
    side, width, height = 128, 176, 186
    sheet = PILImage.new("RGB", (8 * width, 4 * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (scene, text, image) in enumerate(cells):
        x, y = (i % 8) * width + (width - side) // 2, (i // 8) * height + 4
        right = score(image, scene)["all"] == 1.0
        frame = 1 if right else 3  # the grey one shows where a white picture ends
        pen.rectangle(
            (x - frame, y - frame, x + side + frame - 1, y + side + frame - 1),
            fill="lightgrey" if right else "red",
        )
        sheet.paste(PILImage.fromarray(image).resize((side, side)), (x, y))
        lines = "\n".join(textwrap.wrap(text, 32))
        pen.multiline_text((i % 8 * width + 8, y + side + 6), lines, fill="black", font_size=10)
    return sheet


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--count", type=int, default=100, help="prompts for each set")
    parser.add_argument("--guidance", type=float, help="default: the bundle's own")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--choose-guidance", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with sdengine.load(options.bundle, options.backend, options.precision) as engine:
        if options.choose_guidance:
            for scale in (1.5, 2.0, 3.0, 4.0, 5.0, 7.0):
                table, _ = evaluate(engine, options.count, CHOICE_SEED, scale, options.size)
                print(scale, {name: values["all"] for name, values in table.items()}, flush=True)
            return
        guidance = options.guidance or engine.bundle.manifest.defaults.guidance_scale
        started = time.perf_counter()
        table, shown = evaluate(engine, options.count, TEST_SEED, guidance, options.size)
        seconds = time.perf_counter() - started
        backend, precision = engine.backend.name, engine.precision
    if options.size == 128:
        table["VAE, real scenes"] = reconstruction(2 * options.count)
    figures = {
        "backend": backend,
        "guidance_scale": guidance,
        "size": options.size,
        "precision": precision,
        "prompts_per_set": options.count,
        "seconds_per_picture": round(seconds / (2 * options.count), 3),
        **SAMPLING,
        "percent_right": table,
    }
    record = stamped(figures)
    name = f"prompt-following-{options.size}-{precision}"
    write_record(record, options.output / f"{name}.json")
    draw_sheet(shown).save(options.output / f"{name}.png", optimize=True)
    label = f"**{backend} {precision}, {options.size} pixels**"
    (options.output / f"{name}.md").write_text(f"{label}\n\n{as_markdown([record])}\n")
    print(as_markdown([record]))


if __name__ == "__main__":
    main()
