"""The whole slice without training: random checkpoint, build, bundle, images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.backends.base import Array
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

PROMPT, NEGATIVE = "a large red circle on a blue background", "green"
STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from support.tiny_checkpoints import make_tiny

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return make_tiny("tiny-sd21", folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bundles")

    def build(target: str) -> Path:
        bundle = folder / target
        if not bundle.exists():
            sdengine.build(
                checkpoint, bundle, target=target, resolutions=(64, 128), batch=2, precision="fp32"
            )
        return bundle

    return build


@pytest.fixture(scope="module")
def engines(built: Callable[[str], Path]) -> Iterator[dict[str, Engine]]:
    with (
        sdengine.load(built("openvino"), precision="fp32") as openvino,
        sdengine.load(built("torch"), precision="fp32") as torch,
    ):
        yield {"openvino": openvino, "torch": torch}


def images(engine: Engine, **options: Any) -> Array:
    result = engine.generate(PROMPT, NEGATIVE, steps=STEPS, seed=7, **options)
    return np.stack(result.arrays).astype(float)


def psnr_db(found: Array, expected: Array) -> float:
    return float(10 * np.log10(255**2 / max(np.square(found - expected).mean(), 1e-9)))


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_openvino_makes_torchs_image(engines: dict[str, Engine], sampler: str) -> None:
    options = {"sampler": sampler, "guidance_scale": 3.0, "batch_size": 2}
    found = images(engines["openvino"], **options)
    expected = images(engines["torch"], **options)
    assert psnr_db(found, expected) >= 40
    assert expected.std() > 1


@pytest.mark.parametrize("size", [(64, 64), (128, 128)])
def test_makes_diffusers_image(
    checkpoint: Path, engines: dict[str, Engine], size: tuple[int, int]
) -> None:
    import diffusers
    import torch

    library: Any = diffusers  # its type annotations are incomplete
    width, height = size
    pipeline = library.StableDiffusionPipeline.from_pretrained(checkpoint).to(torch.float32)
    pipeline.scheduler = library.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=width,
        height=height,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images
    for target, engine in engines.items():
        found = images(
            engine,
            width=width,
            height=height,
            sampler="ddim",
            schedule="normal",
            guidance_scale=3.0,
        )
        assert psnr_db(found, np.round(expected * 255)) >= 40, target


def test_named_backend_must_fit(built: Callable[[str], Path]) -> None:
    with pytest.raises(sdengine.BackendUnavailableError, match="built for torch"):
        sdengine.load(built("torch"), backend="openvino")


def test_precisions_agree(built: Callable[[str], Path], engines: dict[str, Engine]) -> None:
    expected = images(engines["openvino"])
    with sdengine.load(built("openvino"), precision="auto") as engine:
        found = images(engine)
    assert psnr_db(found, expected) >= 25  # random weights; trained ones: tests/parity
