"""Requests with ControlNets at a tiny size: our engine against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt
from support.controls import CANNY, Array, build_steered, calls, canny, make_steered, psnr_db

import sdengine
from sdengine import Control
from sdengine.engine import Engine
from sdengine.errors import OutOfMemoryError
from sdengine.pipeline import device_trajectory, trajectory

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
STEPS, GUIDANCE_SCALE, SEED = 10, 4.0, 5
LEAST_PSNR_DB = 40.0
# Of the difference that a control makes, so that it is none of rounding.
MOST_PSNR_DB = 35.0
FAMILIES = ("tiny", "tiny-sdxl")


def controls_of(folder: Path) -> tuple[str, ...]:
    return ("canny",) if folder.name == "tiny" else ("canny", "pose")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("controls") / request.param
    place.mkdir()
    return make_steered(place, request.param, *controls_of(place))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    # Exporting takes most of the time of such a test, so only one family is.
    target = "native" if folder.name == "tiny" else "torch"
    bundle = build_steered(folder, target, *controls_of(folder))
    with sdengine.load(bundle, precision="fp32") as engine:
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
    xl = "XL" if folder.name == "tiny-sdxl" else ""
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


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{}], {}),
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
    names = (controls_of(folder) * 2)[: len(ours)]
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
    assert result.timings.stages[CANNY].calls == 3  # of the 6 that run
    assert psnr_db(result.arrays[0], wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine, **fields).arrays[0], wanted) <= MOST_PSNR_DB


ALONE = pytest.mark.parametrize("folder", ["tiny"], indirect=True)
USUAL: dict[str, Any] = {"width": 64, "height": 64}


@ALONE
def test_native_networks_are_left_alone_by_what_is_off(engine: Engine) -> None:
    plain = made(engine).arrays[0]
    for off in (canny(scale=0), canny(layer_weights=[0.0] * 13)):
        result = made(engine, off)
        assert calls(result) == 0
        np.testing.assert_array_equal(result.arrays[0], plain)
    partly = made(engine, canny(end=0.2))
    assert (calls(partly), partly.timings.unet_calls) == (2, STEPS)
    assert not np.array_equal(partly.arrays[0], plain)
    np.testing.assert_array_equal(made(engine).arrays[0], plain)


@ALONE
def test_a_limit_of_memory_counts_controls(engine: Engine, folder: Path) -> None:
    bundle = folder / "native"
    with sdengine.load(bundle, precision="fp32", memory_bytes=1 << 40) as limited:
        budget: Any = limited.session.budget
        alone, steered = (
            budget._plan(128, 64, names).total_bytes(False) for names in ((), (CANNY,))
        )
    assert steered > alone
    with sdengine.load(bundle, precision="fp32", memory_bytes=(alone + steered) // 2) as limited:
        made(limited, steps=1)
        with pytest.raises(OutOfMemoryError, match="memory: 128x64 takes"):
            made(limited, canny(), steps=1)


@ALONE
@pytest.mark.parametrize("target", ["openvino", "tensorrt-rtx"])
def test_other_backends_give_the_same_pictures(
    engine: Engine, folder: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    on_gpu = target == "tensorrt-rtx"
    reasons: list[str] = []
    choose = device_trajectory.choose_device

    def chosen(*arguments: Any, **options: Any) -> Any:
        found = choose(*arguments, **options)
        reasons.append(found[1])
        return found

    monkeypatch.setattr(trajectory, "choose_device", chosen)
    more: dict[str, Any] = {"gpus": ["rtx4090"]} if on_gpu else {}
    bundle = build_steered(folder, target, "canny", resolutions=[64], **more)
    plain = made(engine, **USUAL).arrays[0]
    with sdengine.load(bundle, precision="fp32") as other:
        for controls in (
            (),
            (canny(start=0.3, end=0.7),),
            (canny(mode="control"), canny(scale=0.5, end=0.5)),
            (canny(scale=0),),
        ):
            reasons.clear()
            found = made(other, *controls, **USUAL)
            steers = any(control.scale for control in controls)
            told = "controls run between its steps" if steers else ""
            assert not on_gpu or all(
                reason.startswith(told) and bool(reason) == steers for reason in reasons
            )
            wanted = made(engine, *controls, **USUAL)
            assert calls(found) == calls(wanted)
            assert psnr_db(found.arrays[0], wanted.arrays[0]) >= 60
            assert (psnr_db(found.arrays[0], plain) <= MOST_PSNR_DB) == steers
