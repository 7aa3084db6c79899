"""Variants of the demo model, measured: what they are told, and whether their pictures show it.

    python benchmarks/demo_variants.py

Scenes are drawn, of compositions that training never saw. Inpainting asks for the object in
another colour, and for what a mask hides half of, with and without a prompt; depth says which of
two objects covers the other, in both orders; edges say where the objects of a prompt are, which no
prompt does. A tiny decoder makes pictures of the same latents as the whole one.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

import sdengine
from sdengine.benchmarks.picture_tasks import BLUR, recoloured, rest_is_equal
from sdengine.benchmarks.prompt_following import TEST_SEED, draw_prompts
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.checkpoints import load_checkpoint
from sdengine.inputs.edges import canny
from sdengine.training.captions import caption
from sdengine.training.conditioned import CANNY
from sdengine.training.layered import Layered, covering_scene, layered_scene
from sdengine.training.scenes import COLORS, Image, Scene, random_scene, render
from sdengine.training.scoring import score

SEED, SIZE, STEPS = 40_000, 128, 12
SCALES = (1.0, 0.5, 0.0)
_NEAR = 2  # pixels within which an edge is found
_SHOWN = 8
_PALETTE = np.array(list(COLORS.values()), np.float32)

Row = list[Image]
Measure = Callable[[sdengine.Engine, int], tuple[dict[str, Any], list[Row]]]


def half_hidden(count: int) -> list[tuple[Scene, Image, str, Image]]:
    """Return scenes of one object, their pictures, captions, and masks that hide one half of it."""
    rng, jitter = random.Random(SEED), np.random.default_rng(SEED)
    found = []
    for _ in range(count):
        scene = random_scene(rng, num_objects=1, held_out=True)
        thing = scene.objects[0]
        reach = 1.25 * thing.radius
        axis = (np.arange(SIZE) + 0.5) / SIZE
        x, y = np.meshgrid(axis - thing.x, axis - thing.y)
        side = rng.choice((x, -x, y, -y))
        hidden = (np.maximum(np.abs(x), np.abs(y)) < reach) & (side > 0)
        picture = render(scene, jitter, size=SIZE)
        found.append((scene, picture, caption(scene, rng), np.uint8(255) * hidden))
    return found


def inpainting(engine: sdengine.Engine, count: int) -> tuple[dict[str, Any], list[Row]]:
    """Count what is right of recoloured objects, and of halves with and without a prompt."""
    found = dict.fromkeys(
        ("color_right", "all_right", "rest_equal", "halves_right", "halves_alone"), 0
    )
    shown: list[Row] = [[], [], [], [], []]
    options: dict[str, Any] = {"mask_blur": BLUR, "strength": 1.0, "steps": STEPS}
    for i, (_, picture, wanted, text, mask) in enumerate(recoloured(count)):
        made = engine.generate(text, image=picture, mask=mask, seed=i, **options).arrays[0]
        scored = score(made, wanted)
        found["color_right"] += scored["color"] == 1
        found["all_right"] += scored["all"] == 1
        found["rest_equal"] += rest_is_equal(made, picture, mask)
        _show(shown[:2], _greyed(picture, mask), made)
    for i, (scene, picture, text, mask) in enumerate(half_hidden(count)):
        options |= {"image": picture, "mask": mask, "seed": i}
        told = engine.generate(text, **options).arrays[0]
        alone = engine.generate("", guidance_scale=1.0, **options).arrays[0]
        found["halves_right"] += score(told, scene)["all"] == 1
        found["halves_alone"] += score(alone, scene)["all"] == 1
        _show(shown[2:], _greyed(picture, mask), told, alone)
    return found, shown


def covering(count: int) -> list[tuple[Layered, str, NDArray[np.bool_]]]:
    """Return scenes of two objects, a caption each, and where one covers the other."""
    rng = random.Random(SEED + 1)
    scenes = (covering_scene(rng, held_out=True) for _ in range(count))
    return [(one, caption(one.scene, rng), one.covered(SIZE)) for one in scenes]


def depth(engine: sdengine.Engine, count: int) -> tuple[dict[str, Any], list[Row]]:
    """Measure whether objects are where a map has them, and whether the nearer covers the other.

    Of each scene a picture is made as drawn, and one with the depths exchanged.
    """
    found: dict[str, Any] = dict.fromkeys(("order_right", "exchanged_right", "both_right"), 0)
    overlaps: list[float] = []
    others: list[float] = []
    shown: list[Row] = [[], [], [], []]
    before = np.zeros((SIZE, SIZE), np.float32)
    for i, (layered, text, covered) in enumerate(covering(count)):
        right = []
        for j, one in enumerate((layered, layered.reversed)):
            told = one.depth(SIZE)
            made = engine.generate(text, depth=told, seed=i, steps=STEPS).arrays[0]
            near = one.scene.objects[one.nearest]
            right.append(color_of(made[covered]) == near.color)
            levels = (told * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
            _show(shown[2 * j : 2 * j + 2], levels, made)
        seen = np.abs(made.astype(int) - np.asarray(COLORS[layered.scene.background])).max(2) > 40
        overlaps.append(_overlap(seen, told > 0))
        if i > 0:
            others.append(_overlap(seen, before > 0))
        before = told
        found["order_right"] += right[0]
        found["exchanged_right"] += right[1]
        found["both_right"] += all(right)
    found["overlap"] = round(float(np.mean(overlaps)), 3)
    found["overlap_with_another"] = round(float(np.mean(others)), 3)
    return found, shown


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the intersection of two masks over their union."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def edges_followed(engine: sdengine.Engine, count: int) -> tuple[dict[str, Any], list[Row]]:
    """Return how well pictures have the edges that they are told, by the control's scale."""
    rng, jitter = random.Random(SEED + 2), np.random.default_rng(SEED + 2)
    scores: dict[float, list[float]] = {scale: [] for scale in SCALES}
    shown: list[Row] = [[] for _ in range(1 + len(SCALES))]
    for i in range(count):
        layered = layered_scene(rng, num_objects=1 + i % 2, held_out=True)
        text, wanted = caption(layered.scene, rng), _edges(layered.render(jitter, SIZE))
        hint = (wanted * np.uint8(255))[..., None].repeat(3, axis=2)
        made = []
        for scale in SCALES:
            control = sdengine.Control(network="edges", image=hint, scale=scale)
            result = engine.generate(text, controls=[control], seed=i, steps=STEPS)
            made.append(result.arrays[0])
            scores[scale].append(edge_score(_edges(made[-1]), wanted))
        _show(shown, hint, *made)
    return {
        f"{scale:g}": {
            "f1": round(float(np.mean(found)), 3),
            "one_object": round(float(np.mean(found[::2])), 3),
            "two_objects": round(float(np.mean(found[1::2])), 3),
        }
        for scale, found in scores.items()
    }, shown


def _edges(picture: Image) -> NDArray[np.bool_]:
    return canny(picture, *CANNY) > 0


def tiny_decoder(engine: sdengine.Engine, count: int) -> tuple[dict[str, Any], list[Row]]:
    """Count pictures that show what a prompt says, by the decoder that made them of one seed.

    A decoder's time is its shortest, which others' load disturbs least.
    """
    prompts = [p for n in (1, 2) for p in draw_prompts(count // 2, n, TEST_SEED)]
    found: dict[str, Any] = {"prompts": len(prompts)}
    shown: dict[str, Row] = {"vae": [], "tiny": []}
    right = dict.fromkeys(shown, 0)
    least = dict.fromkeys(shown, float("inf"))
    for i, (scene, text) in enumerate(prompts):
        for decoder in shown:
            result = engine.generate(text, seed=i, steps=STEPS, decoder=decoder)
            right[decoder] += score(result.arrays[0], scene)["all"] == 1
            stage = "tiny_decoder" if decoder == "tiny" else "vae_decoder"
            least[decoder] = min(least[decoder], result.timings.stages[stage].ms)
            if not _SHOWN // 2 <= i < len(prompts) - _SHOWN // 2:
                shown[decoder].append(result.arrays[0])
    for decoder in shown:
        found[decoder] = {"right": right[decoder], "ms": round(least[decoder], 2)}
    return found, list(shown.values())


def edge_score(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    """Return the F1 score of edges [H,W], which count where others are within _NEAR pixels."""
    if not found.any():
        return 0.0
    hits = (found & (ndimage.distance_transform_edt(~wanted) <= _NEAR)).sum() / found.sum()
    kept = (wanted & (ndimage.distance_transform_edt(~found) <= _NEAR)).sum() / wanted.sum()
    return float(2 * hits * kept / (hits + kept)) if hits + kept else 0.0


def color_of(pixels: NDArray[np.uint8]) -> str:
    """Return the name of the colour that is nearest to the median of pixels [N,3]."""
    median = np.median(pixels.astype(np.float32), axis=0)
    return list(COLORS)[int(((_PALETTE - median) ** 2).sum(axis=1).argmin())]


def _greyed(picture: Image, mask: Image) -> Image:
    return np.where(mask[..., None] > 127, np.uint8(128), picture)


def _show(rows: list[Row], *cells: Image) -> None:
    for row, cell in zip(rows, cells, strict=True):
        if len(row) < _SHOWN:
            row.append(cell)


def save_sheet(rows: list[Row], path: Path) -> None:
    """Write pictures in rows as one PNG."""
    gap = 4
    side = rows[0][0].shape[0] + gap
    sheet = np.full((side * len(rows) + gap, side * len(rows[0]) + gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            sheet[y * side + gap : (y + 1) * side, x * side + gap : (x + 1) * side] = cell
    PILImage.fromarray(sheet).save(path, optimize=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="scenes of each kind")
    parser.add_argument(
        "--depth", default="demo-depth", help="what `sdengine train variant depth` wrote"
    )
    parser.add_argument("--tiny", default="demo-tiny", help="a tiny decoder of the demo model")
    parser.add_argument("--only", choices=("inpainting", "edges", "depth", "tiny"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    kinds: dict[str, tuple[str, dict[str, Any], Measure]] = {
        "inpainting": ("demo-inpainting", {}, inpainting),
        "edges": ("demo", {"controls": {"edges": "demo-edges"}}, edges_followed),
        "depth": (options.depth, {}, depth),
        "tiny": ("demo", {"tiny_vae": options.tiny}, tiny_decoder),
    }
    for kind, (checkpoint, more, measure) in kinds.items():
        if options.only not in (None, kind):
            continue
        with _built(checkpoint, **more) as engine:
            found, rows = measure(engine, options.count)
            settings = {"scenes": options.count, "size": SIZE, "steps": STEPS, "blur": BLUR}
            record = {**settings, "precision": engine.precision, "found": found}
        print(kind, found, flush=True)
        save_sheet(rows, options.output / f"demo-variants-{kind}.png")
        write_record(stamped(record), options.output / f"demo-variants-{kind}.json")


@contextlib.contextmanager
def _built(
    checkpoint: str, tiny_vae: str | None = None, controls: dict[str, str] | None = None
) -> Iterator[sdengine.Engine]:
    """Load a bundle of a checkpoint with what goes with it, built for this."""
    source = load_checkpoint(checkpoint, tiny_vae=tiny_vae)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        sdengine.build(source, bundle, resolutions=[SIZE], batch=1, controls=controls)
        with sdengine.load(bundle) as engine:
            yield engine


if __name__ == "__main__":
    main()
