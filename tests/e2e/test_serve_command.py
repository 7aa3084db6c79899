"""`sdengine serve` as a process: its port, its end, its tokens, clients that are slow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from .conftest import COMMAND, Run

LONG = {"prompt": "a red circle", "steps": 200, "seed": 1}


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command inside the block; give the address that it says, and the process."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--threads", "1", *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def submit(client: httpx.Client, **fields: Any) -> str:
    answer = client.post("/api/v1/jobs", json={"request": {"prompt": "a", "steps": 2, **fields}})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def wait(client: httpx.Client, job_id: str, until: str = "completed") -> None:
    for _ in range(1000):
        status = client.get(f"/api/v1/jobs/{job_id}").json()["status"]
        if status == until:
            return
        time.sleep(0.02)
    raise AssertionError(status)


def test_a_signal_lets_it_finish_what_it_has(tmp_path: Path) -> None:
    with server(tmp_path) as (url, process), httpx.Client(base_url=url) as client:
        job, behind = submit(client, steps=60), submit(client, steps=3)
        wait(client, job, "generating")
        process.send_signal(signal.SIGTERM)
        for _ in range(500):
            if client.get("/ready").status_code == 503:
                break
            time.sleep(0.01)
        refused = client.post("/api/v1/jobs", json={"request": LONG})
        assert refused.status_code == 503
        for one in (job, behind):
            with client.stream("GET", f"/api/v1/jobs/{one}/events") as stream:
                assert '"status": "completed"' in stream.read().decode()
            # It ends as soon as both were fetched.
            assert client.get(f"/api/v1/jobs/{one}/images/0").content.startswith(b"\x89PNG")
        assert process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert log.rstrip().endswith("all requests were finished.")
    lines = [json.loads(line) for line in log.splitlines()[:-1]]
    assert {"request_id", "owner", "method", "path", "status", "ms"} <= set(lines[0])
    assert any(line.get("status") == 503 for line in lines)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with server(tmp_path) as (url, process), httpx.Client(base_url=url) as client:
        job = submit(client, **LONG)
        wait(client, job, "generating")
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert "were cancelled" in (tmp_path / "log").read_text()


def test_slow_clients_take_nothing_from_others(tmp_path: Path) -> None:
    with server(tmp_path) as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        host, port = url.removeprefix("http://").split(":")
        wait(client, submit(client))
        before = psutil.Process(process.pid).num_fds()
        slow = [socket.create_connection((host, int(port))) for _ in range(20)]
        for number, one in enumerate(slow):
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b"[: 3 + 2 * number])
        began = time.monotonic()
        wait(client, submit(client))
        assert time.monotonic() - began < 9  # before any of them was cut off
        for number in range(14):  # each byte comes in time, the whole head does not
            time.sleep(1)
            for one in slow[:5]:
                try:
                    one.sendall(b"x")
                except OSError:
                    break
            if number > 10 and psutil.Process(process.pid).num_fds() <= before + 1:
                break
        assert psutil.Process(process.pid).num_fds() <= before + 1
        for one in slow:
            one.settimeout(5)
            with suppress(ConnectionResetError):
                assert one.recv(1000) == b""
            one.close()
        wait(client, submit(client))


def test_tokens(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "tokens.json"
    refused = run("serve", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert (
        "--host: '0.0.0.0' is not accepted; expected 127.0.0.1 without --tokens" in refused.stderr
    )
    made = run("serve", "--tokens", file, "--add-token", "me")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    with (
        server(tmp_path, "--host", "0.0.0.0", "--tokens", str(file)) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        assert client.get("/health").status_code == 200
        assert client.get("/api/v1/info").status_code == 401
        client.headers["Authorization"] = f"Bearer {secret}"
        assert client.get("/api/v1/info").status_code == 200
        wait(client, submit(client))
    assert secret not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], "--port: 99999"),
        (["--add-token", "me"], "--add-token: 'me'"),
        (["--tokens", "none.json"], "tokens: 'none.json' cannot be read"),
        (["--bundle", "a=demo", "--bundle", "a=demo"], "bundle: 'a=demo'"),
        (["--bundle", "nowhere"], "nowhere"),
        (["--loras", "nowhere"], "folder of loras: 'nowhere'"),
        (["--max-queue", "0"], "max_queue: 0"),
        (["--max-body", "much"], "--max-body: 'much'"),
        (["--drain", "-1"], "--drain: -1"),
    ],
)
def test_wrong_usage(call: Run, options: list[str], said: str) -> None:
    refused = call("serve", *options)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_a_port_that_is_taken_is_named(call: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = call("serve", "--port", taken.getsockname()[1])
    assert refused.returncode == 2
    assert "cannot be listened on" in refused.stderr
    assert os.listdir(".") == []
