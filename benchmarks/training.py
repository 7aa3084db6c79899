"""Training, shown on the demo model and at full size.

    python benchmarks/training.py word --kind embedding   # a new colour (or --thing bar) as a word
    python benchmarks/training.py word --kind lora
    python benchmarks/training.py subject                 # DreamBooth with its prior and without
    python benchmarks/training.py style --kind lora       # outlines; also --kind hypernetwork
    python benchmarks/training.py edges                   # a ControlNet
    python benchmarks/training.py resume                  # ten kills at random moments
    python benchmarks/training.py steps --arch sd15       # a step of each kind at full size
    python benchmarks/training.py processes               # two processes against one

Every figure is measured in pictures of held-out compositions that the engine makes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sdengine
from sdengine.benchmarks import taught_scenes as taught
from sdengine.benchmarks.demo_variants import edges_followed
from sdengine.benchmarks.prompt_following import SAMPLING, evaluate
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.training.captions import caption
from sdengine.training.scenes import TAUGHT_SHAPE, random_scene
from sdengine.training.tuning.kinds import PREPARE
from sdengine.training.tuning.live_engine import LiveEngine
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.options import OPTIONS, HypernetworkOptions
from sdengine.training.tuning.tune import tune

Figures = dict[str, Any]
SEED, GUIDANCE = 40_000, 3.0
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
OUTPUTS = {"embedding": "taught.safetensors", "lora": "taught.safetensors",
           "hypernetwork": "taught.pt"}  # fmt: skip
RATES = {"embedding": 5e-3, "lora": 2e-3, "hypernetwork": 1e-3, "dreambooth": 1e-4,
         "controlnet": 5e-4, "finetune": 1e-4}  # fmt: skip


def train(kind: str, data: Path, folder: Path, given: argparse.Namespace, **more: Any) -> Path:
    """Train on the demo model by the command's own function; print the time."""
    output = folder / OUTPUTS.get(kind, "taught")
    rate = given.learning_rate or RATES[kind]
    options = OPTIONS[kind](steps=given.steps, batch=given.batch, learning_rate=rate, **more)
    started = time.monotonic()

    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"{step}/{steps} {seconds:.0f} s loss {figures['loss']:.4f}", flush=True)

    return tune(kind, "demo", data, output, options, report=report)


def word(given: argparse.Namespace) -> Figures:
    """Teach a new colour or shape as a word; count what is right of held-out compositions."""
    with scratch(given) as folder:
        name = "zorblax"
        is_word = given.kind == "embedding"
        draw = taught.draw_taught(given.thing, name)
        data = taught.write_pictures(folder / "data", given.pictures, draw)
        more: Figures = {}
        if is_word:  # the captions hold its name
            more = {"templates": ("{caption}",), "name": name}
            more |= {"vectors": given.vectors, "initial": given.initial}
        file = train(given.kind, data, folder, given, **more)
        rng = random.Random(SEED)
        scenes = [taught.taught_scene(rng, given.thing, held_out=True) for _ in range(given.count)]
        keywords: Figures = {"embeddings": {name: file}} if is_word else {}
        loras = {} if is_word else {file: 1.0}
        with sdengine.load("demo", loras=loras) as engine:
            made = [
                engine.generate(text.replace(given.thing, name), seed=i, guidance_scale=GUIDANCE,
                                **SAMPLING, **keywords).arrays[0]
                for i, (_, text) in enumerate(scenes)
            ]  # fmt: skip
            same = unchanged(engine, keywords)
    right = [taught.right(p, s) for p, (s, _) in zip(made, scenes, strict=True)]
    ones = [r for r, (s, _) in zip(right, scenes, strict=True) if len(s.objects) == 1]
    return {"right": percent(right), "one_object": percent(ones), "others_unchanged": same}


def unchanged(engine: sdengine.Engine, keywords: Figures) -> bool:
    """Say whether prompts without the word give the untouched model's pictures to the bit."""
    rng = random.Random(SEED + 1)
    texts = [caption(random_scene(rng, held_out=True), rng) for _ in range(10)]
    with sdengine.load("demo") as plain:
        pairs = [
            [one.generate(text, seed=i, steps=8, **own).arrays[0] for one, own in
             ((engine, keywords), (plain, {}))]
            for i, text in enumerate(texts)
        ]  # fmt: skip
    return all(np.array_equal(a, b) for a, b in pairs)


def subject(given: argparse.Namespace) -> Figures:
    """Teach a subject with its prior preserved and without; measure it and what else suffers."""
    found: Figures = {"before": following("demo", given.count)}
    for preserved in (True, False):
        with scratch(given) as folder:
            data = taught.write_pictures(folder / "data", given.pictures, taught.draw_subject)
            prior = {"class_prompt": f"a {taught.CLASS}", "class_pictures": 4 * given.pictures}
            model = train("dreambooth", data, folder, given, **(prior if preserved else {}))
            sdengine.build(model, folder / "bundle")
            rng = random.Random(SEED)
            scenes = [taught.subject_scene(rng, held_out=True) for _ in range(given.count)]
            with sdengine.load(folder / "bundle") as engine:
                right = [
                    taught.has_two_tones(
                        engine.generate(taught.subject_caption(scene, rng), seed=i,
                                        guidance_scale=GUIDANCE, **SAMPLING).arrays[0],
                        scene,
                    )
                    for i, scene in enumerate(scenes)
                ]  # fmt: skip
            found["with_prior" if preserved else "without"] = {
                "subject_right": percent(right),
                "elsewhere": following(folder / "bundle", given.count),
            }
    return found


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
        rng = random.Random(SEED)
        texts = [caption(random_scene(rng, held_out=True), rng) for _ in range(given.count)]
        edges = {}
        for strength in STRENGTHS:
            with styled(given.kind, file, strength, folder) as make:
                edges[strength] = float(np.mean([taught.edge_pixels(make(t, i)) for i, t in
                                                 enumerate(texts)]))  # fmt: skip
    rising = list(edges.values())
    return {"edge_share": edges, "monotone": rising == sorted(rising)}


@contextlib.contextmanager
def styled(
    kind: str, file: Path, strength: float, folder: Path
) -> Iterator[Callable[[str, int], Any]]:
    """Give what makes a picture of a prompt and a seed in a style of some strength."""
    if kind == "lora":
        with sdengine.load("demo", loras={file: strength}) as engine:
            yield lambda text, seed: engine.generate(
                text, seed=seed, guidance_scale=GUIDANCE, **SAMPLING
            ).arrays[0]
        return
    source = load_checkpoint("demo")
    networks = Networks.load(source, precision="fp32", device=torch.device("cpu"))
    content = torch.load(file, weights_only=True)
    prepared = PREPARE[kind](networks, HypernetworkOptions(), file)
    model: Any = prepared.model
    for width, pair in model.networks.items():
        for network, state in zip(pair, content[int(width)], strict=True):
            network.load_state_dict(state)
            with torch.no_grad():  # the last layer is linear, so that this is the strength
                network.linear[-1].weight.mul_(strength)
                network.linear[-1].bias.mul_(strength)
    model.eval()
    live = LiveEngine(networks, folder / "live", (taught.SIZE, taught.SIZE))
    yield lambda text, seed: live.pictures(
        [{"prompt": text, "seed": seed, "guidance_scale": GUIDANCE, **SAMPLING}]
    )[0]


def edges(given: argparse.Namespace) -> Figures:
    """Train a ControlNet on edges; return how well its pictures follow them, by scale."""
    with scratch(given) as folder:
        taught.draw_edges(folder / "data", folder / "hints", given.pictures)
        net = train("controlnet", folder / "data", folder, given, hints=str(folder / "hints"))
        sdengine.build("demo", folder / "bundle", controls={"edges": net}, resolutions=[128])
        with sdengine.load(folder / "bundle") as engine:
            found, _ = edges_followed(engine, given.count)
    return found


def resume(given: argparse.Namespace) -> Figures:
    """Kill a command at random moments and let it go on; compare with one that was left alone."""
    with scratch(given) as folder:
        data = taught.write_pictures(folder / "data", 12, taught.draw_taught("brown", "brown"))
        command = [sys.executable, "-m", "sdengine", "train", given.kind, "demo", "--data", data,
                   "--steps", given.steps, "--batch", 4, "--save-every", 3]  # fmt: skip
        outputs = [folder / name / OUTPUTS.get(given.kind, "taught") for name in ("whole", "cut")]
        for output in outputs:
            output.parent.mkdir()
        words = [[str(word) for word in (*command, "-o", output)] for output in outputs]
        subprocess.run(words[0], check=True)
        rng, kills = random.Random(SEED), 0
        started = time.monotonic()
        while not outputs[1].exists():
            process = subprocess.Popen([*words[1], "--resume"])
            if kills < given.kills:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=rng.uniform(*given.moments))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
            if process.wait() and kills >= given.kills and time.monotonic() - started > 3600:
                break
        runs = [output.with_name(f"{output.name}.training") for output in outputs]
        logs = [(run / "log.jsonl").read_text() for run in runs]
        return {"kills": kills, "equal_losses": logs[0] == logs[1],
                "equal_files": contents(outputs[0]) == contents(outputs[1])}  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file or of all files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def steps(given: argparse.Namespace) -> Figures:
    """Take two steps of each kind at full size, each in a process; return seconds and memory."""
    found: Figures = {}
    with scratch(given) as folder:
        model = make_synthetic(given.arch, folder / "model")
        data = taught.write_pictures(folder / "data", 1, taught.draw_subject)
        for kind in given.kinds.split(","):
            output = folder / f"{kind}-{OUTPUTS.get(kind, 'taught')}"
            command = [sys.executable, "-m", "sdengine", "train", kind, model, "--data", data,
                       "-o", output, "--steps", 2, "--no-buckets", "--save-every", 1000,
                       "--precision", given.precision]  # fmt: skip
            command += ["--gradient-checkpointing"] * given.gradient_checkpointing
            command += ["--preprocessor", "canny"] if kind == "controlnet" else []
            command += ["--template", "a {name}"] if kind == "embedding" else []
            started = time.monotonic()
            process = subprocess.Popen([str(word) for word in command])
            _, status, usage = os.wait4(process.pid, 0)
            record = {"status": status, "peak_bytes": usage.ru_maxrss * 1024,
                      "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
            found[kind] = record
            print(kind, record, flush=True)
    return found


def processes(given: argparse.Namespace) -> Figures:
    """Train with two processes, and with one that sees both their batches; compare the losses."""
    with scratch(given) as folder:
        data = taught.write_pictures(folder / "data", 12, taught.draw_taught("brown", "brown"))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        curves = []
        for name, start, batches in (("one", [sys.executable], 2), ("two", launcher, 1)):
            output = folder / f"{name}.safetensors"
            words = [*start, "-m", "sdengine", "train", "lora", "demo", "--data", data, "-o",
                     output, "--steps", given.steps, "--batch", 4, "--accumulation", batches,
                     "--device", "cpu"]  # fmt: skip
            threads = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([str(word) for word in words], check=True, env=threads)
            log = (folder / f"{output.name}.training" / "log.jsonl").read_text().splitlines()
            curves.append([json.loads(line)["loss"] for line in log])
    one, two = map(np.array, curves)
    return {"steps": len(one), "largest_relative_difference": float(np.abs(two / one - 1).max())}


def percent(right: list[bool]) -> float:
    """Return a share in percent."""
    return round(100 * float(np.mean(right)), 1) if right else float("nan")


@contextlib.contextmanager
def scratch(given: argparse.Namespace) -> Iterator[Path]:
    """Give a folder of its own, which stays where one was named."""
    if given.folder is not None:
        given.folder.mkdir(parents=True)
        yield given.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


SHOWN = {f.__name__: f for f in (word, subject, style, edges, resume, steps, processes)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=SHOWN)
    parser.add_argument("--kind", default="lora", choices=OPTIONS)
    parser.add_argument("--kinds", default=",".join(OPTIONS), help="of `steps`")
    parser.add_argument("--thing", default="brown", choices=("brown", TAUGHT_SHAPE))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vectors", type=int, default=2)
    parser.add_argument("--initial", default="orange", help="what a new word begins as")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--pictures", type=int, default=200, help="to train on")
    parser.add_argument("--count", type=int, default=50, help="pictures of each measurement")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--moments", type=float, nargs=2, default=(4.0, 15.0), help="seconds")
    parser.add_argument("--arch", default="sd15")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--folder", type=Path, help="for what is made, to be kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = SHOWN[given.what](given)
    settings = {k: v for k, v in vars(given).items() if k not in ("folder", "output")}
    print(json.dumps(found, indent=2))
    name = f"training-{given.what}" + (f"-{given.kind}" if given.what in ("word", "style") else "")
    write_record(stamped({**settings, "found": found}), given.output / f"{name}.json")


if __name__ == "__main__":
    main()
