"""Image to image of each family at a tiny size: our engine against diffusers' pipeline."""

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
STEPS, GUIDANCE_SCALE, SEED = 10, 4.0, 5
LEAST_PSNR_DB = 40.0
FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl")
# Ours and its schedule; diffusers' scheduler and what it is told.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("normal", "DDIMScheduler", {}),
    "euler": ("normal", "EulerDiscreteScheduler", {}),
    "euler_a": ("normal", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("normal", "HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("normal", "UniPCMultistepScheduler", {"use_karras_sigmas": False}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("image_to_image") / request.param
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
    pipeline = library.AutoPipelineForImage2Image.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def picture() -> np.ndarray[Any, Any]:
    """Colours that change smoothly, 128 x 64 pixels."""
    y, x = np.mgrid[0:64, 0:128]
    waves = [np.sin(x / 17 + 1), np.cos(y / 11), np.sin((x + y) / 23)]
    return np.stack([(wave * 100 + 128).astype(np.uint8) for wave in waves], axis=2)


def psnr_db(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    error = np.square(found - expected * 255).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [*((sampler, 0.75) for sampler in SAMPLERS), ("euler", 0.3), ("dpmpp_2m", 1.0)],
)
def test_same_image(
    engine: Engine, pipeline: Any, picture: np.ndarray[Any, Any], sampler: str, strength: float
) -> None:
    import diffusers
    import torch
    from PIL import Image

    schedule, scheduler, options = SAMPLERS[sampler]
    config = pipeline.scheduler.config
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(config, **options)
    expected = pipeline(
        PROMPT,
        image=Image.fromarray(picture),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    ).images[0]
    found = engine.generate(
        PROMPT,
        image=picture,
        strength=strength,
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        sampler=sampler,
        schedule=schedule,
        encode="sample",
        seed=SEED,
    ).arrays[0]
    assert expected.std() > 0.01  # a flat picture would prove nothing
    assert psnr_db(found, expected) >= LEAST_PSNR_DB


def test_same_image_in_two_passes(engine: Engine, pipeline: Any) -> None:
    import diffusers
    import torch

    config = pipeline.scheduler.config
    usual = {"use_karras_sigmas": False}  # whatever the tests before this one left there
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(config, **usual)
    library: Any = diffusers
    first = library.AutoPipelineForText2Image.from_pipe(pipeline)
    first.set_progress_bar_config(disable=True)
    shared: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": GUIDANCE_SCALE}
    latents = first(
        height=64, width=64, num_inference_steps=4,
        generator=torch.Generator().manual_seed(SEED), output_type="latent", **shared,
    ).images  # fmt: skip
    expected = pipeline(
        image=torch.nn.functional.interpolate(latents, size=(16, 16), mode="bilinear"),
        strength=0.7, num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED), output_type="np", **shared,
    ).images[0]  # fmt: skip
    found = engine.generate(
        PROMPT, width=64, height=64, steps=4, guidance_scale=GUIDANCE_SCALE, sampler="euler",
        schedule="normal", seed=SEED, hires=2, hires_steps=7,
    )  # fmt: skip
    assert found.timings.stages["unet"].calls == 4 + 7  # int(0.7 x 10) in diffusers
    assert expected.std() > 0.01  # a flat picture would prove nothing
    assert psnr_db(found.arrays[0], expected) >= LEAST_PSNR_DB
