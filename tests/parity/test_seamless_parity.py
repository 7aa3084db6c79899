"""Seamless requests: our engine against diffusers' pipelines whose convolutions pad circularly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.controls import Array, build_steered, canny, edges, make_steered, psnr_db

import sdengine
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
STEPS, GUIDANCE_SCALE, SEED = 8, 4.0, 5
LEAST_PSNR_DB = 40.0
MOST_PSNR_DB = 35.0  # of the difference that edges make, so that it is none of rounding
FAMILIES = ("tiny", "tiny-sdxl")
CASES = {
    "euler": {"sampler": "euler"},
    "of one axis": {"sampler": "euler", "seamless": "x"},
    "of the other": {"sampler": "euler", "seamless": "y"},
    "ancestral": {"sampler": "euler_a"},
    "multistep": {"sampler": "dpmpp_2m", "schedule": "karras"},
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seamless") / request.param
    place.mkdir()
    return make_steered(place, request.param, "canny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with sdengine.load(build_steered(folder, "native", "canny"), precision="fp32") as engine:
        yield engine


def pad_circularly(network: Any, axes: str) -> None:
    """Let every convolution of a network of diffusers read the other end of some axes."""
    import torch
    import torch.nn.functional as F

    def forward(conv: Any, x: Any, weight: Any, bias: Any) -> Any:
        down, across = conv.padding
        x = F.pad(x, (across, across, 0, 0), mode="circular" if "x" in axes else "constant")
        x = F.pad(x, (0, 0, down, down), mode="circular" if "y" in axes else "constant")
        return F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            if axes == "xy":  # as web UIs do
                module.padding_mode = "circular"
            else:
                module._conv_forward = forward.__get__(module)  # type: ignore[method-assign]


def expected(folder: Path, sampler: str, axes: str, control: Array | None = None) -> Array:
    import diffusers
    import torch
    from PIL import Image

    library: Any = diffusers  # its type annotations are incomplete
    place, given = folder / "checkpoint", {}
    if control is None:
        pipeline = library.DiffusionPipeline.from_pretrained(place)
    else:
        net = library.ControlNetModel.from_pretrained(folder / "canny")
        pad_circularly(net, axes)
        xl = "XL" if folder.name == "tiny-sdxl" else ""
        kind = getattr(library, f"StableDiffusion{xl}ControlNetPipeline")
        pipeline = kind.from_pretrained(place, controlnet=net)
        given = {"image": Image.fromarray(control)}
    name, options = SCHEDULERS[sampler]
    pipeline.scheduler = getattr(library, name).from_config(pipeline.scheduler.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    pad_circularly(pipeline.unet, axes)
    pad_circularly(pipeline.vae, axes)
    found: Array = pipeline(
        PROMPT,
        width=128,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **given,
    ).images[0]
    return found * 255


def made(engine: Engine, **options: Any) -> Array:
    given: dict[str, Any] = {
        "width": 128, "height": 64, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE,
        "schedule": "normal", "seed": SEED, "seamless": "xy", **options,
    }  # fmt: skip
    found: Array = engine.generate(PROMPT, **given).arrays[0]
    return found


@pytest.mark.parametrize("case", CASES)
def test_same_image(folder: Path, engine: Engine, case: str) -> None:
    options: dict[str, Any] = {"seamless": "xy", **CASES[case]}
    wanted = expected(folder, options["sampler"], options["seamless"])
    found = made(engine, **options)
    assert wanted.std() > 2.5  # a flat picture would prove nothing
    assert psnr_db(found, wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine, **{**options, "seamless": "none"}), wanted) < MOST_PSNR_DB


def test_same_image_with_a_control(folder: Path, engine: Engine) -> None:
    lit = np.roll(edges(128, 64), 20, axis=1)
    wanted = expected(folder, "euler", "xy", lit)
    found = made(engine, sampler="euler", controls=(canny(image=lit),))
    assert psnr_db(found, wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine, sampler="euler"), wanted) < MOST_PSNR_DB
