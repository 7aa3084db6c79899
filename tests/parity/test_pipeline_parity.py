"""The whole pipeline of each family at a tiny size: our engine against diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
STEPS, GUIDANCE_SCALE, SEED = 8, 4.0, 5
LEAST_PSNR_DB = 40.0
FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl")
# Ours and its schedule; diffusers' scheduler and what it is told.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("normal", "DDIMScheduler", {}),
    "euler": ("normal", "EulerDiscreteScheduler", {}),
    "euler_a": ("normal", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("normal", "HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("pipeline") / request.param
    return make_tiny(request.param, folder, seed=3, dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    bundle = checkpoint.parent / "bundle"
    sdengine.build(checkpoint, bundle, resolutions=[64, (128, 64)], precision="fp32")
    with sdengine.load(bundle, precision="fp32") as engine:
        yield engine


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    pipeline = library.DiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def psnr_db(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.square(found - expected * 255).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_image(engine: Engine, pipeline: Any, sampler: str) -> None:
    import diffusers
    import torch

    schedule, scheduler, options = SAMPLERS[sampler]
    config = pipeline.scheduler.config
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(config, **options)
    expected = pipeline(
        PROMPT,
        width=128,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    ).images[0]
    found = engine.generate(
        PROMPT,
        width=128,
        height=64,
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        sampler=sampler,
        schedule=schedule,
        seed=SEED,
    ).arrays[0]
    assert expected.std() > 0.01  # a flat picture would prove nothing
    assert psnr_db(found, expected) >= LEAST_PSNR_DB
