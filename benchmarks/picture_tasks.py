"""Pictures that start from pictures, with the demo model: changed, inpainted, enlarged; measured.

    python benchmarks/picture_tasks.py

Scenes are drawn, of compositions that training never saw, with one object each. Inpainting asks for
the same scene with the object in another colour and masks the object's surroundings; what it gives
is scored by measurement (sdengine.training.scoring). Outpainting gets the middle of a scene and
gives it its border again. The record has every count.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.picture_uses import codec, enlarging, variations
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.training.captions import caption
from sdengine.training.scenes import COLORS, Image, Scene, random_scene, render, signed_distance
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
EXTENDED = 32  # pixels that outpainting adds at each side
EXTENSIONS: dict[str, dict[str, Any]] = {
    "edge": {},
    "mirror": {"outpaint_fill": "mirror"},
    "blur": {"outpaint_fill": "blur"},
    "noise": {"outpaint_fill": "noise"},
    "ancestral sampler": {"sampler": "euler_a", "schedule": "normal"},
    "strength 1": {"strength": 1.0},
    "no overlap": {"outpaint_overlap": 0},
}
OVERLAP = 16
# Of each side: the axis across its border, and where along it the other pixels begin.
SIDES = {
    "left": (1, EXTENDED),
    "top": (0, EXTENDED),
    "right": (1, SIZE - EXTENDED),
    "bottom": (0, SIZE - EXTENDED),
}
_NEAR_OUTLINE = 6  # pixels by which an outline may run elsewhere than as drawn
TONE = np.array([14, -14, 14])  # of pictures that are not quite in the model's own colours
REPEATS = 4


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
            kept += rest_is_equal(result, picture, mask)
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


def outpainting(engine: sdengine.Engine, count: int) -> dict[str, Any]:
    """Count, for each kind, what is right in scenes of which only the middle was given."""
    middle = np.s_[EXTENDED : SIZE - EXTENDED, EXTENDED : SIZE - EXTENDED]
    found: dict[str, dict[str, Any]] = {}
    drawn = 0
    for kind, fields in EXTENSIONS.items():
        rng = random.Random(SEED)
        names = (
            "background_right", "all_right", "no_seam", "no_seam_beside_outlines", "no_line",
            "rest_equal",
        )  # fmt: skip
        counts = dict.fromkeys(names, 0)
        for i, (scene, picture, *_) in enumerate(recoloured(count)):
            own = picture[middle]
            result = engine.generate(
                caption(scene, rng), image=own, outpaint=EXTENDED, steps=STEPS, seed=i, **fields
            ).arrays[0]
            scored = score(result, scene)
            counts["background_right"] += scored["background"] == 1
            counts["all_right"] += scored["all"] == 1
            counts["no_seam"] += is_seamless(result, own, np.ma.mean)
            beside = is_seamless(result, own, np.ma.mean, outlines(scene))
            counts["no_seam_beside_outlines"] += beside
            counts["no_line"] += is_seamless(result, own, np.ma.median)
            kept = own[OVERLAP:-OVERLAP, OVERLAP:-OVERLAP]
            place = np.s_[EXTENDED + OVERLAP : SIZE - EXTENDED - OVERLAP]
            counts["rest_equal"] += bool((result[place, place] == kept).all())
            if kind == "edge":
                drawn += is_seamless(picture, own, np.ma.mean)
        found[kind] = counts
        print(kind, counts, flush=True)
    return {"kinds": found, "no_seam_in_drawn_scenes": drawn}


def is_seamless(
    result: Image,
    own: Image,
    average: Callable[..., Any],
    left_out: NDArray[np.bool_] | None = None,
) -> bool:
    """Say whether no line along the four borders differs more from the next than inside a picture.

    Args:
        result: [SIZE,SIZE,3] uint8 that the picture was enlarged to.
        own: [h,w,3] uint8 the picture in its middle.
        average: over a line, such as np.ma.mean; of np.ma.median, edges of objects do not count.
        left_out: [SIZE,SIZE], pixels that a mean leaves out, by default none.
    """
    hidden = np.zeros(result.shape[:2], bool) if left_out is None else left_out
    kept = np.s_[EXTENDED : SIZE - EXTENDED]
    for axis in (0, 1):
        across = (slice(None), kept) if axis == 0 else (kept, slice(None))
        over, inside = (
            average(_steps(pixels, out, axis), axis=1 - axis)
            for pixels, out in ((result[across], hidden[across]), (own, hidden[kept, kept]))
        )
        for border in (EXTENDED - 1, SIZE - EXTENDED - 1):
            if over[border - 1 : border + 2].max() > max(inside.max(), 1):  # 1: rounding
                return False
    return True


def _steps(pixels: Image, left_out: NDArray[np.bool_], axis: int) -> np.ma.MaskedArray[Any, Any]:
    """Return by how much neighbours along an axis differ, without those that are left out."""
    steps = np.abs(np.diff(pixels.astype(float), axis=axis)).mean(axis=2)
    after, before = (np.delete(left_out, end, axis) for end in (0, -1))
    return np.ma.masked_array(steps, after | before)


def seams(engine: sdengine.Engine, count: int) -> dict[str, Any]:
    """Compare, side by side, the step over the border with the steps inside the picture given.

    Few scenes have an object across a border, so that it takes four times as many as elsewhere.

    Returns:
        The number of `scenes`, and for each of the `sides` `seam`, `inside`, `seam_less_inside`,
        and `drawn`, the step at the same place of the scene as drawn: each the mean over the
        scenes, and its 95 % interval's half width.
    """
    rng = random.Random(SEED)
    found: dict[str, dict[str, list[float]]] = {
        side: {"seam": [], "inside": [], "seam_less_inside": [], "drawn": []} for side in SIDES
    }
    for i, (scene, picture, *_) in enumerate(recoloured(4 * count)):
        own = picture[EXTENDED : SIZE - EXTENDED, EXTENDED : SIZE - EXTENDED]
        result = engine.generate(
            caption(scene, rng), image=own, outpaint=EXTENDED, steps=STEPS, seed=i
        ).arrays[0]
        over, drawn = border_steps(result), border_steps(picture)
        for side, values in found.items():
            inside = float(_steps(own, np.zeros(own.shape[:2], bool), SIDES[side][0]).mean())
            values["seam"].append(over[side])
            values["inside"].append(inside)
            values["seam_less_inside"].append(over[side] - inside)
            values["drawn"].append(drawn[side])
    means = {
        side: {name: _mean_and_interval(values) for name, values in by_name.items()}
        for side, by_name in found.items()
    }
    print(means, flush=True)
    return {"scenes": 4 * count, "sides": means}


def border_steps(result: Image) -> dict[str, float]:
    """Return by how much pixels differ over the border at each side, the mean along the border.

    Args:
        result: [SIZE,SIZE,3] uint8 that a picture was enlarged to by EXTENDED at each side.
    """
    kept = np.s_[EXTENDED : SIZE - EXTENDED]
    found = {}
    for side, (axis, border) in SIDES.items():
        pixels = result[:, kept] if axis == 0 else result[kept]
        two = pixels.take((border - 1, border), axis=axis).astype(float)
        found[side] = float(np.abs(np.diff(two, axis=axis)).mean())
    return found


def _mean_and_interval(values: list[float]) -> list[float]:
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return [round(float(np.mean(values)), 2), round(float(half), 2)]


def outlines(scene: Scene) -> NDArray[np.bool_]:
    """Return the pixels [SIZE,SIZE] that are near where objects of a scene end."""
    axis = (np.arange(SIZE) + 0.5) / SIZE
    x, y = np.meshgrid(axis, axis)
    near = np.zeros((SIZE, SIZE), bool)
    for thing in scene.objects:
        distance = signed_distance(thing.shape, x - thing.x, y - thing.y, thing.radius)
        near |= np.abs(distance) * SIZE < _NEAR_OUTLINE
    return near


def repeated_extensions(engine: sdengine.Engine, count: int) -> dict[str, list[float]]:
    """Measure how far tones are off, of 255, after each of some extensions to the same side."""
    found: dict[str, list[float]] = {}
    for kind in ("edge", "no overlap"):
        off = []
        for i, (scene, picture, *_) in enumerate(recoloured(count)):
            side = ("left", "top", "right", "bottom")[i % 4]
            pixels = (picture[32:96, 32:96].astype(int) + TONE).clip(0, 255).astype(np.uint8)
            plain = (picture[2, 2].astype(int) + TONE).clip(0, 255)
            own = []
            for k in range(REPEATS):
                pixels = engine.generate(
                    f"a {scene.background} background", image=pixels, outpaint={side: EXTENDED},
                    steps=STEPS, seed=k, **EXTENSIONS[kind],
                ).arrays[0]  # fmt: skip
                axis = 1 if side in ("left", "right") else 0
                at = np.arange(4) if side in ("left", "top") else np.arange(-4, 0)
                strip = pixels.take(at, axis=axis).reshape(-1, 3)
                own.append(float(np.abs(np.median(strip, axis=0) - plain).max()))
            off.append(own)
        found[kind] = [round(float(one), 2) for one in np.median(off, axis=0)]
        print(kind, found[kind], np.max(off, axis=0), flush=True)
    return found


def rest_is_equal(result: Image, picture: Image, mask: Image) -> bool:
    """Say whether a result has a picture's bytes where neither a mask nor its blur reaches."""
    from scipy.ndimage import binary_dilation

    reach = 2 * int(2.5 * BLUR + 0.5) + 1
    rest = ~binary_dilation(mask > 0, np.ones((reach, reach), bool))
    return bool((result[rest] == picture[rest]).all())


# What the record holds, and how many of the scenes each part takes.
PARTS: dict[str, tuple[Callable[[sdengine.Engine, int], dict[str, Any]], int]] = {
    "inpainting": (inpainting, 1),
    "image_to_image": (image_to_image, 1),
    "outpainting": (outpainting, 1),
    "seams": (seams, 1),
    "repeated_extensions": (repeated_extensions, 4),
    "variations": (variations, 1),
    "enlarging": (enlarging, 2),
    "codec": (codec, 1),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="scenes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="others stay as recorded")
    options = parser.parse_args()
    path = RESULTS / "picture-tasks.json"
    with sdengine.load("demo") as engine:
        record = {
            "scenes": options.count,
            "size": SIZE,
            "steps": STEPS,
            "blur": BLUR,
            "extended": EXTENDED,
            "precision": engine.precision,
        }
        known = json.loads(path.read_text(encoding="utf-8")) if options.parts else {}
        if any(known.get(name, value) != value for name, value in record.items()):
            parser.error("what is recorded was measured otherwise; leave --parts out")
        for part, (measure, share) in PARTS.items():
            if part in (options.parts or PARTS):
                record[part] = measure(engine, options.count // share)
            else:
                record[part] = known[part]
    write_record(stamped(record), path)


if __name__ == "__main__":
    main()
