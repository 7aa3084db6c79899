"""Pictures of a checkpoint, compared with those of diffusers' own pipeline, equal seeds.

    python benchmarks/pipeline_parity.py [--checkpoint DIR --bundle DIR] [--steps N] [--output DIR]

Both sides draw all noise, ancestral noise included, from one stream of the seed's generator, in the
same order. Prints a Markdown table, writes pipeline-parity.json, and fails when a picture is
further from diffusers' than REQUIRED_DB says.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sdengine
from sdengine.benchmarks.accuracy_tables import pictures as picture_table
from sdengine.benchmarks.pictures import (
    GUIDANCE_SCALE,
    PROMPTS,
    Pictures,
    below_required,
    compare,
    finish,
    pictures,
)
from sdengine.benchmarks.records import RESULTS, stamped

REQUIRED_DB = {"fp32": 40.0, "bf16": 30.0}
# Our sampler and schedule, diffusers' class, what its configuration needs besides.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("normal", "DDIMScheduler", {}),
    "euler": ("normal", "EulerDiscreteScheduler", {}),
    "euler_a": ("normal", "EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


def theirs(checkpoint: Path, steps: int, side: int) -> dict[str, Pictures]:
    """Return diffusers' fp32 pictures by sampler, picture i with prompt and seed i."""
    import diffusers
    import torch

    library: Any = diffusers  # its annotations are incomplete
    pipeline = library.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    made: dict[str, Pictures] = {}
    for sampler, (_, name, changes) in SAMPLERS.items():
        pipeline.scheduler = getattr(library, name).from_config(config, **changes)
        made[sampler] = [
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
    return made


def ours(bundle: str, precision: str, steps: int, side: int) -> dict[str, Pictures]:
    """Return our pictures by sampler for the same prompts and seeds."""
    with sdengine.load(bundle, "auto", precision) as engine:
        return {
            sampler: pictures(engine, steps, side, sampler=sampler, schedule=schedule)
            for sampler, (schedule, _, _) in SAMPLERS.items()
        }


def failures(table: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return a line for each sampler and precision with a picture below REQUIRED_DB."""
    return below_required(table, REQUIRED_DB.__getitem__)


def as_markdown(table: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the lowest and the median PSNR by sampler as Markdown."""
    count = len(next(iter(next(iter(table.values())).values())))
    named = {f"{name}, {SAMPLERS[name][0]}": columns for name, columns in table.items()}
    return picture_table(named, f"PSNR of {count} pictures")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 when a picture misses what is required."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="the demo model's if not given")
    parser.add_argument("--bundle", default="demo", help="built from the checkpoint")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    from sdengine.checkpoints.folder import DEMO_CHECKPOINT

    checkpoint = options.checkpoint or DEMO_CHECKPOINT
    expected = theirs(checkpoint, options.steps, options.side)
    gc.collect()
    found = {p: ours(options.bundle, p, options.steps, options.side) for p in REQUIRED_DB}
    distances = compare(found, expected)
    table = {sampler: {p: distances[p][sampler] for p in found} for sampler in expected}
    figures = {
        "steps": options.steps,
        "guidance_scale": GUIDANCE_SCALE,
        "side": options.side,
        "prompts": PROMPTS,
        "required_db": REQUIRED_DB,
        "psnr_db": table,
    }
    path = options.output / "pipeline-parity.json"
    record = stamped(figures, "diffusers", "transformers")
    return finish(record, path, as_markdown(table), failures(table))


if __name__ == "__main__":
    sys.exit(main())
