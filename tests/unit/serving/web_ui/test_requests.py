"""Requests of the web UI's clients in the engine's words: each rule, what is refused and told."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.service import Service
from sdengine.serving.web_ui.fields import Img2Img, Txt2Img, checked
from sdengine.serving.web_ui.infotext import filled
from sdengine.serving.web_ui.requests import Asked
from sdengine.serving.web_ui.settings import DEFAULTS, checked_settings


def png(width: int = 16, height: int = 16, color: Any = (255, 0, 0)) -> str:
    """Return a picture of one colour in base64."""
    content = io.BytesIO()
    Image.new("RGB", (width, height), color).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def service(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("upscalers")
    (folder / "4x-Sharp.onnx").write_bytes(b"not read yet")
    return Service({"demo": engine}, Catalogue({"upscaler": folder}))


Ask = Any


@pytest.fixture
def ask(service: Service) -> Ask:
    """Return keywords and warnings of fields, of img2img where a picture is among them."""

    def asked(**fields: Any) -> tuple[dict[str, Any], list[str]]:
        model = Img2Img if "init_images" in fields else Txt2Img
        warnings: list[str] = []
        found = filled(checked(model, fields), warnings)
        own = checked_settings(found.override_settings, "override_settings", warnings)
        one = Asked(found, {**DEFAULTS, **own}, service, service.engine(), "", warnings)
        return one(), one.warnings

    return asked


def test_defaults_are_those_of_the_reference_but_for_the_size(ask: Ask, engine: Engine) -> None:
    keywords, warnings = ask(prompt="a red circle")
    request = engine.request(keywords.pop("prompt"), keywords.pop("negative_prompt"), **keywords)
    assert (request.steps, request.guidance_scale) == (50, 7.0)
    assert (request.sampler, request.schedule) == ("euler", "normal")
    assert (request.width, request.height) == (128, 128)  # of the bundle
    assert request.noise == "cuda"
    assert 0 <= request.seeds[0] < 2**32
    assert warnings == []


def test_null_is_a_default_and_unknown_fields_are_ignored(ask: Ask) -> None:
    plain, _ = ask(prompt="x", seed=1)
    assert ask(prompt="x", seed=1, steps=None, sampler_name=None, zzz=3)[0] == plain


@pytest.mark.parametrize(
    ("name", "scheduler", "found"),
    [
        ("DPM++ 2M Karras", "automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "uniform", ("dpmpp_2m", "normal")),
        ("DPM++ 2M Karras", "Exponential", ("dpmpp_2m", "karras")),  # the name's counts
        ("DPM++ 2M SDE", "", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", "ddim", ("euler_a", "ddim_uniform")),
        ("k_euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("euler", "karras", ("euler", "karras")),
    ],
)
def test_samplers_and_schedules(
    ask: Ask, name: str, scheduler: str, found: tuple[str, str]
) -> None:
    keywords, _ = ask(sampler_name=name, scheduler=scheduler)
    assert (keywords["sampler"], keywords["schedule"]) == found
    assert ask(sampler_index=name, scheduler=scheduler)[0]["sampler"] == found[0]


@pytest.mark.parametrize("fields", [{"sampler_name": "Nope"}, {"scheduler": "kl_optimal"}])
def test_unknown_samplers_are_not_found(ask: Ask, fields: dict[str, str]) -> None:
    with pytest.raises(HTTPError, match=next(iter(fields))) as caught:
        ask(**fields)
    assert caught.value.status == 404


def test_seeds(ask: Ask, engine: Engine) -> None:
    plain, _ = ask(seed=5, n_iter=2, batch_size=2)
    assert engine.request("x", **options(plain)).seeds == (5, 6, 7, 8)
    mixed, _ = ask(seed=5, subseed=9, subseed_strength=0.25, n_iter=2, batch_size=2)
    request = engine.request("x", **options(mixed))
    assert request.seeds == (5, 5, 5, 5)
    assert [request.only(i).variation_seed for i in range(4)] == [9, 10, 11, 12]
    assert request.variation_strength == 0.25
    assert len({ask(seed=-1)[0]["seed"] for _ in range(3)}) == 3
    sized, _ = ask(seed=5, seed_resize_from_w=64, seed_resize_from_h=32)
    assert (sized["seed_width"], sized["seed_height"]) == (64, 32)
    assert "seed_width" not in ask(seed_resize_from_w=0, seed_resize_from_h=0)[0]


def options(keywords: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keywords.items() if k not in ("prompt", "negative_prompt")}


@pytest.mark.parametrize(
    "fields", [{"batch_size": 0}, {"n_iter": 10**9}, {"batch_size": 5, "n_iter": 5}]
)
def test_too_many_pictures(ask: Ask, fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"batch_size|n_iter"):
        ask(**fields)


@pytest.mark.parametrize(
    ("sampler", "eta", "found"),
    [
        ("DDIM", 1.0, 1.0),  # what a client in wide use always sends makes DDIM stochastic
        ("DDIM", 0.0, None),
        ("DDIM", None, None),
        ("Euler a", 1.0, None),  # its own
        ("Euler a", 0.5, 0.5),
        ("Euler", 1.0, None),
    ],
)
def test_eta(ask: Ask, sampler: str, eta: float | None, found: float | None) -> None:
    keywords, warnings = ask(sampler_name=sampler, eta=eta)
    assert keywords.get("eta") == found
    assert warnings == []


def test_options_of_samplers(ask: Ask) -> None:
    keywords, warnings = ask(sampler_name="Euler", s_churn=4, s_tmin=0.1, s_tmax=0, s_noise=1)
    assert (keywords["s_churn"], keywords["s_tmin"]) == (4, 0.1)
    assert not {"s_tmax", "s_noise"} & keywords.keys() and warnings == []
    keywords, warnings = ask(sampler_name="LMS", eta=0.5, s_churn=4)
    assert not {"eta", "s_churn"} & keywords.keys()
    assert sorted(line.partition(":")[0] for line in warnings) == ["eta", "s_churn"]
    settings = {"eta_ddim": 0.3, "eta_ancestral": 0.7}
    assert ask(sampler_name="DDIM", override_settings=settings)[0]["eta"] == 0.3
    assert ask(sampler_name="Euler a", override_settings=settings)[0]["eta"] == 0.7


def test_second_pass(ask: Ask) -> None:
    assert "hires" not in ask(hr_scale=2, hr_upscaler="Nope")[0]
    keywords, _ = ask(enable_hr=True, hr_scale=1.5, sampler_name="DPM++ 2M")
    assert keywords["hires"] == 1.5
    assert keywords["hires_strength"] == 0.75
    assert keywords["hires_upscaler"] == "latent"
    assert not {"hires_sampler", "hires_schedule", "hires_prompt"} & keywords.keys()
    keywords, _ = ask(
        enable_hr=True,
        hr_resize_x=256,
        hr_resize_y=0,
        hr_upscaler="Lanczos",
        hr_second_pass_steps=7,
        denoising_strength=0.3,
        hr_prompt="more",
        hr_negative_prompt="less",
        sampler_name="Euler a",
        hr_sampler_name="DPM++ 2M",
    )
    assert keywords["hires"] == (256, 0)
    assert keywords["hires_upscaler"] == "lanczos"
    assert (keywords["hires_steps"], keywords["hires_strength"]) == (7, 0.3)
    assert (keywords["hires_prompt"], keywords["hires_negative_prompt"]) == ("more", "less")
    # "Automatic" is that of each pass's own sampler.
    assert (keywords["schedule"], keywords["hires_schedule"]) == ("normal", "karras")
    same, _ = ask(enable_hr=True, hr_sampler_name="Use same sampler", scheduler="karras")
    assert "hires_sampler" not in same and same["schedule"] == "karras"


def test_second_pass_of_older_clients(ask: Ask) -> None:
    keywords, _ = ask(
        enable_hr=True, width=256, height=192, firstphase_width=128, firstphase_height=96
    )
    assert keywords["hires"] == (256, 192)
    assert (keywords["width"], keywords["height"]) == (128, 96)
    with pytest.raises(ConfigError, match="firstphase"):
        ask(enable_hr=True, firstphase_width=128)


def test_upscalers_of_the_catalogue(ask: Ask) -> None:
    for name in ("4x-Sharp", "4x-sharp.onnx"):
        keywords, _ = ask(enable_hr=True, hr_upscaler=name)
        assert Path(keywords["hires_model"]).name == "4x-Sharp.onnx"
        assert keywords["hires_upscaler"] == "lanczos"
    assert ask(enable_hr=True, hr_upscaler="None")[0]["hires_upscaler"] == "lanczos"
    with pytest.raises(ConfigError, match=r"hr_upscaler: 'R-ESRGAN 4x\+'.*4x-Sharp"):
        ask(enable_hr=True, hr_upscaler="R-ESRGAN 4x+")


def test_picture_and_mask(ask: Ask, engine: Engine) -> None:
    plain, _ = ask(init_images=["data:image/png;base64," + png()], width=128, height=128)
    assert plain["strength"] == 0.75 and plain["strength_rule"] == "web_ui"
    assert plain["resize"] == "stretch" and "mask" not in plain
    resizes = [ask(init_images=[png()], resize_mode=i)[0]["resize"] for i in range(4)]
    assert resizes == ["stretch", "crop", "fill", "latent"]
    masked, warnings = ask(
        init_images=[png()], mask=png(), inpaint_full_res_padding=8, resize_mode=1, mask_blur=2
    )
    assert masked["masked_content"] == "fill"
    assert (masked["inpaint_area"], masked["mask_padding"]) == ("masked", 8)
    assert (masked["mask_blur"], masked["mask_invert"]) == (2, False)
    assert masked["resize"] == "stretch" and "resize_mode" in warnings[0]
    whole, warnings = ask(
        init_images=[png()],
        mask=png(),
        inpaint_full_res=0,
        inpainting_mask_invert=1,
        inpainting_fill=3,
        resize_mode=2,
        mask_blur_x=3,
        mask_blur_y=3,
    )
    assert "inpaint_area" not in whole and whole["resize"] == "fill" and warnings == []
    assert (whole["mask_blur"], whole["mask_invert"]) == (3, True)
    assert whole["masked_content"] == "latent_nothing"
    request = engine.request("x", **options(whole))
    assert (request.num_steps_run, request.mask is not None) == (int(50 * 0.75) + 1, True)


def test_settings_of_pictures(ask: Ask) -> None:
    settings = {
        "img2img_fix_steps": True,
        "img2img_color_correction": True,
        "img2img_background_color": "#102030",
    }
    keywords, _ = ask(init_images=[png()], override_settings=settings)
    assert keywords["strength_rule"] == "exact"
    assert keywords["color_correction"] is True and keywords["background"] == "#102030"


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"init_images": []}, 404), ({"script_name": "X/Y/Z plot"}, 422)],
)
def test_what_is_not_found(ask: Ask, fields: dict[str, Any], status: int) -> None:
    with pytest.raises(HTTPError) as caught:
        ask(**fields)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "fields",
    [
        {"styles": ["a"]},
        {"restore_faces": True},
        {"s_min_uncond": 1.5},
        {"firstpass_image": "x"},
        {"refiner_checkpoint": "other"},
        {"enable_hr": True, "hr_checkpoint_name": "other"},
        {"prompt": "<lora:a:1>", "disable_extra_networks": True},
        {"save_images": True, "send_images": False},
        {"init_images": [png()], "latent_mask": png()},
        {"init_images": [png()], "mask_round": False},
        {"init_images": [png()], "initial_noise_multiplier": 1.1},
        {"init_images": [png()], "resize_mode": 4},
        {"init_images": [png()], "mask": png(), "inpainting_fill": -1},
        {"init_images": [png()], "mask": png(), "inpainting_mask_invert": 2},
        {"init_images": [png()], "mask": png(), "mask_blur_x": 1, "mask_blur_y": 2},
        {"init_images": [png(), png()]},
        {"init_images": ["http://127.0.0.1/a.png"]},
        {"init_images": ["/etc/passwd"]},
        {"override_settings": {"sd_vae": "other.safetensors"}},
        {"override_settings": {"eta_noise_seed_delta": 31337}},
        {"override_settings": {"samples_format": "jpg"}},
        {"override_settings": {"randn_source": "TPU"}},
        {"override_settings": {"CLIP_stop_at_last_layers": 13}},
        {"override_settings": {"face_restoration": True}},
        {"override_settings": {"no_such_setting": 1}},
    ],
)
def test_what_cannot_be_done_is_refused_by_name(ask: Ask, fields: dict[str, Any]) -> None:
    name = list(fields)[-1]
    if name == "override_settings":
        name = next(iter(fields[name]))
    with pytest.raises(ConfigError, match=name.removesuffix("_y")):
        ask(**fields)


def test_no_operations_are_accepted(ask: Ask) -> None:
    _, warnings = ask(
        styles=[],
        restore_faces=False,
        refiner_checkpoint="None",
        hr_checkpoint_name="Use same checkpoint",
        do_not_save_samples=True,
        script_args=[1],
        alwayson_scripts={"ControlNet": {"args": []}},
        override_settings={
            "sd_vae": "Automatic",
            "eta_noise_seed_delta": 0,
            "CLIP_stop_at_last_layers": 1.0,
            "sd_checkpoint_hash": "abc",
        },
    )
    assert warnings == []


def test_settings(ask: Ask) -> None:
    settings = {
        "CLIP_stop_at_last_layers": 2,
        "randn_source": "CPU",
        "emphasis": "No norm",
        "sd_vae_decode_method": "TAESD",
        "save_images_before_highres_fix": True,
    }
    keywords, warnings = ask(override_settings=settings)
    assert keywords["web_ui_clip_skip"] == 2 and keywords["noise"] == "cpu"
    assert keywords["emphasis"] == "no_norm" and keywords["decoder"] == "tiny"
    assert len(warnings) == 1 and "save_images_before_highres_fix" in warnings[0]
    assert ask(tiling=True)[0]["seamless"] == "xy"
    assert "seamless" not in ask(tiling=False, override_settings={"tiling": True})[0]
    assert ask(override_settings={"tiling": True})[0]["seamless"] == "xy"


def test_infotext_fills_what_is_not_given(ask: Ask) -> None:
    text = (
        "a cat\nNegative prompt: a dog\nSteps: 12, Sampler: DPM++ 2M SDE, Schedule type: Karras, "
        "CFG scale: 4, Seed: 77, Size: 256x128, Clip skip: 2, Denoising strength: 0.4, "
        "Hires upscale: 2, Hires upscaler: Lanczos, CFG Rescale: 0.5, Unheard: 3, Version: v1"
    )
    keywords, warnings = ask(infotext=text, steps=9)
    assert (keywords["prompt"], keywords["negative_prompt"]) == ("a cat", "a dog")
    assert (keywords["steps"], keywords["guidance_scale"], keywords["seed"]) == (9, 4, 77)
    assert (keywords["sampler"], keywords["schedule"]) == ("dpmpp_2m_sde", "karras")
    assert (keywords["width"], keywords["height"]) == (256, 128)
    assert (keywords["hires"], keywords["hires_strength"]) == (2.0, 0.4)
    assert keywords["hires_upscaler"] == "lanczos" and keywords["web_ui_clip_skip"] == 2
    told = " ".join(warnings)
    assert "Unheard" in told and "guidance_rescale" in told
    assert ask(infotext=text, sampler_name="Euler")[0]["schedule"] == "normal"
