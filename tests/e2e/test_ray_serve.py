"""The HTTP app in front of engines that are replicas of Ray Serve."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import sdengine

pytest.importorskip("ray.serve", reason="ray is not installed")
CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: sdengine
    route_prefix: /
    import_path: sdengine.serving.ray:app
    args: {{bundles: demo, threads: 1, max_replicas: 1}}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Run `serve run` as a user would, on a cluster of its own that nobody else can talk to."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config.yaml").write_text(CONFIG.format(port=port))
    own = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", "config.yaml"],
            cwd=folder,
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(2000):
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/ready").status_code == 200:
                        break
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
            else:
                raise AssertionError((folder / "log").read_text()[-3000:])
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


def test_settings_are_checked(tmp_path: Path) -> None:
    script = (
        "from sdengine.errors import ConfigError\n"
        "from sdengine.serving.ray import app\n"
        "for wrong in ({'threads': '0'}, {'bundel': 'demo'}):\n"
        "    try:\n"
        "        app(wrong)\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("threads: '0' is not accepted")
    assert second.startswith("bundel: 'demo' is not accepted")
