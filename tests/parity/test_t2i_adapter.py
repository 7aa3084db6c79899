"""T2I-Adapters against diffusers': the networks, the U-Net that reads them, files, and requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from support.tiny_architectures import TINY
from support.tiny_checkpoints import ADAPTERS, make_tiny, save_adapter, save_controlnet
from tolerances import assert_close

import sdengine
from sdengine import Control
from sdengine.bundle.controls import control_network
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.checkpoints.controls import open_controls
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.engine import Engine
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.unet import UNet2DConditionModel


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_features_are_the_same(name: str, tmp_path: Path) -> None:
    theirs = save_adapter(tmp_path, name)
    ours = read_controlnet(tmp_path).load("controlnet")
    config = ADAPTERS[name]
    picture = torch.rand(2, config.in_channels, 64, 128, generator=torch.Generator().manual_seed(1))
    found = ours(F.pixel_unshuffle(picture, config.downscale_factor))
    expected = theirs(picture)
    assert [(f.shape[1], 64 // f.shape[2]) for f in found] == list(config.features)
    for one, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 0
        assert_close("controlnet", "float32", one, wanted)


@pytest.mark.parametrize("family", ["tiny", "tiny-sdxl"])
@torch.no_grad()
def test_the_unet_adds_features_where_diffusers_does(family: str) -> None:
    config = TINY[family].unet
    places = [(channels, 8 << level) for channels, level in config.feature_places]
    assert tuple(places) == ADAPTERS[family].features
    ours = UNet2DConditionModel(config).eval()
    seed_weights(ours, seed=2)
    theirs: Any = diffusers.UNet2DConditionModel.from_config(config.to_dict()).eval()
    theirs.load_state_dict(ours.state_dict())
    g = torch.Generator().manual_seed(3)
    features = [torch.randn(2, c, 64 // d, 128 // d, generator=g) for c, d in places]
    residuals = [
        torch.randn(2, c, *size, generator=g)
        for c, size in zip(config.residual_channels, sizes_of(config), strict=True)
    ]
    middle = torch.randn(2, config.block_out_channels[-1], *sizes_of(config)[-1], generator=g)
    made = {
        "sample": torch.randn(2, 4, 8, 16, generator=g),
        "timestep": torch.tensor([999.0, 20.5]),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, generator=g),
    }
    added = None
    if config.addition_embed_type is not None:
        added = {"text_embeds": torch.randn(2, 24, generator=g), "time_ids": torch.ones(2, 6)}
    for controls in (False, True):
        found = ours(
            **made,
            **(added or {}),
            adapter_features=features,
            down_residuals=residuals if controls else None,
            mid_residual=middle if controls else None,
        )
        expected = theirs(
            **made,
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=[f.clone() for f in features],
            down_block_additional_residuals=residuals if controls else None,
            mid_block_additional_residual=middle if controls else None,
        ).sample
        assert_close("unet", "float32", found, expected)
    assert not torch.allclose(found, ours(**made, **(added or {}), adapter_features=features))


def sizes_of(config: Any) -> list[tuple[int, int]]:
    """Height and width of each of the kept results, for 8 by 16 cells."""
    levels = [0]
    for level in range(len(config.block_out_channels)):
        levels += [level] * config.num_layers[level]
        if level < len(config.block_out_channels) - 1:
            levels.append(level + 1)
    return [(8 >> level, 16 >> level) for level in levels]


def original(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors under the names of the original implementation."""
    made = {}
    layers = ADAPTERS[name].num_res_blocks
    for key, tensor in state.items():
        plain = key.removeprefix("adapter.")
        if name == "tiny-light":
            plain = plain.replace(".resnets.", ".body.")
        elif found := re.fullmatch(r"body\.(\d)\.(?:resnets\.(\d)\.)?(.+)", plain):
            place = layers * int(found[1]) + int(found[2] or 0)
            plain = f"body.{place}.{found[3]}"
        made[plain] = tensor
    return made


@pytest.mark.parametrize("name", ADAPTERS)
def test_single_files(name: str, tmp_path: Path) -> None:
    theirs = save_adapter(tmp_path / "folder", name)
    expected = read_controlnet(tmp_path / "folder")
    state = theirs.state_dict()
    for number, tensors in enumerate((state, original(state, name))):
        assert (tensors is state) == (tensors.keys() == state.keys())
        path = tmp_path / f"{number}.pth"
        torch.save(tensors, path)
        found = read_control_file(path)
        assert found.control_config == expected.control_config
        assert found.part_sha256("controlnet") == expected.part_sha256("controlnet")


def test_what_fits_no_model_is_named(tmp_path: Path) -> None:
    sd1 = load_checkpoint(make_tiny("tiny", tmp_path / "tiny"))
    save_adapter(tmp_path / "xl", "tiny-sdxl")
    said = r"control a: .*xl is a T2I-Adapter for sdxl \(.*16 at 1/16; .*; tiny is sd1 \(16 at 1/8"
    with pytest.raises(CheckpointError, match=said):
        open_controls({"a": tmp_path / "xl"}, sd1)
    state = {"body.0.block1.weight": torch.zeros(4, 4, 3, 3), "conv_in.weight": torch.zeros(4, 7)}
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="reads 7 channels; expected one of 64, 192"):
        open_controls({"a": tmp_path / "odd.safetensors"}, sd1)


LIBRARY: Any = diffusers  # its type annotations are incomplete
PROMPT, STEPS, GUIDANCE_SCALE, SEED = "a red circle", 6, 4.0, 5
LEAST_PSNR_DB = 40.0
# Of the difference that the adapter makes, so that it is none of rounding.
MOST_PSNR_DB = 35.0


def psnr_db(found: Any, wanted: Any) -> float:
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture(scope="module", params=["tiny", "tiny-sdxl"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("adapters")
    make_tiny(request.param, folder / "base", seed=3, dtype=torch.float32)
    names = {"one": request.param, "two": request.param}
    if request.param == "tiny":
        names["two"] = "tiny-light"
    for number, (control, name) in enumerate(names.items()):
        save_adapter(folder / control, name, seed=41 + number)
    controls = {name: folder / name for name in names}
    if request.param == "tiny":
        controls["shuffle"] = save_controlnet(folder / "shuffle", "tiny")
        config = json.loads((folder / "shuffle/config.json").read_text())
        config["global_pool_conditions"] = True
        (folder / "shuffle/config.json").write_text(json.dumps(config))
    sdengine.build(
        folder / "base",
        folder / "bundle",
        target="torch",
        resolutions=[(128, 64)],
        precision="fp32",
        controls=controls,
    )
    with sdengine.load(folder / "bundle", backend="torch", precision="fp32") as engine:
        yield engine


def picture() -> Any:
    y, x = np.mgrid[0:64, 0:128]
    return ((np.sin(x / 9) * np.cos(y / 5) > 0.3) * 255).astype(np.uint8)[..., None].repeat(3, 2)


def made(engine: Engine, *controls: Control, **options: Any) -> Any:
    given: dict[str, Any] = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "sampler": "euler",
        "schedule": "normal",
        "seed": SEED,
        **options,
    }
    return engine.generate(PROMPT, width=128, height=64, controls=controls, **given)


def of_diffusers(engine: Engine, kind: str, **parts: Any) -> Any:
    """Return what runs a pipeline of diffusers on the engine's checkpoint."""
    base = Path(engine.bundle.root).parent / "base"
    pipeline = getattr(LIBRARY, kind).from_pretrained(base, **parts)
    pipeline.scheduler = LIBRARY.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def run(**options: Any) -> Any:
        found = pipeline(
            PROMPT,
            image=Image.fromarray(picture()),
            height=64,
            width=128,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
            **options,
        )
        return 255 * found.images[0]

    return run


@pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning")
def test_the_image_is_that_of_diffusers_pipeline(engine: Engine) -> None:
    library: Any = diffusers  # its type annotations are incomplete
    folder = Path(engine.bundle.root).parent
    is_xl = engine.bundle.manifest.architecture.unet.size_conditioning != "none"
    pipeline = getattr(library, f"StableDiffusion{'XL' * is_xl}AdapterPipeline").from_pretrained(
        folder / "base", adapter=library.T2IAdapter.from_pretrained(folder / "one")
    )
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    wanted = (
        255
        * pipeline(
            PROMPT,
            image=Image.fromarray(picture()),
            adapter_conditioning_scale=0.8,
            **({"adapter_conditioning_factor": 0.5} if is_xl else {}),
            height=64,
            width=128,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        ).images[0]
    )
    result = made(engine, Control("one", picture(), scale=0.8, end=0.5 if is_xl else 1.0))
    assert result.timings.stages[control_network("one")].calls == (3 if is_xl else STEPS)
    assert psnr_db(result.arrays[0], wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine).arrays[0], wanted) <= MOST_PSNR_DB


def test_adapters_add_up_and_run_once_a_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    module = type(engine._pipeline._networks).get

    def counted(self: Any, network: str, *args: Any, **options: Any) -> Any:
        found = module(self, network, *args, **options)
        if network.startswith("control_"):
            run = found.run

            def counting(given: Any) -> Any:
                calls.append(1)
                return run(given)

            monkeypatch.setattr(found, "run", counting)
        return found

    monkeypatch.setattr(type(engine._pipeline._networks), "get", counted)
    both = made(engine, Control("one", picture()), Control("two", picture(), start=0.5))
    assert sum(calls) == 2
    first = made(engine, Control("one", picture()))
    halves = [Control("one", picture(), scale=0.5), Control("one", picture(), scale=0.5)]
    assert not np.array_equal(both.arrays[0], first.arrays[0])
    assert psnr_db(made(engine, *halves).arrays[0], first.arrays[0].astype(float)) >= 50
    soft = made(engine, Control("one", picture(), mode="prompt"))
    same = made(engine, Control("one", picture(), layer_weights=(0.25, 0.62, 0.825, 1.0)))
    np.testing.assert_array_equal(soft.arrays[0], same.arrays[0])
    with pytest.raises(ConfigError, match=r"control.mode: 'guess' .*for a T2I-Adapter"):
        made(engine, Control("one", picture(), mode="guess"))


@pytest.mark.parametrize("engine", ["tiny"], indirect=True)
def test_residuals_that_count_by_their_means(engine: Engine) -> None:
    """The shuffle model, alone and where an adapter steers the first evaluations instead."""
    folder = Path(engine.bundle.root).parent
    network = LIBRARY.ControlNetModel.from_pretrained(folder / "shuffle")
    assert network.config.global_pool_conditions
    run = of_diffusers(engine, "StableDiffusionControlNetPipeline", controlnet=network)
    wanted = run(controlnet_conditioning_scale=0.8)
    control = Control("shuffle", picture(), scale=0.8)
    assert psnr_db(made(engine, control).arrays[0], wanted) >= LEAST_PSNR_DB
    assert psnr_db(made(engine).arrays[0], wanted) <= MOST_PSNR_DB
    late, early = Control("shuffle", picture(), start=0.5), Control("one", picture(), end=0.5)
    found = made(engine, late, early).arrays[0]
    np.testing.assert_array_equal(found, made(engine, early, late).arrays[0])
    alone = [made(engine, one).arrays[0] for one in (late, early)]
    assert not any(np.array_equal(found, one) for one in alone)
