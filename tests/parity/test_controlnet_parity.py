"""Requests with ControlNets at a tiny size: our engine against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_checkpoints import make_tiny, save_controlnet

import sdengine
from sdengine import Control
from sdengine.bundle.controls import control_network
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
STEPS, GUIDANCE_SCALE, SEED = 10, 4.0, 5
LEAST_PSNR_DB = 40.0
# Of the difference that a control makes, so that it is none of rounding.
MOST_PSNR_DB = 35.0
FAMILIES = ("tiny", "tiny-sdxl")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("controls")
    make_tiny(request.param, folder / "checkpoint", seed=3, dtype=torch.float32)
    for name, seed in (("canny", 31), ("pose", 32), ("untrained", None)):
        save_controlnet(folder / name, request.param, seed=seed)
    (folder / "family").write_text(request.param)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    sdengine.build(
        folder / "checkpoint",
        folder / "bundle",
        resolutions=[64, (128, 64)],
        precision="fp32",
        controls={name: folder / name for name in ("canny", "pose", "untrained")},
    )
    with sdengine.load(folder / "bundle", precision="fp32") as engine:
        yield engine


def drawn(seed: int) -> Array:
    """Bright lines on black, 128 x 64 pixels."""
    y, x = np.mgrid[0:64, 0:128]
    waves = [np.sin(x / (9 + seed + i)) * np.cos(y / (5 + i)) for i in range(3)]
    return np.stack([(wave > 0.3).astype(np.uint8) * 255 for wave in waves], axis=2)


def pipeline_of(folder: Path, *names: str, kind: str = "text") -> Any:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    nets = [library.ControlNetModel.from_pretrained(folder / name) for name in names]
    xl = "XL" if (folder / "family").read_text() == "tiny-sdxl" else ""
    image = "Img2Img" if kind == "image" else ""
    made = getattr(library, f"StableDiffusion{xl}ControlNet{image}Pipeline").from_pretrained(
        folder / "checkpoint", controlnet=nets if len(nets) > 1 else nets[0]
    )
    made.scheduler = library.EulerDiscreteScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def expected(pipeline: Any, pictures: list[Array], **options: Any) -> Array:
    import torch
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    given = images if len(images) > 1 else images[0]
    name = "control_image" if "image" in options else "image"
    found: Array = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **{"height": 64, "width": 128, **options, name: given},
    ).images[0]
    return found


def made(engine: Engine, *controls: Control, **options: Any) -> Any:
    return engine.generate(
        PROMPT,
        controls=controls,
        **{
            "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "sampler": "euler",
            "schedule": "normal", "seed": SEED, "width": 128, "height": 64, **options,
        },
    )  # fmt: skip


def psnr_db(found: Array, wanted: Array) -> float:
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{}], {}),
    "scaled": ([{"scale": 0.6}], {"controlnet_conditioning_scale": 0.6}),
    "window": (
        [{"start": 0.3, "end": 0.7}],
        {"control_guidance_start": 0.3, "control_guidance_end": 0.7},
    ),
    "guess": ([{"mode": "guess", "scale": 0.8}], {
        "guess_mode": True, "controlnet_conditioning_scale": 0.8,
    }),
    "two": (
        [{"scale": 0.7, "end": 0.8}, {"scale": 0.4, "start": 0.2}],
        {
            "controlnet_conditioning_scale": [0.7, 0.4],
            "control_guidance_start": [0.0, 0.2],
            "control_guidance_end": [0.8, 1.0],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_image(engine: Engine, folder: Path, case: str) -> None:
    ours, theirs = CASES[case]
    names = ("canny", "pose")[: len(ours)]
    pictures = [drawn(i) for i in range(len(ours))]
    wanted = 255 * expected(pipeline_of(folder, *names), pictures, **theirs)
    controls = [
        Control(name, picture, **options)
        for name, picture, options in zip(names, pictures, ours, strict=True)
    ]
    found = made(engine, *controls).arrays[0]
    assert psnr_db(found, wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine).arrays[0], wanted) <= MOST_PSNR_DB


def test_image_to_image_with_a_control(engine: Engine, folder: Path) -> None:
    from PIL import Image

    picture = np.stack([drawn(4)[..., 0], drawn(5)[..., 1], drawn(6)[..., 2]], axis=2)
    wanted = 255 * expected(
        pipeline_of(folder, "canny", kind="image"),
        [drawn(0)],
        image=Image.fromarray(picture),
        strength=0.6,
        control_guidance_end=0.5,
    )
    control = Control("canny", drawn(0), end=0.5, scale=0.8)
    fields: dict[str, Any] = {"image": picture, "strength": 0.6, "encode": "sample"}
    result = made(engine, control, **fields)
    assert result.timings.stages[control_network("canny")].calls == 3  # of the 6 that run
    assert psnr_db(result.arrays[0], wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine, **fields).arrays[0], wanted) <= MOST_PSNR_DB
