"""IP-Adapters against diffusers: projections, pictures of whole pipelines, and what requests do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.controls import calls, canny, edges, psnr_db
from support.ip_adapters import (
    HIDDEN,
    IDENTITY,
    PROJECTION,
    image_processor,
    make_ip_adapter,
    picture,
    save_encoder,
    save_ip_adapter,
)
from support.tiny_architectures import TINY
from support.tiny_checkpoints import make_tiny, save_controlnet
from tolerances import assert_close

import sdengine
from sdengine import IPAdapter
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.inputs.image_projections import read_projection
from sdengine.inputs.recorded import Recorded

pytestmark = pytest.mark.slow

PROMPT, STEPS, GUIDANCE_SCALE, SEED = "a red circle", 3, 4.0, 5
LEAST_PSNR_DB, MOST_PSNR_DB = 40.0, 30.0
Array = np.ndarray[Any, Any]
USUAL: dict[str, Any] = {
    "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "sampler": "euler", "schedule": "normal",
    "seed": SEED, "width": 128, "height": 64,
}  # fmt: skip
STYLE = {"down": {"block_1": [0.0, 1.5]}, "up": {"block_1": [0.5, 1.0, 0.0]}}


@pytest.mark.parametrize("kind", ["plain", "plus", "full", "face_id"])
@torch.no_grad()
def test_projections_are_those_of_diffusers(kind: str) -> None:
    import diffusers

    tensors = make_ip_adapter("tiny", kind)
    own = {
        name.removeprefix("image_proj."): tensor
        for name, tensor in tensors.items()
        if name.startswith("image_proj.")
    }
    unet: Any = diffusers.UNet2DConditionModel.from_config(TINY["tiny"].unet.to_dict())
    theirs = unet._convert_ip_adapter_image_proj_to_diffusers(own, low_cpu_mem_usage=False)
    ours = read_projection({name: tensor.numpy() for name, tensor in own.items()})
    shapes = {"vector": (3, PROJECTION), "states": (3, 17, HIDDEN), "given": (3, IDENTITY)}
    given = torch.randn(shapes[ours.reads], generator=torch.Generator().manual_seed(1))
    assert_close("hypernetwork", "float32", ours(given.numpy()), theirs.eval()(given))


@pytest.fixture(scope="module", params=["tiny", "tiny-sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a checkpoint, an encoder, adapters, for one family a ControlNet, and a bundle of all."""
    place, family = tmp_path_factory.mktemp("ip"), request.param
    make_tiny(family, place / "base", seed=3, dtype=torch.float32)
    save_encoder(place / "encoder")
    for kind, ending in (("plain", "safetensors"), ("plus", "bin"), ("face_id", "bin")):
        save_ip_adapter(place / f"{kind}.{ending}", make_ip_adapter(family, kind))
    controls = {} if family != "tiny" else {"canny": save_controlnet(place / "canny", family)}
    sdengine.build(
        place / "base", place / "bundle", resolutions=[64, (128, 64)], precision="fp32", batch=2,
        controls=controls, image_encoder=place / "encoder",
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with sdengine.load(folder / "bundle", precision="fp32") as engine:
        yield engine


def of(engine: Engine) -> Path:
    return Path(engine.bundle.root).parent


def plain(engine: Engine, *images: Any, **fields: Any) -> IPAdapter:
    return IPAdapter(of(engine) / "plain.safetensors", list(images) or [picture()], **fields)


def plus(engine: Engine, *images: Any, **fields: Any) -> IPAdapter:
    return IPAdapter(of(engine) / "plus.bin", list(images) or [picture()], **fields)


def made(engine: Engine, *adapters: IPAdapter, **options: Any) -> Array:
    found: Array = engine.generate(
        **{"prompt": PROMPT, **USUAL, **options}, ip_adapters=adapters
    ).arrays[0]
    return found


def pipeline_of(folder: Path, kind: str = "", **parts: Any) -> Any:
    """Return diffusers' pipeline of the checkpoint, with both adapters."""
    import diffusers
    from transformers import CLIPVisionModelWithProjection

    library: Any = diffusers  # its type annotations are incomplete
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "encoder")
    is_xl = (folder / "base/tokenizer_2").exists()
    name = f"StableDiffusion{'XL' * is_xl}{kind}Pipeline"
    pipeline = getattr(library, name).from_pretrained(
        folder / "base", image_encoder=encoder, feature_extractor=image_processor(), **parts
    )
    pipeline.load_ip_adapter(
        [str(folder)] * 2, subfolder=[""] * 2, weight_name=["plain.safetensors", "plus.bin"],
        image_encoder_folder=None,
    )  # fmt: skip
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of_diffusers(pipeline: Any, first: list[Array], second: list[Array], **options: Any) -> Array:
    images = [[Image.fromarray(one) for one in images] for images in (first, second)]
    found: Array = pipeline(
        PROMPT,
        ip_adapter_image=images,
        width=128,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **options,
    ).images[0]
    return 255 * found


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_those_of_diffusers(engine: Engine, folder: Path) -> None:
    """One adapter of each kind, both at once, several pictures of one, scales by block."""
    pipeline = pipeline_of(folder)
    one, two = picture(0), picture(1, 41, 50)
    without = made(engine)
    for scales, seconds, adapters in (
        ([0.7, 0.0], [one], [plain(engine, scale=0.7)]),
        ([0.0, 0.8], [one, two], [plus(engine, one, two, scale=0.8)]),
        (
            [STYLE, 0.5], [two],
            [plain(engine, one, blocks=STYLE), plus(engine, two, scale=0.5)],
        ),
    ):  # fmt: skip
        pipeline.set_ip_adapter_scale(scales)
        wanted = of_diffusers(pipeline, [one], seconds)
        assert psnr_db(made(engine, *adapters), wanted) >= LEAST_PSNR_DB
        assert psnr_db(without, wanted) <= MOST_PSNR_DB


only_sd1 = pytest.mark.parametrize("folder", ["tiny"], indirect=True)


@only_sd1
@pytest.mark.filterwarnings("ignore")
def test_pictures_beside_a_controlnet_are_those_of_diffusers(engine: Engine, folder: Path) -> None:
    import diffusers

    library: Any = diffusers
    network = library.ControlNetModel.from_pretrained(folder / "canny")
    pipeline = pipeline_of(folder, "ControlNet", controlnet=network)
    pipeline.set_ip_adapter_scale([0.7, 0.0])
    lines = edges(128)
    wanted = of_diffusers(pipeline, [picture()], [picture()], image=Image.fromarray(lines))
    control = canny(image=lines)
    found = made(engine, plain(engine, scale=0.7), controls=[control])
    assert psnr_db(found, wanted) >= LEAST_PSNR_DB
    for other in (made(engine, controls=[control]), made(engine, plain(engine, scale=0.7))):
        assert psnr_db(other, wanted) <= MOST_PSNR_DB


@only_sd1
def test_off_is_off_to_the_bit(engine: Engine) -> None:
    without = made(engine)
    for off in (
        plain(engine, scale=0), plain(engine, blocks={"mid": 0}),
        plain(engine, start=0.4, end=0.5),  # between two evaluations
    ):  # fmt: skip
        result = engine.generate(PROMPT, **USUAL, ip_adapters=[off])
        np.testing.assert_array_equal(result.arrays[0], without)
        assert "image_encoder" not in result.timings.stages
        told = ["none of 3 evaluations lies between 0.4 and 0.5" in w for w in result.warnings]
        assert told == ([True] if off.start else [])


@only_sd1
def test_pictures_are_looked_at_once(engine: Engine) -> None:
    engine.forget_prompts()
    counts = []
    for scale in (0.5, 1.0):
        given = [plain(engine, scale=scale), plus(engine, picture(), picture(1), scale=scale)]
        result = engine.generate(PROMPT, **USUAL, ip_adapters=given)
        counts.append((calls(result, "image_encoder"), calls(result, "ip_adapter")))
    assert counts == [(3, 2), (0, 0)]  # two pictures, and one of nothing


@only_sd1
def test_a_window_and_both_orders(engine: Engine) -> None:
    first, second = plain(engine, end=0.7), plus(engine, picture(1), start=0.3)
    both = made(engine, first, second)
    assert psnr_db(made(engine, second, first), both.astype(float)) >= 50
    for other in ((first,), (second,), (plain(engine), second), ()):
        assert not np.array_equal(made(engine, *other), both)


@only_sd1
def test_rows_of_every_kind(engine: Engine) -> None:
    """Batches, parts, intervals, long prompts, second passes and tiles: each as it is alone."""
    adapter = plus(engine, scale=0.8)
    for fields in (
        {"guidance_interval": (0.2, 0.7), "steps": 3},
        {"prompt": "a [red:green:0.5] circle"},
        {"prompt": f"{PROMPT} AND a star:0.5"},
        {"prompt": "a red circle " * 30},
        {"guidance_scale": 1.0},
        {"hires": (128, 64), "hires_upscaler": "nearest", "width": 64},
        {"tiled_diffusion": True, "tile_size": (64, 64)},
        {"image": picture(2, 128, 64), "strength": 0.7},
    ):
        given: dict[str, Any] = {
            "prompt": PROMPT, **USUAL, "steps": 2, **fields, "ip_adapters": [adapter],
        }  # fmt: skip
        batch = engine.generate(**given, batch_size=3)
        alone = engine.generate(**{**given, "seed": USUAL["seed"] + 2})
        assert np.abs(batch.arrays[2].astype(int) - alone.arrays[0]).max() <= 1
        without = engine.generate(**{**given, "ip_adapters": ()})
        assert not np.array_equal(without.arrays[0], alone.arrays[0])


@only_sd1
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="two processors cannot be had",
)
def test_rows_that_are_split_read_their_own(engine: Engine, folder: Path) -> None:
    adapters = [plus(engine, start=0.4), plain(engine, picture(1), end=0.7)]
    places = "/".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    with sdengine.load(folder / "bundle", precision="fp32", split_guidance=places) as halves:
        for fields in ({}, {"batch_size": 2}, {"guidance_interval": (0.2, 0.7), "steps": 3}):
            found, wanted = (made(one, *adapters, **fields) for one in (halves, engine))
            np.testing.assert_array_equal(found, wanted)


@only_sd1
@torch.no_grad()
def test_embeddings_in_place_of_pictures(engine: Engine, folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    encoder: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "encoder")
    pixels = image_processor()(Image.fromarray(picture()), return_tensors="pt")["pixel_values"]
    both = torch.cat([torch.zeros_like(pixels), pixels])
    states = encoder(both, output_hidden_states=True).hidden_states[-2]
    vector = encoder(pixels).image_embeds
    torch.save([states[:, None]], tmp_path / "states.ipadpt")  # as diffusers' users keep them
    np.save(tmp_path / "vector.npy", vector.numpy())
    for file, path, wanted in (
        ("plain.safetensors", "vector.npy", plain(engine)),
        ("plus.bin", "states.ipadpt", plus(engine)),
    ):
        found = made(engine, IPAdapter(folder / file, embeds=tmp_path / path))
        assert psnr_db(found, made(engine, wanted).astype(float)) >= 50
    # Without those of the unconditional half the bundle's encoder makes them.
    alone = IPAdapter(folder / "plus.bin", embeds=states[1].numpy())
    assert psnr_db(made(engine, alone), made(engine, plus(engine)).astype(float)) >= 50
    face = np.random.default_rng(0).standard_normal((1, IDENTITY)).astype(np.float32)
    first, second = (IPAdapter(folder / "face_id.bin", embeds=one) for one in (face, -face))
    assert not np.array_equal(made(engine, first), made(engine, second))


@only_sd1
def test_memory_is_freed_and_counted(engine: Engine, folder: Path) -> None:
    wanted = made(engine, plus(engine))
    with sdengine.load(folder / "bundle", precision="fp32", low_memory=True) as low:
        np.testing.assert_array_equal(made(low, plus(low)), wanted)
        assert "image_encoder" not in low._networks._loaded
        more = ("image_encoder", "unet")
        budget: Any = low.session.budget
        with_pictures, without = (budget._plan(128, 64, one) for one in (more, ()))
        assert with_pictures.weight_bytes.keys() - without.weight_bytes == {"image_encoder"}
        assert with_pictures.arena_bytes > without.arena_bytes


@only_sd1
def test_what_does_not_fit_is_refused_before_any_work(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    xl = save_ip_adapter(tmp_path / "xl.bin", make_ip_adapter("tiny-sdxl"))
    narrow = make_ip_adapter("tiny")
    narrow["image_proj.proj.weight"] = narrow["image_proj.proj.weight"][:, :20].contiguous()
    other = save_ip_adapter(tmp_path / "narrow.bin", narrow)
    full = save_ip_adapter(tmp_path / "full.bin", make_ip_adapter("tiny", "full"))
    fewer = IPAdapter(full, embeds=np.zeros((1, 16, HIDDEN), np.float32))
    record = IPAdapter(Recorded("0" * 64), picture())
    for adapter, told in (
        (
            IPAdapter(xl, picture()),
            r"'xl.bin' is for a U-Net of .*Give an adapter that was trained",
        ),
        (IPAdapter(other, picture()), r"embeddings of 20 numbers; .*encoder gives 24. Build the b"),
        (plain(engine, blocks={"up_blocks.0.attentions.7": 1}), r"ip_adapter\.blocks: .*up_blocks"),
        (fewer, r"ip_adapter\.embeds: '16 states' .*expected 17, as many as"),
        (record, r"only the record of number 1, with SHA-256 0{64}, is known. Give its file"),
    ):
        with pytest.raises(ConfigError, match=told):
            engine.generate(PROMPT, ip_adapters=[adapter])


def test_bundles_that_cannot_are_told_apart(tmp_path: Path) -> None:
    from support.tiny_bundle import make_tiny_bundle

    path = save_ip_adapter(tmp_path / "a.bin", make_ip_adapter("tiny"))
    adapter = IPAdapter(path, picture())
    bundle = make_tiny_bundle(tmp_path / "bundle")
    with (
        sdengine.load(bundle) as engine,
        pytest.raises(ConfigError, match=r"ip_adapters: 'openvino' .*--target native"),
    ):
        engine.generate("a", ip_adapters=[adapter])


@only_sd1
def test_a_picture_is_made_again_from_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("cat.png")
    Image.fromarray(picture(1)).save("dog.png")
    common = ["generate", "--bundle", str(folder / "bundle"), "--precision", "fp32"]
    file = str(folder / "plus.bin")
    first = [PROMPT, "--steps", "3", "--seed", "3", "--ip-adapter", f"{file}=cat.png:0.6,end=0.7"]
    assert main([*common, *first, "-o", "a.png"]) == 0
    assert "image encoder" in capsys.readouterr().err
    again = [*common, "--from", "a.png"]
    assert main([*again, "--ip-adapter", f"{file}=cat.png", "-o", "b.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    (recorded,) = read_metadata("a.png").request_fields()["ip_adapters"]
    assert (recorded.scale, recorded.end, recorded.is_given) == (0.6, 0.7, False)
    assert main([*again, "-o", "c.png"]) != 0
    assert "--ip-adapter FILE=PICTURE" in capsys.readouterr().err
    assert main([*again, "--ip-adapter", f"{file}=dog.png:1", "-o", "d.png", "--json"]) == 0
    told = capsys.readouterr()
    assert f"other pictures, with SHA-256 {recorded.image[0].sha256}" in told.err
    assert json.loads(told.out)["ip_adapters"][0]["scale"] == 1


@only_sd1
def test_regions_are_prompted_too(engine: Engine) -> None:
    """Parts of the picture that have prompts of their own see the adapter's picture alike."""
    given: dict[str, Any] = {
        "prompt": f"{PROMPT} AND a star", "steps": 2,
        "regions": [sdengine.Region(box=(0.5, 0, 1, 1))],
    }  # fmt: skip
    adapter = plain(engine)
    both, alone = made(engine, adapter, **given), made(engine, **given)
    assert not np.array_equal(both, alone)
    np.testing.assert_array_equal(made(engine, plain(engine, scale=0), **given), alone)
