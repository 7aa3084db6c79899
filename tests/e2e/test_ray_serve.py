"""The HTTP app in front of engines that are replicas of Ray Serve."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

import sdengine
from sdengine.errors import ConfigError

pytest.importorskip("ray.serve", reason="ray is not installed")
PORT = 18_437


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    from sdengine.serving.ray_cluster import LOCAL, RayOptions, import_ray

    ray = import_ray(RayOptions(LOCAL))  # that nobody else can talk to
    from ray import serve

    from sdengine.serving.ray import app

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(app({"bundles": "demo", "threads": "1", "max_replicas": "2"}), name="sdengine")
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
            yield client
        serve.shutdown()
    finally:
        ray.shutdown()


def submit(client: httpx.Client, **fields: Any) -> str:
    given = {"prompt": "a red circle on white", "seed": 1, "steps": 6, **fields}
    answer = client.post("/api/v1/jobs", json={"request": given, "preview_every": 2})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def wait(client: httpx.Client, job_id: str, until: str = "") -> dict[str, Any]:
    for _ in range(600):
        found: dict[str, Any] = client.get(f"/api/v1/jobs/{job_id}").json()
        if found["status"] == until or found["completed"] is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own making, in its threads
def test_replicas_serve_the_app(client: httpx.Client) -> None:
    assert client.get("/ready").json()["status"] == "ready"
    job = submit(client)
    with client.stream("GET", f"/api/v1/jobs/{job}/events") as stream:
        told = stream.read().decode()
    assert "event: preview" in told
    assert "event: end" in told
    with sdengine.load("demo", threads=1) as engine:
        expected = engine.generate("a red circle on white", seed=1, steps=6)
    assert client.get(f"/api/v1/jobs/{job}/images/0").content == expected.png()

    long = submit(client, steps=200)
    wait(client, long, "generating")
    client.delete(f"/api/v1/jobs/{long}")
    assert wait(client, long)["status"] == "cancelled"

    lost = submit(client, steps=60)
    wait(client, lost, "generating")
    for process in psutil.process_iter(["cmdline"]):
        if "ServeReplica:sdengine:Engines" in " ".join(process.info["cmdline"] or []):
            os.kill(process.pid, signal.SIGKILL)
    assert wait(client, lost)["status"] == "completed"  # by another replica

    wrong = client.post("/api/v1/jobs", json={"request": {"prompt": "a", "sed": 1}})
    assert wrong.status_code == 400
    foreign = client.get("/api/v1/info", headers={"Host": "attacker.example"})
    assert foreign.status_code == 421


def test_settings_are_checked() -> None:
    from sdengine.serving.ray import app

    with pytest.raises(ConfigError, match=r"threads: '0' is not accepted"):
        app({"threads": "0"})
    with pytest.raises(ConfigError, match=r"bundel: "):
        app({"bundel": "demo"})
