"""Pictures over the web UI's API: whose is what on the way, settings, tasks, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from support.web_ui import PLAIN, Client, opened, png

from sdengine.engine import Engine

# So many steps that a test's other calls come while they run.
LONG: dict[str, Any] = {**PLAIN, "steps": 200, "batch_size": 16}


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
    client: Client, tiny_engine: Engine
) -> None:
    def pixels(**settings: Any) -> Any:
        fields = {**PLAIN, "sampler_name": "Euler a", "override_settings": settings}
        answer = client("ann").post("/sdapi/v1/txt2img", json=fields).json()
        return np.asarray(opened(answer["images"][0]))

    for kind, settings in {"cuda": {}, "cpu": {"randn_source": "CPU"}}.items():
        own = tiny_engine.generate(
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


def test_checkpoints(client: Client, tiny_engine: Engine) -> None:
    ann = client("ann")
    listed = ann.get("/sdapi/v1/sd-models").json()
    sha256 = tiny_engine.bundle.manifest.source.sha256
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


def test_a_bundle_without_an_encoder_refuses_pictures_by_name(client: Client) -> None:
    fields = {**PLAIN, "init_images": [png()]}
    answer = client("ann").post("/sdapi/v1/img2img", json=fields)
    assert answer.status_code == 400 and "image" in answer.json()["detail"]
