"""Training, shown on the demo model: words, a subject, a style, edges, by the commands' trainer.

    python benchmarks/training.py word --kind embedding   # a new colour (or --thing pot) as a word
    python benchmarks/training.py word --kind lora
    python benchmarks/training.py subject                 # DreamBooth with its prior and without
    python benchmarks/training.py style --kind lora       # outlines; also --kind hypernetwork
    python benchmarks/training.py edges                   # a ControlNet
    python benchmarks/training.py resume --kind lora      # ten kills at random moments
    python benchmarks/training.py steps --kind lora --examples FOLDER    # and diffusers' script
    python benchmarks/training.py processes               # two processes against one

Every figure of the first five is measured in pictures of held-out compositions that the engine
makes. Each part takes its place in training.json; the others there stay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image as PILImage

import sdengine
from sdengine.benchmarks import taught_scenes as taught
from sdengine.benchmarks import training_runs as runs
from sdengine.benchmarks.demo_variants import edges_followed, save_sheet
from sdengine.benchmarks.prompt_following import SAMPLING, evaluate
from sdengine.benchmarks.records import RESULTS, put_part
from sdengine.training.captions import caption
from sdengine.training.scenes import TAUGHT_COLOR, TAUGHT_SHAPE, Image, random_scene
from sdengine.training.scoring import analyse
from sdengine.training.tuning.options import OPTIONS
from sdengine.training.tuning.tune import tune

Figures = dict[str, Any]
SEED, GUIDANCE = 40_000, 2.0
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NAME = "zorblax"  # of what is taught; the tokenizer knows no such word
# What a new word begins as: two that are near.
INITIAL: Mapping[str, str] = MappingProxyType(
    {TAUGHT_COLOR: "blue purple", TAUGHT_SHAPE: "square heart"}
)
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "embedding": {"steps": 150, "batch": 4, "learning_rate": 2e-3, "vectors": 1},
    "lora": {
        "steps": 250, "batch": 8, "learning_rate": 1e-3, "text_encoder": False, "rank": 16,
        "min_snr": 0.0, "ema_decay": 0.0,
    },
    "hypernetwork": {"steps": 200, "batch": 8, "learning_rate": 1e-3},
    "dreambooth": {"steps": 200, "batch": 4, "learning_rate": 7e-5, "text_encoder": True},
    "controlnet": {"steps": 600, "batch": 8, "learning_rate": 5e-4, "dropout": 0.5},
})  # fmt: skip


def train(kind: str, data: Path, folder: Path, given: argparse.Namespace, **more: Any) -> Path:
    """Train on the demo model by the command's own function; print how it goes."""
    output = folder / runs.OUTPUTS.get(kind, "taught")
    options = OPTIONS[kind](**settings(kind, given), decay="cosine", **more)
    started = time.monotonic()

    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"{step}/{steps} {seconds:.0f} s loss {figures['loss']:.4f}", flush=True)

    return tune(kind, "demo", data, output, options, report=report)


def settings(kind: str, given: argparse.Namespace) -> Figures:
    """Return the options of a kind: its own, and those that were given instead."""
    own = dict(SETTINGS[kind])
    return own | {k: getattr(given, k) for k in own if getattr(given, k, None) is not None}


def word(given: argparse.Namespace) -> Figures:
    """Teach a new colour or shape as a word; count what is right of held-out compositions."""
    thing, is_word = given.thing, given.kind == "embedding"
    with scratch(given) as folder:
        data = taught.write_pictures(
            folder / "data", given.pictures, taught.draw_taught(thing, NAME)
        )
        more: Figures = {}
        if is_word:  # the captions hold its name
            more = {"templates": ("{caption}",), "name": NAME, "initial": INITIAL[thing]}
        file = train(given.kind, data, folder, given, **more)
        rng = random.Random(given.seed)
        scenes = [taught.taught_scene(rng, thing, held_out=True) for _ in range(given.count)]
        texts = [text.replace(thing, NAME) for _, text in scenes]
        own: Figures = {"embeddings": {NAME: file}} if is_word else {"loras": {file: 1.0}}
        none: Figures = own if is_word else {"loras": {file: 0.0}}
        with sdengine.load("demo") as engine:
            before = [picture(engine, text, i) for i, text in enumerate(texts[:10])]
            made = [picture(engine, text, i, **own) for i, text in enumerate(texts)]
            # A word in prompts that do not name it; a LoRA at no strength, which is none.
            same = unchanged(engine, others(10), none)
    right = [taught.right(p, s) for p, (s, _) in zip(made, scenes, strict=True)]
    ones = [r for r, (s, _) in zip(right, scenes, strict=True) if len(s.objects) == 1]
    show(given, f"word-{given.kind}-{thing}", before, made[:10], made[10:20])
    found = {"right": percent(right), "one_object": percent(ones), "others_unchanged": same}
    return found | ({"known_as_new": mistaken(thing, given.count)} if is_word else {})


def mistaken(thing: str, count: int) -> float:
    """Return the percentage of known objects, as the untouched model shows them, called new."""
    rng = random.Random(SEED + 2)
    found = []
    with sdengine.load("demo") as engine:
        for i in range(count):
            made = picture(engine, caption(random_scene(rng, held_out=True), rng), i)
            found += [thing in (r.color, r.shape) for r in analyse(made, taught.TAUGHT)[1]]
    return percent(found)


def picture(engine: sdengine.Engine, text: str, seed: int, **more: Any) -> Image:
    """Return the picture of a prompt, made as in the benchmark of prompt following."""
    given: Figures = {"width": taught.SIZE, "height": taught.SIZE, **SAMPLING, **more}
    return engine.generate(text, seed=seed, guidance_scale=GUIDANCE, **given).arrays[0]


def others(count: int) -> list[str]:
    """Return prompts with nothing of what is taught."""
    rng = random.Random(SEED + 1)
    return [caption(random_scene(rng, held_out=True), rng) for _ in range(count)]


def unchanged(engine: sdengine.Engine, texts: Sequence[str], given: Figures) -> bool:
    """Say whether the untouched model gives the same pictures to the bit."""
    with sdengine.load("demo") as plain:
        return all(
            np.array_equal(picture(engine, text, i, **given), picture(plain, text, i))
            for i, text in enumerate(texts)
        )


def subject(given: argparse.Namespace) -> Figures:
    """Teach a subject with its prior preserved and without; measure it and what else suffers."""
    found: Figures = {"before": following("demo", given.count)}
    rows: list[list[Image]] = []
    for preserved in (True, False):
        with scratch(given, "with" if preserved else "without") as folder:
            data = taught.write_pictures(folder / "data", given.pictures, taught.draw_subject)
            prior: Figures = {"class_prompt": f"a {taught.CLASS}", "class_pictures": given.prior}
            if preserved:
                prior["class_folder"] = str(known(folder / "known", given.prior))
            model = train("dreambooth", data, folder, given, **(prior if preserved else {}))
            sdengine.build(model, folder / "bundle", resolutions=[taught.SIZE])
            rng = random.Random(SEED)
            scenes = [taught.subject_scene(rng, held_out=True) for _ in range(given.count)]
            with sdengine.load(folder / "bundle") as engine:
                texts = [taught.subject_caption(scene, rng) for scene in scenes]
                made = [picture(engine, text, i) for i, text in enumerate(texts)]
                rows += [made[:10], [picture(engine, t, i) for i, t in enumerate(others(10))]]
            right = [taught.has_two_tones(p, s) for p, s in zip(made, scenes, strict=True)]
            found["with_prior" if preserved else "without"] = {
                "subject_right": percent(right),
                "elsewhere": following(folder / "bundle", given.count),
            }
            print(found, flush=True)
    show(given, "subject", *rows)
    return found


def known(folder: Path, count: int) -> Path:
    """Fill a new folder with what the untouched model makes of captions like those it learned."""
    rng = random.Random(SEED + 3)
    folder.mkdir(parents=True)
    with sdengine.load("demo") as engine:
        for number in range(count):
            text = caption(random_scene(rng), rng)
            PILImage.fromarray(picture(engine, text, number)).save(folder / f"{number:04d}.png")
            (folder / f"{number:04d}.txt").write_text(text)
    return folder


def following(bundle: str | Path, count: int) -> Figures:
    """Return the percentages of prompt following that count: all but sizes."""
    with sdengine.load(bundle) as engine:
        table, _ = evaluate(engine, count, SEED, GUIDANCE, taught.SIZE)
    return {name: values["all"] for name, values in table.items()}


def style(given: argparse.Namespace) -> Figures:
    """Teach outlines; return the share of edges in pictures by strength."""
    with scratch(given) as folder:
        data = taught.write_pictures(folder / "data", given.pictures, taught.draw_outlined)
        file = train(given.kind, data, folder, given)
        texts = others(given.count)
        field = "loras" if given.kind == "lora" else "hypernetworks"
        with sdengine.load("demo") as engine:
            made = {
                strength: [picture(engine, t, i, **{field: {file: strength}})
                           for i, t in enumerate(texts)]
                for strength in STRENGTHS
            }  # fmt: skip
            same = unchanged(engine, texts[:5], {field: {file: 0.0}})
    shares = {f"{k:g}": round(float(np.mean([taught.edge_pixels(p) for p in pictures])), 5)
              for k, pictures in made.items()}  # fmt: skip
    rising = list(shares.values())
    show(given, f"style-{given.kind}", *(pictures[:10] for pictures in made.values()))
    return {
        "edge_share": shares,
        "monotone": rising == sorted(set(rising)),
        "drawn": round(taught.drawn_edges(given.count), 5),
        "unchanged_at_0": same,
    }


def edges(given: argparse.Namespace) -> Figures:
    """Train a ControlNet on edges; return how well its pictures follow them, by scale."""
    with scratch(given) as folder:
        taught.draw_edges(folder / "data", folder / "hints", given.pictures)
        net = train("controlnet", folder / "data", folder, given, hints=str(folder / "hints"))
        sdengine.build("demo", folder / "bundle", controls={"edges": net}, resolutions=[128])
        with sdengine.load(folder / "bundle") as engine:
            found, rows = edges_followed(engine, given.count)
    show(given, "edges", *rows)
    return found


def show(given: argparse.Namespace, part: str, *rows: Sequence[Image]) -> None:
    """Write a part's sheet of pictures beside its record."""
    save_sheet([list(row) for row in rows], given.output / f"training-{part}.png")


def percent(right: Sequence[bool]) -> float:
    """Return a share in percent."""
    return round(100 * float(np.mean(right)), 1) if right else float("nan")


@contextlib.contextmanager
def scratch(given: argparse.Namespace, name: str = "") -> Iterator[Path]:
    """Give a folder of its own, which stays where one was named."""
    if given.folder is not None:
        folder: Path = given.folder / name
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


PARTS: Mapping[str, Callable[[argparse.Namespace], Figures]] = MappingProxyType({
    **{f.__name__: f for f in (word, subject, style, edges)},
    "resume": lambda given: runs.resume(given.kind, given.kills, given.moments),
    "steps": lambda given: runs.steps(
        given.kind, given.arch, given.steps or 3, given.examples, given.folder
    ),
    "processes": lambda given: runs.processes(given.steps or 20),
})  # fmt: skip
# The kind that a part trains, and what its name in the record ends with.
KINDS: Mapping[str, str] = MappingProxyType({"subject": "dreambooth", "edges": "controlnet"})


def part_name(given: argparse.Namespace) -> str:
    """Return what the record calls a part."""
    ends = {"word": (given.kind, given.thing)} | {k: () for k in (*KINDS, "processes")}
    return "-".join((given.what, *ends.get(given.what, (given.kind,))))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("--kind", default="lora", choices=OPTIONS)
    parser.add_argument("--thing", default=TAUGHT_COLOR, choices=INITIAL)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--vectors", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--min-snr", type=float)
    parser.add_argument("--ema-decay", type=float)
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes with a new word")
    parser.add_argument("--text-encoder", action=argparse.BooleanOptionalAction)
    parser.add_argument("--pictures", type=int, default=100, help="to train on")
    parser.add_argument("--prior", type=int, default=300, help="pictures of what is known")
    parser.add_argument("--count", type=int, default=50, help="pictures of each measurement")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--moments", type=float, nargs=2, default=(4.0, 15.0), help="seconds")
    parser.add_argument("--arch", default="sd15")
    parser.add_argument("--examples", type=Path, help="of diffusers, whose scripts take steps too")
    parser.add_argument("--folder", type=Path, help="for what is made, to be kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    started = os.times()
    found = PARTS[given.what](given)
    print(json.dumps(found, indent=2))
    figures: Figures = {}
    if given.what in ("word", "subject", "style", "edges"):
        figures = settings(KINDS.get(given.what, given.kind), given)
        figures |= {"pictures": given.pictures, "count": given.count, "guidance_scale": GUIDANCE}
        figures |= {"seed": given.seed} if given.what == "word" else {}
    figures["cpu_seconds"] = round(sum(os.times()[:4]) - sum(started[:4]))
    others = ("diffusers", "transformers", "accelerate", "peft") if "script" in found else ()
    figures["found"] = found
    put_part(given.output / "training.json", part_name(given), figures, *others)


if __name__ == "__main__":
    main()
