"""Whole requests, timed against diffusers and stable-diffusion.cpp.

    sdengine build CHECKPOINT -o native --target native --resolutions 512
    pip install stable-diffusion-cpp-python                # or leave its sides out
    python benchmarks/pipelines.py --checkpoint CHECKPOINT --native native \\
        --record benchmarks/results/pipelines.jsonl

All sides start from the same noise and take the same noise levels. Each is loaded, asked once and
dropped before the next is loaded, round after round, so that none is pressed for memory. Pictures
are compared with diffusers' in fp32. The native target's loading includes a request of one step,
which packs the weights where that was never done.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.measures import OtherLoad, psnr
from sdengine.benchmarks.native_tables import requests as as_markdown
from sdengine.benchmarks.records import append_record, stamped
from sdengine.samplers.noise import CudaGenerator

REFERENCE = "diffusers fp32"
SIDES = (
    REFERENCE, "diffusers bf16", "stable-diffusion.cpp f16", "stable-diffusion.cpp q8_0",
    "native fp32", "native bf16", "native int8",
)  # fmt: skip
PROMPT = "a benchmark of a picture"
SEED = 0
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What every side is asked for."""

    checkpoint: Path
    native: str
    side: int
    steps: int
    guidance_scale: float
    threads: int


def load(name: str, job: Job) -> tuple[Callable[[], Picture], Callable[[], None]]:
    """Load a side; return what serves the request, and what frees the side."""
    system, precision = name.rsplit(" ", 1)
    if system == "native":
        return _native(job, precision)
    return _diffusers(job, precision) if system == "diffusers" else _ggml(job, precision)


def _native(job: Job, precision: str) -> tuple[Callable[[], Picture], Callable[[], None]]:
    engine = sdengine.load(job.native, "native", precision, threads=job.threads)

    def serve(steps: int = job.steps) -> Picture:
        engine.forget_prompts()
        return engine.generate(
            PROMPT, steps=steps, guidance_scale=job.guidance_scale, sampler="euler",
            schedule="normal", seed=SEED, noise="cuda", width=job.side, height=job.side,
        ).arrays[0]  # fmt: skip

    serve(1)  # weights are packed for the processor at the first request ever
    return serve, engine.close


def _diffusers(job: Job, precision: str) -> tuple[Callable[[], Picture], Callable[[], None]]:
    import diffusers
    import torch

    torch.set_num_threads(job.threads)
    library: Any = diffusers  # its annotations are incomplete
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pipeline = library.StableDiffusionPipeline.from_pretrained(
        job.checkpoint, safety_checker=None, torch_dtype=dtype
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    noise = CudaGenerator(SEED).randn((1, 4, job.side // 8, job.side // 8))
    latents = torch.from_numpy(noise).to(dtype)

    def serve() -> Picture:
        return np.asarray(
            pipeline(
                PROMPT, num_inference_steps=job.steps, guidance_scale=job.guidance_scale,
                height=job.side, width=job.side, latents=latents.clone(),
            ).images[0]
        )  # fmt: skip

    return serve, lambda: None


def _ggml(job: Job, precision: str) -> tuple[Callable[[], Picture], Callable[[], None]]:
    import diffusers
    import stable_diffusion_cpp

    library: Any = diffusers
    scheduler = library.EulerDiscreteScheduler.from_pretrained(job.checkpoint / "scheduler")
    scheduler.set_timesteps(job.steps)
    model = stable_diffusion_cpp.StableDiffusion(
        model_path=f"{job.checkpoint}/",  # read as a diffusers folder
        wtype=precision,
        n_threads=job.threads,
        rng_type="cuda",
        vae_decode_only=True,
        flash_attn=True,
        verbose=False,
    )

    def serve() -> Picture:
        images = model.generate_image(
            PROMPT, sample_method="euler", sample_steps=job.steps,
            cfg_scale=job.guidance_scale, seed=SEED, width=job.side, height=job.side,
            sigmas=",".join(f"{float(s):.7g}" for s in scheduler.sigmas),
        )  # fmt: skip
        return np.asarray(images[0].convert("RGB"))

    return serve, lambda: None


def measure(job: Job, names: list[str], rounds: int) -> dict[str, Any]:
    """Return seconds of loading and of the request by side and round, and the pictures' PSNR."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    loading: dict[str, list[float]] = {name: [] for name in names}
    others: dict[str, list[float]] = {name: [] for name in names}
    pictures: dict[str, Picture] = {}
    for round_index in range(rounds):
        for name in names:
            started = time.perf_counter()
            serve, close = load(name, job)
            loading[name].append(time.perf_counter() - started)
            watched, started = OtherLoad(), time.perf_counter()
            pictures[name] = serve()
            seconds[name].append(time.perf_counter() - started)
            others[name].append(round(watched.percent(), 1))
            close()
            del serve, close
            gc.collect()
            print(f"round {round_index + 1}, {name}: {seconds[name][-1]:.1f} s", flush=True)
    return {
        "side": job.side,
        "steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "threads": job.threads,
        "seconds": seconds,
        "load_seconds": loading,
        "other_load_percent": others,
        "psnr_db": {
            name: round(psnr(picture, pictures[REFERENCE]), 1)
            for name, picture in pictures.items()
            if REFERENCE in pictures
        },
    }


def main() -> int:
    """Measure and print; a record is written where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--native", required=True, help="bundle of target native")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    names = options.sides.split(",")
    for name in names:
        if name not in SIDES:
            parser.error(f"--sides: {name!r} is not accepted; expected some of {', '.join(SIDES)}")
    job = Job(
        options.checkpoint, options.native, options.side, options.steps, options.guidance_scale,
        options.threads,
    )  # fmt: skip
    figures = measure(job, names, options.rounds)
    figures = {"bundle": Path(options.native).name, **figures}
    record = stamped(figures, "diffusers", "stable-diffusion-cpp-python")
    print(as_markdown([record]))
    if options.record:
        append_record(record, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
