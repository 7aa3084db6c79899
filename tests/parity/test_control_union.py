"""Union ControlNets against diffusers': module, files, and what targets make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny_checkpoints import make_tiny, save_union
from tolerances import assert_close

import sdengine
from sdengine import Control, preprocess
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.engine import Engine
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.controlnet_union import ControlNetUnionConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("union")
    return folder, save_union(folder)


def inputs(kind: int, images: int = 1, kinds: int = 6) -> dict[str, torch.Tensor]:
    """What guidance gives: two rows of one image, whose texts differ."""
    g = torch.Generator().manual_seed(3)
    one = torch.randn(images, 4, 8, 16, generator=g).repeat(2, 1, 1, 1)
    picture = torch.rand(images, 3, 64, 128, generator=g).repeat(2, 1, 1, 1)
    rows = 2 * images
    return {
        "sample": one,
        "timestep": torch.full((rows,), 501.0),
        "encoder_hidden_states": torch.randn(rows, 77, 64, generator=g),
        "text_embeds": torch.randn(rows, 24, generator=g),
        "time_ids": torch.tensor([[64.0, 128, 0, 8, 64, 128]]).repeat(rows, 1),
        "controlnet_cond": picture,
        "control_type": torch.eye(kinds)[kind].repeat(rows, 1),
    }


def of_diffusers(theirs: Any, made: dict[str, torch.Tensor], kind: int) -> list[torch.Tensor]:
    added = {name: made[name] for name in ("text_embeds", "time_ids")}
    down, middle = theirs(
        made["sample"],
        made["timestep"],
        made["encoder_hidden_states"],
        [made["controlnet_cond"]],
        made["control_type"],
        [kind],
        added_cond_kwargs=added,
        return_dict=False,
    )
    return [*down, middle]


@pytest.mark.parametrize("kind", [0, 5])
@torch.no_grad()
def test_residuals_are_the_same(saved: tuple[Path, Any], kind: int) -> None:
    folder, theirs = saved
    ours = read_controlnet(folder).load("controlnet")
    made = inputs(kind)
    down, middle = ours(**made)
    expected = of_diffusers(theirs, made, kind)
    for found, wanted in zip([*down, middle], expected, strict=True):
        assert wanted.abs().max() > 0
        assert_close("controlnet", "float32", found, wanted)
    other, _ = ours(**{**made, "control_type": torch.eye(6)[kind - 1].repeat(2, 1)})
    assert not torch.allclose(other[0], down[0])


@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_of_its_batch(saved: tuple[Path, Any]) -> None:
    """Where diffusers attends over the batch, and its images change each other."""
    folder, theirs = saved
    ours = read_controlnet(folder).load("controlnet")
    made = inputs(2, images=2)
    alone = {name: tensor[::2] for name, tensor in made.items()}
    _, both = ours(**made)
    _, first = ours(**alone)
    assert_close("controlnet", "float32", both[::2], first)
    assert_close("controlnet", "float32", first, of_diffusers(theirs, alone, 2)[-1])
    mixed = of_diffusers(theirs, made, 2)[-1][::2]
    assert not torch.allclose(mixed, first, rtol=1e-4, atol=1e-6)


def test_the_same_from_a_single_file(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = saved
    save_file(theirs.state_dict(), tmp_path / "union.safetensors")
    base = load_checkpoint(make_tiny("tiny-sdxl", tmp_path / "base"))
    found = read_control_file(tmp_path / "union.safetensors", base)
    expected = read_controlnet(folder)
    config = found.control_config
    assert isinstance(config, ControlNetUnionConfig) and config.num_trans_layer == 2
    state = found.load("controlnet").state_dict()
    for name, tensor in expected.load("controlnet").state_dict().items():
        assert torch.equal(state[name], tensor)
    made = inputs(1)
    with torch.no_grad():
        first, second = (one.load("controlnet")(**made)[1] for one in (found, expected))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_trans_channel": 32}, "num_trans_channel: 32 .* the first of block_out_channels, 16"),
        ({"num_trans_head": 3}, "num_trans_head: 3"),
        ({"num_control_type": 0}, "num_control_type: 0"),
        ({"addition_time_embed_dim": None, "addition_embed_type": None}, "addition_time_embed_dim"),
        ({"_class_name": ["ControlNetUnionModel"]}, "is not a ControlNetModel or ControlNetUnion"),
    ],
)
def test_configurations_of_no_network_are_refused(
    saved: tuple[Path, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    content = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(CheckpointError, match=said):
        read_controlnet(tmp_path)


PROMPT, STEPS, GUIDANCE_SCALE, SEED = "a red circle", 6, 4.0, 5
LEAST_PSNR_DB = 40.0
# Of the difference that the control makes, so that it is none of rounding.
MOST_PSNR_DB = 35.0


def psnr_db(found: Any, wanted: Any) -> float:
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture(scope="module")
def engine(saved: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("built")
    make_tiny("tiny-sdxl", folder / "base", seed=3, dtype=torch.float32)
    sdengine.build(
        folder / "base",
        folder / "bundle",
        target="torch",
        resolutions=[(128, 64)],
        precision="fp32",
        controls={"union": saved[0]},
    )
    with sdengine.load(folder / "bundle", backend="torch", precision="fp32") as engine:
        yield engine


def picture() -> Any:
    y, x = np.mgrid[0:64, 0:128]
    waves = [np.sin(x / (9 + i)) * np.cos(y / (5 + i)) for i in range(3)]
    return np.stack([(wave > 0.3).astype(np.uint8) * 255 for wave in waves], axis=2)


def made(engine: Engine, *controls: Any, **options: Any) -> Any:
    given: dict[str, Any] = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "sampler": "euler",
        "schedule": "normal",
        "seed": SEED,
        **options,
    }
    return engine.generate(PROMPT, width=128, height=64, controls=controls, **given)


def test_the_image_is_that_of_diffusers_pipeline(engine: Engine, saved: tuple[Path, Any]) -> None:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    base = Path(engine.bundle.root).parent / "base"
    pipeline = library.StableDiffusionXLControlNetUnionPipeline.from_pretrained(
        base, controlnet=saved[1]
    )
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    wanted = (
        255
        * pipeline(
            PROMPT,
            control_image=[Image.fromarray(picture())],
            control_mode=[3],
            controlnet_conditioning_scale=0.7,
            control_guidance_end=0.8,
            height=64,
            width=128,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        ).images[0]
    )
    control = Control("union", picture(), control_type="canny", scale=0.7, end=0.8)
    assert psnr_db(made(engine, control).arrays[0], wanted) >= LEAST_PSNR_DB
    other = Control("union", picture(), control_type="depth", scale=0.7, end=0.8)
    assert psnr_db(made(engine, other).arrays[0], wanted) < LEAST_PSNR_DB
    assert psnr_db(made(engine).arrays[0], wanted) <= MOST_PSNR_DB


def test_two_pictures_are_two_runs_as_with_diffusers(
    engine: Engine, saved: tuple[Path, Any]
) -> None:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    base = Path(engine.bundle.root).parent / "base"
    pipeline = library.StableDiffusionXLControlNetUnionPipeline.from_pretrained(
        base, controlnet=[saved[1], saved[1]]
    )
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures = picture(), np.ascontiguousarray(picture()[:, ::-1])
    wanted = (
        255
        * pipeline(
            PROMPT,
            control_image=[Image.fromarray(one) for one in pictures],
            control_mode=[3, 1],
            controlnet_conditioning_scale=[0.7, 0.4],
            height=64,
            width=128,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        ).images[0]
    )
    first, second = (
        Control("union", one, control_type=kind, scale=scale)
        for one, kind, scale in zip(pictures, ("canny", "depth"), (0.7, 0.4), strict=True)
    )
    assert psnr_db(made(engine, first, second).arrays[0], wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine, first).arrays[0], wanted) < LEAST_PSNR_DB


def test_several_pictures_in_one_control_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"control.image: '2 of them'.*a control of its own"):
        Control("union", [picture(), picture()], control_type="canny")
    with pytest.raises(ConfigError, match=r"control.control_type: '2 of them'.*control of its own"):
        Control("union", picture(), control_type=("canny", "depth"))  # type: ignore[arg-type]


def test_the_kind_is_needed_and_must_be_known(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"control_type is missing; .*openpose, depth, soft_edge"):
        made(engine, Control("union", picture()))
    with pytest.raises(ConfigError, match=r"control_type: 'tile' .*one of .*segmentation"):
        made(engine, Control("union", picture(), control_type="tile"))
    with pytest.raises(ConfigError, match=r"control.control_type: 'hed'"):
        Control("union", picture(), control_type="hed")
    engine.warm_up([(128, 64)], controls=["union"])


def test_a_preprocessed_picture_steers_as_its_hint_does(engine: Engine) -> None:
    fields: dict[str, Any] = {"network": "union", "control_type": "canny", "scale": 2.0}
    options = {"low": 50, "high": 300}
    found = made(
        engine,
        {**fields, "image": picture(), "preprocess": "canny", "preprocess_options": options},
        steps=2,
    )
    hint = preprocess(picture(), "canny", **options)
    same = made(engine, {**fields, "image": hint}, steps=2)
    np.testing.assert_array_equal(found.arrays[0], same.arrays[0])
    other = made(engine, {**fields, "image": picture()}, steps=2)
    assert not np.array_equal(found.arrays[0], other.arrays[0])
