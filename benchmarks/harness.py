"""The harness: each side's memory alone, errors first, then interleaved timing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sdengine
from sdengine.benchmarks import gpu
from sdengine.benchmarks.bundles import Progress, prepare
from sdengine.benchmarks.cases import BASELINES, Case
from sdengine.benchmarks.measures import OtherLoad, Spread, median_ratio
from sdengine.benchmarks.modules import module_command
from sdengine.benchmarks.records import SIDES
from sdengine.benchmarks.verification import (
    Arrays,
    Side,
    errors_of,
    network_outputs,
    request_outputs,
    require_equal,
)
from sdengine.errors import DeviceError
from sdengine.images.timings import Timings

STAGES = ("text_encoder", "unet_step", "vae_decoder", "outside", "end_to_end")
# A runtime's idle threads spin for a while; they must not take the other side's cores.
_SETTLE_SECONDS = 0.3


def run(
    case: Case, cache: Path, progress: Progress = lambda _: None, *, rebuild: bool = False
) -> dict[str, Any]:
    """Measure a case and return its figures.

    Both sides serve the same request: same latents, token ids, sampler program and seed.

    Args:
        case: what to measure.
        cache: folder of built bundles.
        progress: told what is going on.
        rebuild: build the bundles again.

    Returns:
        By side where two are compared: `backends` (name and precision), `build`, `alone` (fresh
        process: load, first request, peak memory), `errors` (against eager torch in fp32),
        `stages_ms` (spreads and the ratio baseline/ours), `outside_percent`. `others_percent` is
        the share of the machine that other programs took while timing. On a GPU also `gpu`, what
        it is, and `kernels`, which operations our kernels computed, where the backend reports it.

    Raises:
        BackendUnavailableError: the case is a GPU's, and a side cannot run here.
        DeviceError: a side's error is so large that timing it would mean nothing.
    """
    if case.device == "cuda":
        gpu.require_backends(case.target, case.baseline)
    built = prepare(case, cache, progress, rebuild=rebuild)
    sides = {
        "ours": Side(built["ours"].path, case.target, case.precision),
        "baseline": Side(built["baseline"].path, case.baseline, case.baseline_precision),
    }
    alone = {}
    for name, side in sides.items():
        progress(f"load, first request and memory of {name} alone")
        alone[name] = _alone(side, case)
    errors = _verify_networks(case, sides, progress)
    reference = _reference_images(case, sides["baseline"], progress)
    with sides["ours"].load(case) as ours, sides["baseline"].load(case) as baseline:
        engines = {"ours": ours, "baseline": baseline}
        expected = reference or request_outputs(baseline, case)
        for name, engine in engines.items():
            progress(f"verifying the images of {name}")
            errors[name] |= errors_of(request_outputs(engine, case), expected)
            require_equal(name, _limits(case, engine.precision), errors[name])
        load = OtherLoad()
        timings = _interleave(case, engines, progress)
        others_percent = round(load.percent(), 1)
        backends = {name: _label(engine) for name, engine in engines.items()}
        on_gpu = {}
        if case.device == "cuda":
            on_gpu = {"gpu": gpu.describe(), "kernels": gpu.kernels_of(ours.session)}
    return {
        "backends": backends,
        "build": {name: built[name].report for name in SIDES},
        "alone": alone,
        "errors": errors,
        **summarise(timings, case.batch_size),
        "others_percent": others_percent,
        **on_gpu,
    }


def summarise(timings: Mapping[str, Sequence[Timings]], batch_size: int) -> dict[str, Any]:
    """Return spreads, ratios and the share of the time outside the networks.

    Args:
        timings: by side, of requests that were served in turns.
        batch_size: images of each request; what is not a network's call counts for each image.
    """
    samples = {
        name: [_stages(timing, batch_size) for timing in rows] for name, rows in timings.items()
    }
    stages: dict[str, Any] = {}
    for stage in STAGES:
        values = {name: [row[stage] for row in rows] for name, rows in samples.items()}
        stages[stage] = {name: asdict(Spread.of(values[name])) for name in SIDES}
        stages[stage]["ratio"] = median_ratio(values["baseline"], values["ours"])
    outside = {
        name: median_ratio(
            [100 * row["outside"] for row in rows], [row["end_to_end"] for row in rows]
        )
        for name, rows in samples.items()
    }
    return {"stages_ms": stages, "outside_percent": outside}


def _stages(timings: Timings, batch_size: int) -> dict[str, float]:
    """Milliseconds: of one call for networks, of one image for the rest."""
    return {
        "text_encoder": timings.text_encoder_ms / timings.text_encoder_calls,
        "unet_step": timings.unet_ms / timings.unet_calls,
        "vae_decoder": timings.vae_decoder_ms / timings.vae_decoder_calls,
        "outside": timings.other_ms / batch_size,
        "end_to_end": timings.total_ms / batch_size,
    }


def _verify_networks(
    case: Case, sides: Mapping[str, Side], progress: Progress
) -> dict[str, dict[str, float]]:
    progress("running the networks in eager fp32")
    with _exactly(case):
        expected = network_outputs(replace(sides["baseline"], precision="fp32"), case)
    text_states = expected["text_encoder"]
    errors = {}
    for name, side in sides.items():
        progress(f"verifying the networks of {name}")
        errors[name] = errors_of(network_outputs(side, case, text_states), expected)
    return errors


def _reference_images(case: Case, baseline: Side, progress: Progress) -> Arrays | None:
    """Return the request's outputs in eager fp32, or None where that is the baseline itself."""
    if baseline.precision == "fp32" and case.device == "cpu":
        return None
    progress("making the reference images in eager fp32")
    with _exactly(case), replace(baseline, precision="fp32").load(case) as engine:
        return request_outputs(engine, case)


def _interleave(
    case: Case, engines: Mapping[str, sdengine.Engine], progress: Progress
) -> dict[str, list[Timings]]:
    """Serve requests in turns; verification was the warm-up."""
    timings: dict[str, list[Timings]] = {name: [] for name in engines}
    for index in range(case.runs):
        for name, engine in engines.items():
            progress(f"run {index + 1} of {case.runs}: {name}")
            engine.forget_prompts()
            if case.device == "cuda":
                timings[name].append(gpu.timed(engine, case))
                continue
            time.sleep(_SETTLE_SECONDS)
            timings[name].append(engine.run(case.request()).timings)
    return timings


def _exactly(case: Case) -> AbstractContextManager[None]:
    """Let the reference multiply fp32 without rounding it first."""
    return gpu.exact_products() if case.device == "cuda" else contextlib.nullcontext()


def _limits(case: Case, precision: str) -> str:
    return "tf32" if (case.device, precision) == ("cuda", "fp32") else precision


def _label(engine: sdengine.Engine) -> str:
    name = engine.backend.name
    shown = "torch eager" if name in BASELINES.values() else name
    return f"{shown} {engine.precision}"


def _alone(side: Side, case: Case) -> dict[str, float]:
    task = {**asdict(side), "threads": case.threads, "request": asdict(case.request())}
    command = module_command("sdengine.benchmarks.alone", json.dumps(task))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeviceError(f"{side.backend} alone failed: {last}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
