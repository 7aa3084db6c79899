"""The harness: equal inputs to both sides, errors first, then interleaved timing."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import sdengine
from sdengine.benchmarks.cases import Case, prepare
from sdengine.errors import DeviceError, SdengineError

STAGES = ("text_encoder", "unet_step", "vae_decoder", "outside", "end_to_end")
# Beyond these, two sides do not compute the same: a ratio of their times would mean nothing.
# Relative RMS of the final latents against eager fp32.
MAX_ERROR = {"fp32": 1e-2, "bf16": 0.5}
_PROMPT = "a benchmark of a picture"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Statistics:
    """Summarise repeated measurements of one figure."""

    median: float
    p10: float
    p90: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        """Summarise at least one value."""
        low, high = np.percentile(values, [10, 90])
        return cls(statistics.median(values), float(low), float(high), len(values))


@dataclass(frozen=True)
class Output:
    """Hold what one request computed."""

    latents: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]


def relative_rms(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the root mean square error relative to that of the expected values."""
    difference = actual.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


def psnr(actual: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of 8-bit images in dB; 100 for equal ones."""
    squared = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 100.0 if squared == 0 else float(10 * np.log10(255**2 / squared))


def run(case: Case, cache: Path, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Measure a case and return its figures.

    Both sides run the same request: same latents, embeddings, sampler program and seed. Errors are
    those of the final latents and of the image, against the eager backend in fp32.

    Raises:
        DeviceError: a side's error is so large that timing it would mean nothing.
    """
    progress("preparing bundles")
    ours_path, eager_path = prepare(case, cache)
    memory = {}
    for name, path, backend, precision in (
        ("ours", ours_path, "openvino", case.precision),
        ("baseline", eager_path, "torch", case.baseline_precision),
    ):
        progress(f"measuring memory of {name} alone")
        memory[name] = _alone(case, path, backend, precision)
    with (
        sdengine.load(ours_path, "openvino", case.precision, case.threads) as ours,
        sdengine.load(eager_path, "torch", case.baseline_precision, case.threads) as baseline,
    ):
        progress("verifying outputs")
        errors = _verify(case, ours, baseline, eager_path)
        samples: dict[str, list[dict[str, float]]] = {"ours": [], "baseline": []}
        for i in range(case.runs):
            for name, engine in (("ours", ours), ("baseline", baseline)):
                progress(f"run {i + 1} of {case.runs}: {name}")
                samples[name].append(_timed(engine, case))
        backends = {
            "ours": f"{ours.backend.name} {ours.precision}",
            "baseline": f"{baseline.backend.name} eager {baseline.precision}",
        }
    stages = {
        stage: {
            **{
                name: vars(Statistics.of([r[stage] for r in rows]))
                for name, rows in samples.items()
            },
            # Pair by pair: a drift of the machine's speed hits both halves of a pair.
            "ratio": statistics.median(
                b[stage] / max(a[stage], 1e-9)
                for a, b in zip(samples["ours"], samples["baseline"], strict=True)
            ),
        }
        for stage in STAGES
    }
    return {"backends": backends, "errors": errors, "stages_ms": stages, "alone": memory}


def _request(case: Case) -> dict[str, Any]:
    return {
        "width": case.resolution,
        "height": case.resolution,
        "steps": case.steps,
        "guidance_scale": case.guidance_scale,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "seed": 0,
    }


def _output(engine: sdengine.Engine, case: Case) -> Output:
    step = None
    for step in engine.steps(_PROMPT, **_request(case)):
        latents = step.latents.copy()
    assert step is not None and step.result is not None
    return Output(latents, step.result.arrays[0])


def _timed(engine: sdengine.Engine, case: Case) -> dict[str, float]:
    timings = engine.generate(_PROMPT, **_request(case)).timings
    return {
        "text_encoder": timings.text_encoder_ms,
        "unet_step": timings.unet_ms / timings.unet_calls,
        "vae_decoder": timings.vae_decoder_ms,
        "outside": timings.other_ms,
        "end_to_end": timings.total_ms,
    }


def _verify(
    case: Case, ours: sdengine.Engine, baseline: sdengine.Engine, eager_path: Path
) -> dict[str, dict[str, float]]:
    outputs = {"ours": _output(ours, case), "baseline": _output(baseline, case)}
    if baseline.precision == "fp32":
        reference = outputs["baseline"]
    else:
        with sdengine.load(eager_path, "torch", "fp32", case.threads) as engine:
            reference = _output(engine, case)
    errors = {}
    for name, engine in (("ours", ours), ("baseline", baseline)):
        error = relative_rms(outputs[name].latents, reference.latents)
        if not error <= MAX_ERROR[engine.precision]:
            raise DeviceError(
                f"{name} ({engine.backend.name} {engine.precision}) differs from eager fp32 by "
                f"{error:.3g} relative RMS, more than {MAX_ERROR[engine.precision]}: not timed"
            )
        errors[name] = {
            "latents_relative_rms": error,
            "image_psnr_db": psnr(outputs[name].image, reference.image),
        }
    return errors


def _alone(case: Case, path: Path, backend: str, precision: str) -> dict[str, float]:
    arguments = [path, backend, precision, case.threads or 0, case.resolution]
    command = [sys.executable, "-m", "sdengine.benchmarks.memory", *map(str, arguments)]
    command += [str(min(case.steps, 2)), str(case.guidance_scale)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SdengineError(f"measuring {backend} alone failed: {last}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
