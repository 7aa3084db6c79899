"""Routes of the web UI's API over a running server: whose is what, answers, and refusals."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support.served import serving
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine.engine import Engine
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.service import Service
from sdengine.serving.tokens import Token, Tokens

PLAIN: dict[str, Any] = {"prompt": "a", "width": 64, "height": 64, "steps": 2, "seed": 1}
# So many steps that a test's other calls come while they run.
LONG: dict[str, Any] = {**PLAIN, "steps": 200, "batch_size": 16}


def token(name: str) -> Token:
    return Token(name, hashlib.sha256(f"secret of {name}".encode()).hexdigest())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with sdengine.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Service]]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "Fine Tune.safetensors").write_bytes(b"nothing")
    folders = {
        "lora": tmp_path_factory.mktemp("loras"),
        "upscaler": tmp_path_factory.mktemp("onnx"),
    }
    write_upscaler(folders["upscaler"] / "Twice.onnx")
    catalogue = Catalogue({"model": folder, **folders})
    tokens = Tokens([token("ann"), token("ben"), token("cleo")])
    with serving({"tiny": engine}, catalogue=catalogue, tokens=tokens) as found:
        yield found


def write_upscaler(path: Path) -> None:
    """Write a network that makes each pixel four of them."""
    weight = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)[..., None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["c"]),
            helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
        ],
        "upscaler",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 17)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )


Client = Callable[[str], httpx.Client]


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[Client]:
    """Return clients by the names of their tokens."""
    opened: list[httpx.Client] = []

    def of(name: str) -> httpx.Client:
        one = httpx.Client(base_url=server[0], auth=("any", f"secret of {name}"), timeout=60)
        opened.append(one)
        return one

    yield of
    for one in opened:
        one.close()


def png(width: int = 16, height: int = 16, mode: str = "RGB", **texts: Any) -> str:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    Image.fromarray(pixels).save(content, "PNG", **texts)
    return base64.b64encode(content.getvalue()).decode()


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def progress(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/sdapi/v1/progress").json()
    return found


def start(pool: ThreadPoolExecutor, client: httpx.Client, **fields: Any) -> Future[httpx.Response]:
    future = pool.submit(client.post, "/sdapi/v1/txt2img", json={**LONG, **fields})
    wait_until(lambda: progress(client)["state"]["sampling_step"] > 0)
    return future


def test_info_has_all_that_clients_read(client: Client) -> None:
    fields = {**PLAIN, "batch_size": 2, "n_iter": 2, "sampler_name": "Euler a", "save_images": True}
    answer = client("ann").post("/sdapi/v1/txt2img", json=fields)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    info = json.loads(found["info"])
    assert info["all_seeds"] == [1, 2, 3, 4] and info["seed"] == 1 and info["batch_size"] == 2
    assert len(info["infotexts"]) == len(found["images"]) == len(info["all_prompts"]) == 4
    assert info["sampler_name"] == "Euler a" and info["steps"] == 2 and info["cfg_scale"] == 7
    assert info["extra_generation_params"]["RNG"] == "NV"
    assert info["denoising_strength"] is None and info["clip_skip"] == 1
    assert [line for line in info["warnings"] if line.startswith("save_images")]
    keys = (
        "prompt negative_prompt all_negative_prompts subseed all_subseeds subseed_strength width "
        "height restore_faces face_restoration_model sd_model_name sd_model_hash sd_vae_name "
        "sd_vae_hash seed_resize_from_w seed_resize_from_h index_of_first_image styles "
        "job_timestamp is_using_inpainting_conditioning version"
    )
    assert set(keys.split()) <= info.keys()
    assert found["parameters"]["prompt"] == "a" and found["parameters"]["n_iter"] == 2
    for image, text in zip(found["images"], info["infotexts"], strict=True):
        assert opened(image).info["parameters"] == text


def test_pictures_may_be_left_out(client: Client) -> None:
    found = client("ann").post("/sdapi/v1/txt2img", json={**PLAIN, "send_images": False}).json()
    assert found["images"] == [] and len(json.loads(found["info"])["infotexts"]) == 1


def test_noise_is_as_on_the_web_uis_gpu_unless_settings_say_otherwise(
    client: Client, engine: Engine
) -> None:
    def pixels(**settings: Any) -> Any:
        fields = {**PLAIN, "sampler_name": "Euler a", "override_settings": settings}
        answer = client("ann").post("/sdapi/v1/txt2img", json=fields).json()
        return np.asarray(opened(answer["images"][0]))

    for kind, settings in {"cuda": {}, "cpu": {"randn_source": "CPU"}}.items():
        own = engine.generate(
            "a",
            width=64,
            height=64,
            steps=2,
            seed=1,
            sampler="euler_a",
            schedule="normal",
            guidance_scale=7.0,
            noise=kind,
        )
        assert np.array_equal(pixels(**settings), own.arrays[0])


def test_settings_are_each_clients_own(client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    given = {"CLIP_stop_at_last_layers": 2, "randn_source": "CPU"}
    assert ann.post("/sdapi/v1/options", json=given).json() is None
    try:
        assert ann.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2
        assert ben.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1
        texts = [
            json.loads(one.post("/sdapi/v1/txt2img", json=PLAIN).json()["info"])["infotexts"][0]
            for one in (ann, ben)
        ]
        assert "RNG: CPU" in texts[0] and "Clip skip: 2" in texts[0]
        assert "RNG: NV" in texts[1] and "Clip skip" not in texts[1]
        assert ann.post("/sdapi/v1/options", json=ann.get("/sdapi/v1/options").json()).is_success
    finally:
        ann.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1, "randn_source": "GPU"})


def test_settings_of_a_request_stay_with_it_unless_it_says_otherwise(client: Client) -> None:
    ben = client("ben")
    fields = {**PLAIN, "override_settings": {"randn_source": "CPU"}}
    ben.post("/sdapi/v1/txt2img", json=fields)
    assert ben.get("/sdapi/v1/options").json()["randn_source"] == "GPU"
    ben.post("/sdapi/v1/txt2img", json={**fields, "override_settings_restore_afterwards": False})
    assert ben.get("/sdapi/v1/options").json()["randn_source"] == "CPU"
    ben.post("/sdapi/v1/options", json={"randn_source": "GPU"})


def test_settings_do_not_change_requests_that_wait(client: Client) -> None:
    ann = client("ann")
    with ThreadPoolExecutor(2) as pool:
        running = start(pool, ann)
        waiting = pool.submit(
            client("ann").post, "/sdapi/v1/txt2img", json={**PLAIN, "cfg_scale": 3}
        )
        wait_until(lambda: progress(ann)["state"]["job_count"] == 2)
        assert ann.get("/internal/pending-tasks").json()["size"] == 1
        ann.post("/sdapi/v1/options", json={"randn_source": "CPU"})
        ann.post("/sdapi/v1/interrupt")
        assert json.loads(running.result().json()["info"])["interrupted"] is True
        assert "RNG: NV" in json.loads(waiting.result().json()["info"])["infotexts"][0]
    ann.post("/sdapi/v1/options", json={"randn_source": "GPU"})


def test_progress_and_interrupt_are_each_clients_own(client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    with ThreadPoolExecutor(1) as pool:
        running = start(pool, ann)
        seen = progress(ann)
        assert 0 < seen["progress"] < 1 and seen["state"]["job_count"] == 1
        assert progress(ben)["progress"] == 0 and progress(ben)["state"]["job_count"] == 0
        assert ben.post("/sdapi/v1/interrupt").json() == {}
        assert ben.post("/sdapi/v1/skip").json() is None
        assert not running.done()
        wait_until(lambda: progress(ann)["current_image"] is not None)
        assert opened(progress(ann)["current_image"]).size[1] <= 64
        shown = ann.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
        assert shown["current_image"] is None
        ann.post("/sdapi/v1/interrupt")
        answer = running.result()
    assert answer.status_code == 200
    info = json.loads(answer.json()["info"])
    assert answer.json()["images"] == [] and info["interrupted"] and info["infotexts"] == []
    assert any("interrupted" in line for line in info["warnings"])
    assert progress(ann)["progress"] == 0 and progress(ann)["state"]["job_count"] == 0


def test_interrupt_ends_what_waits_where_nothing_runs(client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    with ThreadPoolExecutor(2) as pool:
        running = start(pool, ann)
        waiting = pool.submit(ben.post, "/sdapi/v1/txt2img", json={**PLAIN, "steps": 3})
        other = client("ben")
        wait_until(lambda: progress(other)["state"]["job_count"] == 1)
        assert progress(other)["textinfo"] == "Waiting..."
        other.post("/sdapi/v1/skip")
        assert json.loads(waiting.result().json()["info"])["interrupted"] is True
        assert not running.done()
        ann.post("/sdapi/v1/interrupt")


def test_tasks_by_the_clients_own_ids(client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    task = {"id_task": "task(abc)", "id_live_preview": -1}
    unknown = ann.post("/internal/progress", json=task).json()
    assert not (unknown["active"] or unknown["queued"] or unknown["completed"])
    with ThreadPoolExecutor(1) as pool:
        running = start(pool, ann, force_task_id="task(abc)")
        found: dict[str, Any] = {}

        def has_preview() -> bool:
            found.update(ann.post("/internal/progress", json=task).json())
            return found["live_preview"] is not None

        wait_until(has_preview)
        assert found["active"] and 0 < found["progress"] < 1
        assert found["live_preview"].startswith("data:image/png;base64,")
        assert found["id_live_preview"] > 0
        without = ann.post("/internal/progress", json={**task, "live_preview": False}).json()
        assert without["live_preview"] is None
        assert not ben.post("/internal/progress", json=task).json()["active"]
        twice = ann.post("/sdapi/v1/txt2img", json={**PLAIN, "force_task_id": "task(abc)"})
        assert twice.status_code == 400 and "task(abc)" in twice.json()["detail"]
        ann.post("/sdapi/v1/interrupt")
        running.result()
    assert ann.post("/internal/progress", json=task).json()["completed"]
    assert not ben.post("/internal/progress", json=task).json()["completed"]


def test_checkpoints(client: Client, engine: Engine) -> None:
    ann = client("ann")
    listed = ann.get("/sdapi/v1/sd-models").json()
    sha256 = engine.bundle.manifest.source.sha256
    assert listed[0]["title"] == f"tiny [{sha256[:10]}]" and listed[0]["sha256"] == sha256
    assert listed[1]["title"] == "Fine Tune.safetensors" and listed[1]["hash"] is None
    options = ann.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == listed[0]["title"]
    for name in (listed[0]["title"], "TINY", sha256, sha256[:10]):
        settings = {"sd_model_checkpoint": name}
        answer = ann.post("/sdapi/v1/txt2img", json={**PLAIN, "override_settings": settings})
        assert answer.status_code == 200, answer.text
    settings = {"sd_model_checkpoint": "Fine Tune"}  # which compiled weights cannot become
    answer = ann.post("/sdapi/v1/txt2img", json={**PLAIN, "override_settings": settings})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("model: 'openvino'")
    for place in ("/sdapi/v1/options", "/sdapi/v1/txt2img"):
        settings = {"sd_model_checkpoint": "../other"}
        body = settings if place.endswith("options") else {**PLAIN, "override_settings": settings}
        answer = ann.post(place, json=body)
        assert answer.status_code == 400 and "sd_model_checkpoint" in answer.json()["detail"]


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


def test_pictures_come_back_in_parameters_only_where_asked_for(client: Client) -> None:
    fields = {**PLAIN, "init_images": [png()]}
    # The tiny bundle has no encoder, so that what is refused is the picture, by name.
    answer = client("ann").post("/sdapi/v1/img2img", json=fields)
    assert answer.status_code == 400 and "image" in answer.json()["detail"]
