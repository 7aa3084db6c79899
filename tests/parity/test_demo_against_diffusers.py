"""The demo checkpoint: our engine in fp32 against diffusers' own pipeline, equal seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.engine import Engine

pytestmark = pytest.mark.slow

CHECKPOINT = Path(sdengine.__file__).parent / "checkpoints" / "demo"
PROMPT = "a large red circle on a blue background"
NEGATIVE = "green"
STEPS = 12
LEAST_PSNR_DB = {"fp32": 40.0, "bf16": 30.0}


@pytest.fixture(scope="module")
def diffusers_pipeline() -> Any:
    import diffusers
    import torch

    library: Any = diffusers  # its type annotations are incomplete
    pipeline = library.StableDiffusionPipeline.from_pretrained(CHECKPOINT).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with sdengine.load("demo", precision=request.param) as engine:
        yield engine


def scheduler(name: str, config: Any) -> Any:
    import diffusers

    library: Any = diffusers
    if name == "ddim":
        return library.DDIMScheduler.from_config(config)
    if name == "euler":
        return library.EulerDiscreteScheduler.from_config(config)
    if name == "euler_a":
        return library.EulerAncestralDiscreteScheduler.from_config(config)
    return library.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)


@pytest.mark.parametrize(
    ("sampler", "interval"),
    [("euler", (0.0, 0.5)), ("euler", (0.5, 1.0)), ("dpmpp_2m", (0.25, 0.75))],
)
def test_same_image_with_guidance_in_an_interval(
    diffusers_pipeline: Any, engine: Engine, sampler: str, interval: tuple[float, float]
) -> None:
    """diffusers is told by its callback at each step's end whether the next one is guided."""
    import torch

    pipeline = diffusers_pipeline
    pipeline.scheduler = scheduler(sampler, pipeline.scheduler.config)
    prompt, negative = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    both = torch.cat([negative, prompt])

    def is_guided(step: int) -> bool:
        return interval[0] <= step / STEPS < interval[1]

    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))

    def switch(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        guided = is_guided(step + 1)
        pipeline._guidance_scale = 3.0 if guided else 1.0
        given["prompt_embeds"] = both if guided else prompt
        return given

    defaults = engine.bundle.manifest.defaults
    expected = pipeline(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=STEPS,
        guidance_scale=3.0 if is_guided(0) else 1.0,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        output_type="np",
    ).images[0]
    hook.remove()
    assert rows == [2 if is_guided(step) else 1 for step in range(STEPS)]
    found = engine.generate(
        PROMPT,
        NEGATIVE,
        steps=STEPS,
        guidance_scale=3.0,
        guidance_interval=interval,
        sampler=sampler,
        schedule="karras" if sampler == "dpmpp_2m" else "normal",
        seed=7,
    ).arrays[0]
    error = np.square(found - np.round(expected * 255)).mean()
    psnr_db = 10 * np.log10(255**2 / max(error, 1e-9))
    assert psnr_db >= LEAST_PSNR_DB[engine.precision], f"{psnr_db:.1f} dB"


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpmpp_2m"])
def test_same_image(diffusers_pipeline: Any, engine: Engine, sampler: str) -> None:
    import torch

    pipeline = diffusers_pipeline
    pipeline.scheduler = scheduler(sampler, pipeline.scheduler.config)
    defaults = engine.bundle.manifest.defaults
    expected = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    found = engine.generate(
        PROMPT,
        NEGATIVE,
        steps=STEPS,
        guidance_scale=3.0,
        sampler=sampler,
        schedule="karras" if sampler == "dpmpp_2m" else "normal",
        seed=7,
    ).arrays[0]
    error = np.square(found - np.round(expected * 255)).mean()
    psnr_db = 10 * np.log10(255**2 / max(error, 1e-9))
    assert psnr_db >= LEAST_PSNR_DB[engine.precision], f"{psnr_db:.1f} dB"
