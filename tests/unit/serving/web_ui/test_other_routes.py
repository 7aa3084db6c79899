"""Lists, extras, texts, detection and refusals of the web UI's API over a running server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.web_ui import PLAIN, Client, opened, png

from sdengine.serving.service import Service


def test_files_that_come_later_are_found(client: Client, server: tuple[str, Service]) -> None:
    ann, folder = client("ann"), server[1].catalogue.folders["lora"]
    assert ann.get("/sdapi/v1/loras").json() == []
    (Path(folder) / "style.safetensors").write_bytes(b"x")
    assert ann.post("/sdapi/v1/refresh-loras").json() is None
    (lora,) = ann.get("/sdapi/v1/loras").json()
    assert (lora["name"], lora["alias"], lora["path"]) == ("style", "style", "style.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        *("cmd-flags", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae"),
        *("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "embeddings"),
        *("memory", "scripts", "script-info"),
    ],
)
def test_lists(client: Client, path: str) -> None:
    answer = client("ann").get(f"/sdapi/v1/{path}")
    assert answer.status_code == 200 and isinstance(answer.json(), (list, dict))


def test_scripts_keep_a_client_from_sending_its_last_units_again(client: Client) -> None:
    found = client("ann").get("/sdapi/v1/scripts").json()
    for names in found.values():
        assert {"controlnet", "controlnet m2m"} <= set(names)
        assert not {"adetailer", "animatediff"} & set(names)
    assert found.keys() == {"txt2img", "img2img"}


def test_memory(client: Client) -> None:
    found = client("ann").get("/sdapi/v1/memory").json()
    assert 0 < found["ram"]["used"] < found["ram"]["total"] and found["ram"]["free"] > 0
    assert found["cuda"] == {"error": "unavailable"}


def test_texts_of_pictures(client: Client) -> None:
    ann = client("ann")
    made = ann.post("/sdapi/v1/txt2img", json={**PLAIN, "negative_prompt": "b"}).json()
    found = ann.post("/sdapi/v1/png-info", json={"image": made["images"][0]}).json()
    assert found["info"] == json.loads(made["info"])["infotexts"][0]
    assert found["parameters"]["Prompt"] == "a" and found["parameters"]["Negative prompt"] == "b"
    assert found["parameters"]["Size-1"] == "64" and found["parameters"]["Steps"] == "2"
    assert "sdengine" in found["items"] and "parameters" not in found["items"]
    empty = ann.post("/sdapi/v1/png-info", json={"image": png()}).json()
    assert empty == {"info": "", "items": {}, "parameters": {}}
    exif = Image.Exif()
    text = "of a photograph\nSteps: 3, Sampler: Euler, Seed: 4, Size: 8x8"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif)
    body = {"image": base64.b64encode(content.getvalue()).decode()}
    assert ann.post("/sdapi/v1/png-info", json=body).json()["info"] == text


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscaler_1": "Lanczos", "upscaling_resize": 2.5}, (40, 20)),
        ({"upscaler_1": "nearest", "upscaling_resize": 0.5}, (8, 4)),
        ({"upscaler_1": "None"}, (16, 8)),
        (
            {
                "upscaler_1": "Lanczos",
                "resize_mode": 1,
                "upscaling_resize_w": 24,
                "upscaling_resize_h": 24,
            },
            (24, 24),
        ),
        (
            {
                "upscaler_1": "Lanczos",
                "resize_mode": 1,
                "upscaling_resize_w": 24,
                "upscaling_resize_h": 24,
                "upscaling_crop": False,
            },
            (48, 24),
        ),
    ],
)
def test_extras(client: Client, fields: dict[str, Any], size: tuple[int, int]) -> None:
    ann = client("ann")
    for mode in ("RGB", "RGBA"):
        found = ann.post("/sdapi/v1/extra-single-image", json={**fields, "image": png(16, 8, mode)})
        image = opened(found.json()["image"])
        assert image.size == size and image.mode == mode and found.json()["html_info"]
    images = [{"data": png(16, 8), "name": "a"}, {"data": png(16, 8), "name": "b"}]
    found = ann.post("/sdapi/v1/extra-batch-images", json={**fields, "imageList": images})
    assert [opened(one).size for one in found.json()["images"]] == [size, size]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_extras_of_an_upscaler_of_the_catalogue(client: Client, mode: str) -> None:
    ann, sent = client("ann"), png(24, 40, mode)
    names = [one["name"] for one in ann.get("/sdapi/v1/upscalers").json()]
    assert names == ["None", "Lanczos", "Nearest", "Twice"]
    body = {"image": sent, "upscaler_1": "Twice", "upscaling_resize": 2}
    found = ann.post("/sdapi/v1/extra-single-image", json=body).json()
    larger = np.asarray(opened(found["image"]))
    wanted = np.asarray(opened(sent)).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(larger[..., :3], wanted[..., :3]) and larger.shape == wanted.shape
    larger_still = {**body, "upscaling_resize": 2.5}
    found = ann.post("/sdapi/v1/extra-single-image", json=larger_still).json()
    assert opened(found["image"]).size == (60, 100)


def test_extras_of_two_upscalers(client: Client) -> None:
    def enlarged(**fields: Any) -> Any:
        body = {"image": png(16, 8), "upscaler_1": "Lanczos", "upscaler_2": "Nearest", **fields}
        found = client("ann").post("/sdapi/v1/extra-single-image", json=body).json()["image"]
        return np.asarray(opened(found)).astype(float)

    first, second = enlarged(), enlarged(upscaler_1="Nearest")
    mixed = enlarged(extras_upscaler_2_visibility=0.25)
    assert np.abs(mixed - (0.75 * first + 0.25 * second)).max() <= 0.5


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("extra-single-image", {"image": png(), "gfpgan_visibility": 0.5}, 400),
        ("extra-single-image", {"image": png(), "codeformer_visibility": 1}, 400),
        ("extra-single-image", {"image": png(), "upscaler_1": "LDSR"}, 400),
        (
            "extra-single-image",
            {"image": png(64, 64), "upscaler_1": "Lanczos", "upscaling_resize": 60},
            400,
        ),
        ("extra-single-image", {"image": "x"}, 400),
        ("extra-single-image", {"image": png(), "upscaling_resize": 0}, 400),
        ("extra-batch-images", {"imageList": []}, 400),
        ("extra-batch-images", {"imageList": [{"data": png()}] * 17}, 400),
        ("png-info", {"image": ""}, 400),
        ("png-info", {}, 400),
        ("interrogate", {"image": png(), "model": "clip"}, 400),
        ("txt2img", {**PLAIN, "sampler_name": "?"}, 404),
        ("txt2img", {**PLAIN, "script_name": "?"}, 422),
        ("txt2img", {**PLAIN, "alwayson_scripts": {"adetailer": {"args": []}}}, 422),
        ("img2img", PLAIN, 404),
        ("options", {"no_such": 1}, 400),
        ("options", {"save_to_dirs": True}, 400),
    ],
)
def test_refusals(client: Client, path: str, fields: dict[str, Any], status: int) -> None:
    answer = client("ann").post(f"/sdapi/v1/{path}", json=fields)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() >= {"error", "detail", "body", "errors"}


def test_an_extra_picture_of_too_many_pixels(client: Client) -> None:
    size = {"upscaling_resize_w": 60000, "upscaling_resize_h": 60000, "resize_mode": 1}
    body = {"image": png(), "upscaler_1": "Nearest", **size}
    answer = client("ann").post("/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 400 and "pixels" in answer.json()["detail"]


@pytest.mark.parametrize("field", ["prompt", "sampler_index", "force_task_id", "hr_upscaler"])
def test_text_that_is_no_unicode_is_refused_by_name(client: Client, field: str) -> None:
    body = json.dumps({**PLAIN, "sampler_name": "Euler", field: "\ud800"})
    headers = {"content-type": "application/json"}
    answer = client("ann").post("/sdapi/v1/txt2img", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["detail"].startswith(field)


def test_controlnet_lists_and_detection(client: Client) -> None:
    ann = client("ann")
    assert ann.get("/controlnet/version").json()["version"] >= 2
    assert ann.get("/controlnet/model_list").json() == {"model_list": []}
    modules = ann.get("/controlnet/module_list").json()
    assert {"none", "canny", "invert"} <= set(modules["module_list"])
    assert modules["module_detail"].keys() == set(modules["module_list"])
    aliases = ann.get("/controlnet/module_list", params={"alias_names": True}).json()
    assert "invert (from white bg & black line)" in aliases["module_list"]
    kinds = ann.get("/controlnet/control_types").json()["control_types"]
    assert kinds["Canny"]["default_option"] == "canny" and "All" in kinds
    assert ann.get("/controlnet/settings").json()["control_net_unit_count"] > 0
    for name in ("controlnet_input_images", "controlnet_images"):
        body = {"controlnet_module": "canny", name: [png(32, 64)], "controlnet_processor_res": 64}
        found = ann.post("/controlnet/detect", json=body).json()
        assert found["info"] == "Success" and opened(found["images"][0]).size == (64, 128)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"controlnet_module": "openpose"},
        {"controlnet_module": "inpaint_only"},
    ],
)
def test_detection_refuses_with_422(client: Client, fields: dict[str, Any]) -> None:
    images = {"controlnet_input_images": [png()]} if fields else {}
    answer = client("ann").post("/controlnet/detect", json={**images, **fields})
    assert answer.status_code == 422, answer.text
