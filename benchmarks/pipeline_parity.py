"""Compare our pictures of a checkpoint with those of diffusers' own pipeline, equal seeds.

    python benchmarks/pipeline_parity.py [--checkpoint DIR --bundle DIR] [--steps N] [--output DIR]

Both sides draw all noise, ancestral noise included, from one stream of the seed's generator, in the
same order. Prints a Markdown table, writes pipeline-parity.json, and fails when a picture is
further from diffusers' than REQUIRED_DB says.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.records import machine, software
from sdengine.checkpoints.folder import DEMO_CHECKPOINT

RESULTS = Path(__file__).parent / "results"
REQUIRED_DB = {"fp32": 40.0, "bf16": 30.0}
# Our sampler and schedule, diffusers' class, what its configuration needs besides.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("normal", "DDIMScheduler", {}),
    "euler": ("normal", "EulerDiscreteScheduler", {}),
    "euler_a": ("normal", "EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}
PROMPTS = (
    "a large red circle on a blue background",
    "a small green star above a yellow ring, black background",
    "a pink heart in the top left corner on a white background",
    "a cyan cross to the right of a large orange diamond on a purple background",
)
GUIDANCE_SCALE = 3.0
Pictures = dict[str, list[NDArray[np.uint8]]]


def theirs(checkpoint: Path, steps: int, side: int) -> Pictures:
    """Return diffusers' fp32 pictures by sampler, picture i with prompt and seed i."""
    import diffusers
    import torch

    library: Any = diffusers  # its annotations are incomplete
    pipeline = library.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    pictures: Pictures = {}
    for sampler, (_, name, changes) in SAMPLERS.items():
        pipeline.scheduler = getattr(library, name).from_config(config, **changes)
        pictures[sampler] = [
            np.asarray(
                pipeline(
                    prompt,
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE_SCALE,
                    height=side,
                    width=side,
                    generator=torch.Generator().manual_seed(seed),
                ).images[0]
            )
            for seed, prompt in enumerate(PROMPTS)
        ]
    return pictures


def ours(bundle: str, precision: str, steps: int, side: int) -> Pictures:
    """Return our pictures by sampler for the same prompts and seeds."""
    with sdengine.load(bundle, "auto", precision) as engine:
        return {
            sampler: [
                engine.generate(
                    prompt,
                    steps=steps,
                    guidance_scale=GUIDANCE_SCALE,
                    sampler=sampler,
                    schedule=schedule,
                    seed=seed,
                    width=side,
                    height=side,
                ).arrays[0]
                for seed, prompt in enumerate(PROMPTS)
            ]
            for sampler, (schedule, _, _) in SAMPLERS.items()
        }


def compare(found: dict[str, Pictures], expected: Pictures) -> dict[str, dict[str, list[float]]]:
    """Return PSNR in dB by sampler and precision, one value a picture."""
    return {
        sampler: {
            precision: [
                round(psnr(a, e), 1) for a, e in zip(pictures[sampler], wanted, strict=True)
            ]
            for precision, pictures in found.items()
        }
        for sampler, wanted in expected.items()
    }


def failures(table: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return a line for each sampler and precision with a picture below REQUIRED_DB."""
    return [
        f"{sampler} {precision}: {min(values)} dB, below {REQUIRED_DB[precision]:g} dB"
        for sampler, columns in table.items()
        for precision, values in columns.items()
        if min(values) < REQUIRED_DB[precision]
    ]


def as_markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """Return the lowest and the median PSNR by sampler as Markdown."""
    precisions = list(next(iter(table.values())))
    count = len(next(iter(table.values()))[precisions[0]])
    lines = [
        f"| PSNR of {count} pictures, dB: lowest (median) | {' | '.join(precisions)} |",
        "|---|" + "---:|" * len(precisions),
    ]
    for sampler, columns in table.items():
        cells = [f"{min(v):.1f} ({np.median(v):.1f})" for v in columns.values()]
        lines.append(f"| {sampler}, {SAMPLERS[sampler][0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 when a picture misses what is required."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--bundle", default="demo", help="built from the checkpoint")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    expected = theirs(options.checkpoint, options.steps, options.side)
    gc.collect()
    found = {p: ours(options.bundle, p, options.steps, options.side) for p in REQUIRED_DB}
    table = compare(found, expected)
    record = {
        "steps": options.steps,
        "guidance_scale": GUIDANCE_SCALE,
        "side": options.side,
        "prompts": PROMPTS,
        "required_db": REQUIRED_DB,
        "psnr_db": table,
        "versions": software("diffusers", "transformers"),
        "machine": machine(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "pipeline-parity.json").write_text(json.dumps(record, indent=2) + "\n")
    print(as_markdown(table))
    missed = failures(table)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
