"""Steps steered by a ControlNet, against diffusers and OpenVINO, and what one costs that is off.

    python benchmarks/controls.py --folder /tmp/controls --record benchmarks/results/controls.jsonl

A checkpoint and a ControlNet with seeded weights are written into the folder, and bundles of them
built, unless they are there. All sides start from the same noise and take the same noise levels.
Each is loaded, its pictures compared with diffusers' in fp32, timed and dropped before the next is
loaded, round after round. A step's time is that between the ends of two steps of a request.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sdengine
from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.measures import OtherLoad, Spread, psnr
from sdengine.benchmarks.records import append_record, check_writable, stamped
from sdengine.benchmarks.seeded_controlnets import Picture, edges, write_controlnet
from sdengine.benchmarks.tiny import TINY_SD15, TINY_SDXL
from sdengine.errors import SdengineError
from sdengine.models.configs import SD15, SDXL, ModelArchitecture
from sdengine.samplers.noise import CudaGenerator

REFERENCE = "diffusers fp32"
SIDES = (
    REFERENCE, "diffusers bf16", "native fp32", "native bf16", "openvino fp32", "openvino bf16",
)  # fmt: skip
# Without a control, with one, and with one whose scale is 0.
KINDS = ("plain", "steered", "off")
ARCHITECTURES: dict[str, ModelArchitecture] = {
    "sd15": SD15, "sdxl": SDXL, "tiny": TINY_SD15, "tiny-sdxl": TINY_SDXL,
}  # fmt: skip
# Below these a side computes something else; rounding to bf16 costs most of what bf16 may.
LEAST_PSNR_DB = {"fp32": 40.0, "bf16": 20.0}
PROMPT, SEED, GUIDANCE_SCALE = "a benchmark of a picture", 0, 5.0
XL = "StableDiffusionXL"  # what diffusers' pipelines begin with
# Serves a request of a kind, and returns its picture and when each of its steps had ended.
Serve = Callable[[str, int], tuple[Picture, list[float]]]


@dataclass(frozen=True)
class Job:
    """What every side is asked for."""

    folder: Path
    family: str  # of diffusers' pipelines
    side: int
    steps: int
    threads: int


def prepare(
    folder: Path, architecture: ModelArchitecture, side: int, systems: Collection[str]
) -> None:
    """Write what is not there of the checkpoint, the ControlNet and bundles for some systems."""
    from sdengine.checkpoints.synthetic import make_synthetic

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint").exists():
        make_synthetic(architecture, folder / "checkpoint")
    control = folder / "controlnet"
    if not (control / "config.json").exists():
        write_controlnet(control, architecture.unet, seed=1)
    for target in ("native", "openvino"):
        if target in systems and not (folder / target).exists():
            sdengine.build(
                folder / "checkpoint", folder / target, target=target, resolutions=[side],
                controls={"canny": control},
            )  # fmt: skip


@contextmanager
def loaded(name: str, job: Job) -> Iterator[Serve]:
    """Load a side."""
    system, precision = name.rsplit(" ", 1)
    if system == "diffusers":
        yield _diffusers(job, precision)
        return
    with sdengine.load(job.folder / system, system, precision, threads=job.threads) as engine:

        def serve(kind: str, steps: int) -> tuple[Picture, list[float]]:
            control = sdengine.Control("canny", edges(job.side), scale=float(kind == "steered"))
            ends: list[float] = []
            result = engine.generate(
                PROMPT, steps=steps, guidance_scale=GUIDANCE_SCALE, sampler="euler",
                schedule="normal", seed=SEED, noise="cuda", width=job.side, height=job.side,
                controls=() if kind == "plain" else (control,),
                progress=lambda step: ends.append(time.perf_counter()),
            )  # fmt: skip
            return result.arrays[0], ends

        yield serve


def _diffusers(job: Job, precision: str) -> Serve:
    import diffusers
    import torch
    from PIL import Image

    torch.set_num_threads(job.threads)
    library: Any = diffusers  # its annotations are incomplete
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    net = library.ControlNetModel.from_pretrained(job.folder / "controlnet", torch_dtype=dtype)
    checker: dict[str, Any] = {} if job.family == XL else {"safety_checker": None}
    steered = getattr(library, f"{job.family}ControlNetPipeline").from_pretrained(
        job.folder / "checkpoint", controlnet=net, torch_dtype=dtype, **checker
    )
    steered.scheduler = library.EulerDiscreteScheduler.from_config(steered.scheduler.config)
    parts = {name: part for name, part in steered.components.items() if name != "controlnet"}
    unchecked = {"requires_safety_checker": False} if checker else {}
    plain = getattr(library, f"{job.family}Pipeline")(**parts, **unchecked)
    for pipeline in (plain, steered):
        pipeline.set_progress_bar_config(disable=True)
    noise = CudaGenerator(SEED).randn((1, 4, job.side // 8, job.side // 8))
    latents = torch.from_numpy(noise).to(dtype)

    def serve(kind: str, steps: int) -> tuple[Picture, list[float]]:
        ends: list[float] = []

        def ended(*told: Any) -> dict[str, Any]:
            ends.append(time.perf_counter())
            return {}

        more: dict[str, Any] = (
            {"image": Image.fromarray(edges(job.side))} if kind != "plain" else {}
        )
        if kind == "off":
            more["controlnet_conditioning_scale"] = 0.0
        pipeline = plain if kind == "plain" else steered
        picture = pipeline(
            PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, height=job.side,
            width=job.side, latents=latents.clone(), callback_on_step_end=ended, **more,
        ).images[0]  # fmt: skip
        return np.asarray(picture), ends

    return serve


def measure(job: Job, names: list[str], rounds: int) -> dict[str, Any]:
    """Return seconds a step and PSNR of every side and kind.

    Raises:
        SdengineError: a side's picture is none of diffusers'.
    """
    seconds: dict[str, dict[str, list[float]]] = {n: {kind: [] for kind in KINDS} for n in names}
    quality: dict[str, dict[str, float]] = {}
    reference: dict[str, Picture] = {}
    watched = OtherLoad()
    for number in range(rounds):
        for name in names:
            with loaded(name, job) as serve:
                found = {kind: serve(kind, job.steps)[0] for kind in KINDS}
                reference = reference or found
                quality[name] = {k: round(psnr(found[k], reference[k]), 1) for k in KINDS}
                _verify(name, quality[name])
                for kind in KINDS:
                    _, ends = serve(kind, job.steps)
                    seconds[name][kind] += np.diff(ends).tolist()
            del serve
            gc.collect()
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
    if psnr(reference["steered"], reference["plain"]) > LEAST_PSNR_DB["fp32"]:
        raise SdengineError("the control changes nothing, so that nothing was verified.")
    return {
        "side": job.side,
        "steps": job.steps,
        "threads": job.threads,
        "guidance_scale": GUIDANCE_SCALE,
        "other_load_percent": round(watched.percent(), 1),
        "seconds_a_step": {
            name: {kind: asdict(Spread.of(times)) for kind, times in by_kind.items()}
            for name, by_kind in seconds.items()
        },
        "psnr_db": quality,
    }


def _verify(name: str, found: dict[str, float]) -> None:
    least = LEAST_PSNR_DB[name.rsplit(" ", 1)[1]]
    for kind, value in found.items():
        if value < least:
            raise SdengineError(f"{name}, {kind}: {value} dB to {REFERENCE}; at least {least}.")


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return a table: seconds a step, the reference's share of it, and what a control adds."""
    steps = record["seconds_a_step"]
    rows = []
    for name, by_kind in steps.items():
        median = {kind: by_kind[kind]["median"] for kind in KINDS}
        rows.append(
            [
                name,
                *(f"{median[kind]:.3f}" for kind in KINDS),
                f"{steps[REFERENCE]['steered']['median'] / median['steered']:.2f}x",
                f"{median['steered'] / median['plain']:.2f}",
                f"{median['off'] / median['plain']:.3f}",
                f"{record['psnr_db'][name]['steered']:.1f}",
            ]
        )
    heads = ["", *(f"{kind}, s a step" for kind in KINDS), f"{REFERENCE} / it", "steered / plain",
             "off / plain", "PSNR, dB"]  # fmt: skip
    return table(heads, rows)


def main() -> int:
    """Measure and print; a record is written where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoint and bundles")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="sd15")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--record", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    names = options.sides.split(",")
    if names[0] != REFERENCE or not set(names) <= set(SIDES):
        parser.error(f"--sides: expected {REFERENCE} and then some of {', '.join(SIDES[1:])}")
    if options.record:
        check_writable(options.record)
    systems = {name.partition(" ")[0] for name in names}
    prepare(options.folder, ARCHITECTURES[options.arch], options.side, systems)
    family = XL if ARCHITECTURES[options.arch].unet.addition_embed_type else XL[:-2]
    job = Job(options.folder, family, options.side, options.steps, options.threads)
    figures = {"arch": options.arch, **measure(job, names, options.rounds)}
    record = stamped(figures, "diffusers", "openvino")
    print(as_markdown(record))
    if options.record:
        append_record(record, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
