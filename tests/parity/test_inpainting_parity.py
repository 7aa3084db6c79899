"""Inpainting and depth to image at a tiny size: our engine against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_architectures import TINY_SD15, TINY_SDXL

import sdengine
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
STEPS, GUIDANCE_SCALE, SEED = 10, 4.0, 5
LEAST_PSNR_DB = 40.0
MODELS = {
    "sd": TINY_SD15,
    "sdxl": TINY_SDXL,
    "sd-inpainting": replace(TINY_SD15, unet=replace(TINY_SD15.unet, in_channels=9)),
    "sdxl-inpainting": replace(TINY_SDXL, unet=replace(TINY_SDXL.unet, in_channels=9)),
    "sd-depth": replace(TINY_SD15, unet=replace(TINY_SD15.unet, in_channels=5)),
}
SAMPLERS = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inpainting")


def checkpoint(place: Path, model: str) -> Path:
    import torch

    folder = place / model
    if not folder.exists():
        make_synthetic(MODELS[model], folder, seed=3, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def engines(place: Path) -> Iterator[dict[str, Engine]]:
    made: dict[str, Engine] = {}
    yield made
    for engine in made.values():
        engine.close()


def engine_of(engines: dict[str, Engine], place: Path, model: str) -> Engine:
    if model not in engines:
        bundle = place / f"{model}-bundle"
        sdengine.build(checkpoint(place, model), bundle, resolutions=[64], precision="fp32")
        engines[model] = sdengine.load(bundle, precision="fp32")
    return engines[model]


def picture() -> Pixels:
    """Colours that change smoothly, 64 x 64 pixels."""
    y, x = np.mgrid[0:64, 0:64]
    waves = [np.sin(x / 17 + 1), np.cos(y / 11), np.sin((x + y) / 23)]
    return np.stack([(wave * 100 + 128).astype(np.uint8) for wave in waves], axis=2)


def mask() -> Pixels:
    """What may change, in whole latent cells."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 8:48] = 255
    return pixels


def psnr_db(found: NDArray[Any], expected: NDArray[Any]) -> float:
    error = np.square(found - expected * 255).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def diffusers_picture(pipeline: Any, scheduler: str, **options: Any) -> NDArray[Any]:
    import diffusers
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    found: NDArray[Any] = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **options,
    ).images[0]
    assert found.std() > 0.01  # a flat picture would prove nothing
    return found


def ours(engine: Engine, sampler: str, **options: Any) -> Pixels:
    fields: dict[str, Any] = {
        "image": picture(), "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "sampler": sampler,
        "schedule": "normal", "encode": "sample", "seed": SEED, **options,
    }  # fmt: skip
    return engine.generate(PROMPT, **fields).arrays[0]


@pytest.mark.parametrize(
    ("model", "sampler", "strength"),
    [
        ("sd", "ddim", 0.5), ("sd", "euler", 1.0), ("sdxl", "euler", 1.0),
        ("sd-inpainting", "ddim", 0.5), ("sd-inpainting", "euler", 1.0),
        ("sdxl-inpainting", "ddim", 0.5),
    ],
)  # fmt: skip
def test_inpainting(
    engines: dict[str, Engine], place: Path, model: str, sampler: str, strength: float
) -> None:
    import diffusers
    from PIL import Image

    kind = f"StableDiffusion{'XL' if 'xl' in model else ''}InpaintPipeline"
    pipeline = getattr(diffusers, kind).from_pretrained(checkpoint(place, model))
    expected = diffusers_picture(
        pipeline,
        SAMPLERS[sampler],
        image=Image.fromarray(picture()),
        mask_image=Image.fromarray(mask()),
        strength=strength,
        width=64,
        height=64,
    )
    found = ours(
        engine_of(engines, place, model),
        sampler,
        mask=mask(),
        mask_blur=0,
        strength=strength,
        mask_blend="none" if "inpainting" in model else "latents",
    )
    free = mask() > 0
    assert psnr_db(found[free], expected[free]) >= LEAST_PSNR_DB
    np.testing.assert_array_equal(found[~free], picture()[~free])


@pytest.mark.parametrize("model", ["sd", "sd-inpainting"])
def test_outpainting_is_inpainting_of_the_canvas(
    engines: dict[str, Engine], place: Path, model: str
) -> None:
    own, kept = picture()[:48, :40], np.s_[:48, 24:]
    grey = np.full((64, 64, 3), 128, np.uint8)
    grey[kept] = own
    hole = np.full((64, 64), 255, np.uint8)
    hole[kept] = 0
    engine = engine_of(engines, place, model)
    fields: dict[str, Any] = {"strength": 1.0, "encode": "mean"}
    by_hand = ours(engine, "ddim", image=grey, mask=hole, mask_blur=0, **fields)
    found = ours(
        engine, "ddim", image=own, outpaint={"left": 24, "bottom": 16}, outpaint_overlap=0,
        **fields,
    )  # fmt: skip
    np.testing.assert_array_equal(found[kept], own)
    # What fills the hole is nothing to an inpainting model; others see some of it in the kept part.
    near = psnr_db(found, by_hand / 255)
    assert (near == pytest.approx(psnr_db(own, own / 255))) == (model == "sd-inpainting")
    assert near > 20 and found[:, :24].std() > 1


@pytest.mark.parametrize("model", ["sd-inpainting", "sd-depth"])
def test_both_passes_read_what_stands_behind_the_latents(
    engines: dict[str, Engine], place: Path, model: str
) -> None:
    engine = engine_of(engines, place, model)
    ramp = np.add.outer(np.arange(48.0), np.arange(80.0)).astype(np.float32)
    fields: dict[str, Any] = {
        "steps": 3, "sampler": "euler", "schedule": "normal", "seed": SEED,
        **({"depth": ramp} if "depth" in model else {}),
    }  # fmt: skip
    small: dict[str, Any] = {"width": 64, "height": 64}
    first = engine.generate(PROMPT, **small, **fields).arrays[0]
    found = engine.generate(PROMPT, hires=2, hires_upscaler="nearest", **small, **fields).arrays[0]
    second = engine.generate(
        PROMPT, image=first.repeat(2, axis=0).repeat(2, axis=1), strength=0.7,
        strength_rule="exact", **fields,
    ).arrays[0]  # fmt: skip
    np.testing.assert_array_equal(found, second)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_depth_to_image(engines: dict[str, Engine], place: Path, sampler: str) -> None:
    import diffusers
    import torch
    from PIL import Image

    library: Any = diffusers
    parts = library.StableDiffusionPipeline.from_pretrained(checkpoint(place, "sd-depth"))
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipeline = library.StableDiffusionDepth2ImgPipeline(
        **{name: getattr(parts, name) for name in names},
        depth_estimator=None,
        feature_extractor=None,
    )
    depth = np.add.outer(np.arange(48.0), np.arange(80.0) ** 1.5).astype(np.float32)
    expected = diffusers_picture(
        pipeline,
        SAMPLERS[sampler],
        image=Image.fromarray(picture()),
        depth_map=torch.from_numpy(depth)[None],
        strength=0.8,
    )
    engine = engine_of(engines, place, "sd-depth")
    found = ours(engine, sampler, depth=depth, strength=0.8)
    assert psnr_db(found, expected) >= LEAST_PSNR_DB
    other = ours(engine, sampler, depth=depth, strength=0.8, depth_invert=True)
    assert psnr_db(other, expected) < LEAST_PSNR_DB
