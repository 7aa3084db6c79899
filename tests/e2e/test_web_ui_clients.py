"""Clients of the web UI's API against a running server: the ones that people have, as they are."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi  # type: ignore[import-untyped]
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from sd_parsers import ParserManager
from support.adapters import make_demo_lora
from support.checkpoint_folders import UNET
from support.served import serving

import sdengine
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.engine import Engine
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.service import Service

pytestmark = pytest.mark.slow
PROMPT = "a large red circle on a blue background"
SIZE: Any = {"width": 128, "height": 128}
PLAIN: dict[str, Any] = {"prompt": PROMPT, "seed": 7, "steps": 8, **SIZE}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo with a ControlNet for edges, and a LoRA that tags may name."""
    folder = tmp_path_factory.mktemp("files")
    sdengine.build(
        "demo",
        folder / "steered",
        resolutions=[(128, 128), (256, 256)],
        batch=4,
        controls={"edges": "demo-edges"},
    )
    (folder / "loras").mkdir()
    make_demo_lora(folder / "loras" / "Style.safetensors", 3, 0.05)
    with sdengine.load(folder / "steered", loras_folder=folder / "loras") as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[tuple[str, Service]]:
    with serving({"steered": engine}, catalogue=Catalogue()) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[Any]:
    one = webuiapi.WebUIApi(baseurl=f"{server[0]}/sdapi/v1")
    yield one
    one.session.close()


@pytest.fixture(scope="module")
def picture(engine: Engine) -> Image.Image:
    return engine.generate(PROMPT, seed=7, steps=20, **SIZE).images[0]


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB")).astype(int)


def edges_match(image: Image.Image, other: Image.Image) -> float:
    """Return how far the edges of one picture lie where those of another do, 0 to 1."""
    found, wanted = (sdengine.preprocess(one, "canny")[..., 0] > 0 for one in (image, other))
    near = np.zeros_like(wanted)
    for down in range(-2, 3):
        for right in range(-2, 3):
            near |= np.roll(wanted, (down, right), (0, 1))
    return float((found & near).sum() / max(found.sum(), 1))


def test_pictures_are_those_of_the_engine(client: Any, engine: Engine) -> None:
    found = client.txt2img(
        **PLAIN, batch_size=2, n_iter=2, sampler_name="DPM++ 2M Karras", cfg_scale=3.0
    )
    own = engine.generate(
        PROMPT,
        seed=7,
        steps=8,
        batch_size=4,
        sampler="dpmpp_2m",
        schedule="karras",
        guidance_scale=3.0,
        noise="cuda",
        **SIZE,
    )
    assert len(found.images) == 4
    for image, array in zip(found.images, own.arrays, strict=True):
        assert np.array_equal(np.asarray(image), array)
    assert found.info["all_seeds"] == [7, 8, 9, 10]
    assert found.info["infotexts"] == [own.parameters(i) for i in range(4)]
    assert found.parameters["prompt"] == PROMPT


def test_other_readers_understand_the_pictures(client: Any, tmp_path: Path) -> None:
    found = client.txt2img(**PLAIN, negative_prompt="green", sampler_name="Euler a")
    content = base64.b64decode(found.json["images"][0])
    (tmp_path / "a.png").write_bytes(content)
    read = ParserManager().parse(tmp_path / "a.png")
    assert read is not None
    assert [one.value for one in read.prompts] == [PROMPT]
    assert [one.value for one in read.negative_prompts] == ["green"]
    (sampler,) = read.samplers
    assert sampler.name == "Euler a"
    assert sampler.parameters["seed"] == "7" and sampler.parameters["steps"] == "8"
    assert found.info["infotexts"][0] == found.image.info["parameters"]
    again = client.png_info(found.image)
    assert again.info == found.info["infotexts"][0]
    assert again.parameters["Seed"] == "7" and again.parameters["Prompt"] == PROMPT


def test_a_picture_goes_on_from_a_picture(
    client: Any, engine: Engine, picture: Image.Image
) -> None:
    fields = {**PLAIN, "prompt": "a large green circle on a blue background"}
    found = client.img2img([picture], **fields, denoising_strength=0.6, sampler_name="Euler")
    own = engine.generate(
        fields["prompt"],
        image=picture,
        strength=0.6,
        strength_rule="web_ui",
        seed=7,
        steps=8,
        sampler="euler",
        schedule="normal",
        guidance_scale=7.0,
        noise="cuda",
        **SIZE,
    )
    assert np.array_equal(np.asarray(found.image), own.arrays[0])
    assert found.info["denoising_strength"] == 0.6
    assert found.parameters["init_images"] is None
    kept = client.img2img([picture], **fields, include_init_images=True)
    assert kept.parameters["init_images"] == [webuiapi.webuiapi.b64_img(picture)]


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_leaves_the_rest_as_it_is(
    client: Any, picture: Image.Image, only_masked: bool
) -> None:
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rectangle((72, 40, 120, 90), fill=255)
    found = client.img2img(
        [picture],
        mask_image=mask,
        mask_blur=2,
        inpainting_fill=1,
        inpaint_full_res=only_masked,
        inpaint_full_res_padding=16,
        denoising_strength=0.9,
        **PLAIN,
    )
    changed = (pixels(found.image) != pixels(picture)).any(axis=2)
    assert found.image.size == picture.size and changed.any()
    assert not changed[:30].any() and not changed[100:].any() and not changed[:, :60].any()
    inverted = client.img2img(
        [picture], mask_image=mask, mask_blur=0, inpainting_fill=1, inpaint_full_res=False,
        inpainting_mask_invert=1, **PLAIN,
    )  # fmt: skip
    kept = (pixels(inverted.image) == pixels(picture)).all(axis=2)
    assert kept[40:91, 72:121].all() and not kept.all()


def test_a_second_pass(client: Any) -> None:
    found = client.txt2img(
        **PLAIN,
        enable_hr=True,
        hr_scale=2,
        hr_upscaler=webuiapi.HiResUpscaler.Lanczos,
        hr_second_pass_steps=4,
        denoising_strength=0.5,
    )
    assert found.image.size == (256, 256)
    text = found.info["infotexts"][0]
    assert "Hires upscale: 2" in text and "Hires upscaler: Lanczos" in text
    assert found.info["denoising_strength"] == 0.5


def test_a_controlnet_and_then_none(client: Any, picture: Image.Image) -> None:
    assert client.has_controlnet and not client.has_adetailer and not client.has_animatediff
    (model,) = client.controlnet_model_list()
    assert "canny" in client.controlnet_module_list() and client.controlnet_version() >= 2
    fields = {**PLAIN, "prompt": "a large green circle on a white background", "seed": 1}
    unit = webuiapi.ControlNetUnit(
        image=picture, module="canny", model=model, processor_res=128, resize_mode="Just Resize"
    )
    steered = client.txt2img(**fields, controlnet_units=[unit])
    image, shown = steered.images
    assert set(np.unique(pixels(shown))) == {0, 255}
    assert edges_match(image, picture) > 0.8
    # The client has one default object for all calls, and would send the unit again.
    plain = client.txt2img(**fields)
    assert len(plain.images) == 1
    assert not np.array_equal(pixels(plain.image), pixels(image))
    assert edges_match(plain.image, picture) < edges_match(image, picture)
    from_start = client.img2img([picture], **fields, controlnet_units=[
        webuiapi.ControlNetUnit(module="canny", model=model, processor_res=128)
    ])  # fmt: skip
    assert len(from_start.images) == 2
    with pytest.raises(RuntimeError, match="openpose"):
        client.txt2img(
            **fields, controlnet_units=[webuiapi.ControlNetUnit(picture, module="openpose")]
        )


def test_detection(client: Any, picture: Image.Image) -> None:
    found = client.controlnet_detect([picture, picture], module="canny", processor_res=128)
    own = sdengine.preprocess(picture, "canny", low=64, high=64, resolution=128)
    assert len(found.images) == 2 and found.info == "Success"
    assert np.array_equal(pixels(found.images[0]), own)


def test_extras(client: Any, picture: Image.Image) -> None:
    found = client.extra_single_image(picture, upscaler_1=webuiapi.Upscaler.Lanczos)
    assert found.image.size == (256, 256)
    both = client.extra_batch_images(
        [picture, picture],
        upscaler_1="Lanczos",
        resize_mode=1,
        upscaling_resize_w=200,
        upscaling_resize_h=100,
    )
    assert [one.size for one in both.images] == [(200, 100)] * 2
    with pytest.raises(RuntimeError, match="gfpgan_visibility"):
        client.extra_single_image(picture, gfpgan_visibility=1)
    with pytest.raises(RuntimeError, match="interrogate"):
        client.interrogate(picture)


def test_eight_at_once(client: Any, engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda seed: client.txt2img(**{**PLAIN, "seed": seed}), range(20, 28))
        )
    assert [one.info["seed"] for one in found] == list(range(20, 28))
    for one in found[::4]:
        own = engine.generate(
            PROMPT,
            seed=one.info["seed"],
            steps=8,
            sampler="euler_a",
            guidance_scale=7.0,
            noise="cuda",
            **SIZE,
        )
        assert np.array_equal(np.asarray(one.image), own.arrays[0])


def test_progress_and_interrupt(client: Any) -> None:
    client.util_wait_for_ready(0.05)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            client.txt2img, prompt=PROMPT, width=256, height=256, steps=190, batch_size=4
        )
        end = time.monotonic() + 60
        while not (seen := client.get_progress())["current_image"]:
            assert time.monotonic() < end and not future.done()
            time.sleep(0.05)
        assert 0 < seen["progress"] < 1 and seen["state"]["job_count"] == 1
        assert seen["state"]["sampling_steps"] == 190
        assert Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).size[0] > 0
        assert client.interrupt() == {}
        found = future.result()
    assert found.images == [] and found.info["interrupted"] is True
    client.util_wait_for_ready(0.05)
    assert client.skip() is None


def test_settings_and_lists(client: Any) -> None:
    title = client.util_get_current_model()
    client.util_set_model("Steered")
    assert client.util_get_current_model() == title and title in client.util_get_model_names()
    assert "Euler a" in client.util_get_sampler_names()
    assert "karras" in client.util_get_scheduler_names()
    assert client.set_options({"CLIP_stop_at_last_layers": 2}) is None
    try:
        assert client.get_options()["CLIP_stop_at_last_layers"] == 2
        assert client.txt2img(**PLAIN).info["clip_skip"] == 2
    finally:
        client.set_options({"CLIP_stop_at_last_layers": 1})
    assert {one["name"] for one in client.get_upscalers()} >= {"None", "Lanczos", "Nearest"}
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_memory()["ram"]["total"] > 0
    for name in (
        *("cmd_flags", "sd_vae", "latent_upscale_modes", "loras", "hypernetworks"),
        *("face_restorers", "realesrgan_models", "prompt_styles", "schedulers"),
    ):
        assert isinstance(getattr(client, f"get_{name}")(), (list, dict))
    assert client.refresh_checkpoints() is None


def test_tags_of_loras(client: Any) -> None:
    plain = client.txt2img(**PLAIN)
    styled = client.txt2img(**{**PLAIN, "prompt": f"{PROMPT} <lora:Style:1>"})
    assert not np.array_equal(pixels(styled.image), pixels(plain.image))
    assert "Lora hashes" in styled.info["infotexts"][0] and styled.info["warnings"] == []
    unknown = client.txt2img(**{**PLAIN, "prompt": f"{PROMPT} <lora:Nope:1>"})
    assert np.array_equal(pixels(unknown.image), pixels(plain.image))
    assert any("Nope" in line for line in unknown.info["warnings"])


def test_a_text_of_parameters_makes_the_picture_again(client: Any) -> None:
    first = client.txt2img(**PLAIN, sampler_name="DPM++ 2M SDE", cfg_scale=4, negative_prompt="x")
    body = {"infotext": first.info["infotexts"][0]}
    again = client.custom_post("txt2img", body, baseurl=True)
    assert np.array_equal(pixels(again.image), pixels(first.image))


def test_a_model_of_the_catalogue_on_the_bundle_that_it_fits(
    tmp_path: Path, tiny: Path, engine: Engine
) -> None:
    folder = tmp_path / "models" / "other"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    state = load_file(folder / UNET)
    (folder / UNET).unlink()  # it is mapped
    save_file({name: (1.05 * value.float()).half() for name, value in state.items()}, folder / UNET)
    own = engine.generate(
        PROMPT, model=folder, seed=7, steps=8, sampler="euler_a", guidance_scale=7.0, noise="cuda",
        **SIZE,
    )  # fmt: skip
    catalogue = Catalogue({"model": tmp_path / "models"})
    with ExitStack() as stack:
        engines = {"tiny": stack.enter_context(sdengine.load(tiny)), "steered": engine}
        url, _ = stack.enter_context(serving(engines, catalogue=catalogue))
        client = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")
        stack.callback(client.session.close)
        assert client.util_get_current_model().startswith("tiny [")
        client.util_set_model("other")
        assert client.util_get_current_model() == "other"
        found = client.txt2img(**PLAIN)
        assert np.array_equal(np.asarray(found.image), own.arrays[0])
        assert found.info["sd_model_name"] == "other"
        plain = client.txt2img(**PLAIN, override_settings={"sd_model_checkpoint": "steered"})
        assert not np.array_equal(np.asarray(plain.image), own.arrays[0])
