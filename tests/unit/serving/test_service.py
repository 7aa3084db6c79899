"""What the service promises whoever calls it, over HTTP by the native API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.served import serving
from support.tiny_bundle import make_tiny_bundle

from sdengine.engine import Engine
from sdengine.errors import DeviceError, NonFiniteError
from sdengine.images.result import Step
from sdengine.loading import load
from sdengine.request.request import Request
from sdengine.serving.job_store import JobStore
from sdengine.serving.jobs import Job
from sdengine.serving.limits import Limits
from sdengine.serving.refusals import BusyError
from sdengine.serving.tokens import Tokens, add_token, read_tokens

LONG = {"prompt": "a", "steps": 200, "sampler": "euler"}


class Held:
    """Holds requests of an engine in a step, until it is told to let them go."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.runs: list[Any] = []

    def of(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Held:
        """Let an engine's runs wait at each step."""
        run = engine.run

        def held(request: Any, **options: Any) -> Any:
            self.runs.append(request)
            progress = options.pop("progress", None)
            if progress is None:  # a test's own, of what would have been made alone
                return run(request, **options)

            def wait(step: Step) -> None:
                progress(step)
                while not self.may_go.wait(0.01):
                    progress(step)
                    if options["cancel"].is_set():
                        return

            return run(request, progress=wait, **options)

        monkeypatch.setattr(engine, "run", held)
        return self


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    tiny = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


@pytest.fixture
def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held().of(engine, monkeypatch)
    yield held
    held.may_go.set()


def submit(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    more = {k: fields.pop(k) for k in ("preview_every", "bundle") if k in fields}
    given = {"prompt": "a circle", "steps": 3, "seed": 5, **fields}
    answer = client.post("/api/v1/jobs", json={"request": given, **more})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait(client: httpx.Client, job: dict[str, Any], *statuses: str) -> dict[str, Any]:
    for _ in range(1000):
        found: dict[str, Any] = client.get(f"/api/v1/jobs/{job['id']}").json()
        if found["status"] in (statuses or ("completed", "failed", "cancelled")):
            return found
        time.sleep(0.005)
    raise AssertionError(found)


def test_a_request_is_served(engine: Engine) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        job = submit(client, batch_size=2)
        assert wait(client, job)["status"] == "completed"
        expected = engine.generate("a circle", steps=3, seed=5, batch_size=2)
        for number, array in enumerate(expected.arrays):
            answer = client.get(f"/api/v1/jobs/{job['id']}/images/{number}")
            assert answer.headers["content-type"] == "image/png"
            assert answer.content == expected.png(number)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), array)
        made = client.get(f"/api/v1/jobs/{job['id']}/result").json()
        assert [base64.b64decode(one) for one in made["images"]] == [
            expected.png(0),
            expected.png(1),
        ]
        assert made["seeds"] == [5, 6]
        assert made["request"]["steps"] == 3
        assert client.get(f"/api/v1/jobs/{job['id']}/images/2").status_code == 404
        assert [one["id"] for one in client.get("/api/v1/jobs").json()["jobs"]] == [job["id"]]
        info = client.get("/api/v1/info").json()
        assert info["bundles"]["tiny"]["max_batch"] == 4
        assert client.get("/openapi.json").json()["paths"]["/api/v1/jobs"]


def test_events_tell_of_steps_previews_and_the_end(engine: Engine, held: Held) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        job = submit(client, preview_every=1)
        events: list[tuple[str, dict[str, Any]]] = []
        with client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    events.append((name, json.loads(line.removeprefix("data: "))))
                    if name == "preview":
                        held.may_go.set()
        names = [name for name, _ in events]
        assert "status" in names
        assert names[-1] == "end"
        assert events[-1][1]["status"] == "completed"
        preview = next(data for name, data in events if name == "preview")
        assert Image.open(io.BytesIO(base64.b64decode(preview["image"]))).format == "PNG"
        with client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream:
            assert "event: end" in stream.read().decode()


def test_alike_requests_are_run_together(engine: Engine, held: Held) -> None:
    with (
        serving({"tiny": engine}, joins=True) as (url, service),
        httpx.Client(base_url=url) as client,
    ):
        first = submit(client, prompt="first", steps=2)
        wait(client, first, "generating")
        jobs = [submit(client, prompt=f"b {i}", seed=i) for i in range(5)]
        other = submit(client, prompt="c", steps=4)
        assert wait(client, jobs[2], "queued")["queue_position"] == 2
        held.may_go.set()
        for number, job in enumerate(jobs):
            assert wait(client, job)["status"] == "completed"
            answer = client.get(f"/api/v1/jobs/{job['id']}/images/0")
            assert answer.content == engine.generate(f"b {number}", steps=3, seed=number).png()
        assert wait(client, other)["status"] == "completed"
        assert sorted(request.batch_size for request in held.runs[:4]) == [1, 1, 1, 4]
        assert "sdengine_joined_jobs_total 4.0" in service.metrics.text().decode()


def test_jobs_are_cancelled_where_they_wait_and_where_they_run(engine: Engine, held: Held) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        running = submit(client, **LONG)
        wait(client, running, "generating")
        waiting = submit(client)
        assert client.delete(f"/api/v1/jobs/{waiting['id']}").status_code == 200
        assert wait(client, waiting)["status"] == "cancelled"
        assert client.get(f"/api/v1/jobs/{waiting['id']}/result").status_code == 409
        client.delete(f"/api/v1/jobs/{running['id']}")
        assert wait(client, running)["status"] == "cancelled"
        assert wait(client, running)["step"] < 200


def test_one_of_those_that_run_together_is_cancelled_alone(engine: Engine, held: Held) -> None:
    with serving({"tiny": engine}, joins=True) as (url, _), httpx.Client(base_url=url) as client:
        first = submit(client, **LONG)
        wait(client, first, "generating")
        jobs = [submit(client, prompt="b", seed=i) for i in range(3)]
        client.delete(f"/api/v1/jobs/{first['id']}")
        wait(client, jobs[2], "generating")
        client.delete(f"/api/v1/jobs/{jobs[1]['id']}")
        assert wait(client, jobs[1])["status"] == "cancelled"
        held.may_go.set()
        for i in (0, 2):
            assert wait(client, jobs[i])["status"] == "completed"
            answer = client.get(f"/api/v1/jobs/{jobs[i]['id']}/images/0")
            assert answer.content == engine.generate("b", steps=3, seed=i).png()


def test_what_fails_alone_does_not_take_others_with_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, gate = engine.run, threading.Event()

    def failing(request: Any, **options: Any) -> Any:
        gate.wait(10)
        if "bad" in request.prompts:
            raise NonFiniteError.at("unet")
        return run(request, **options)

    monkeypatch.setattr(engine, "run", failing)
    with serving({"tiny": engine}, joins=True) as (url, _), httpx.Client(base_url=url) as client:
        first = submit(client, **LONG)
        wait(client, first, "generating")
        jobs = [submit(client, prompt=prompt) for prompt in ("good", "bad", "fine")]
        gate.set()
        assert [wait(client, job)["status"] for job in jobs] == ["completed", "failed", "completed"]
        error = wait(client, jobs[1])["error"]
        assert error["type"] == "NonFiniteError"
        answer = client.get(f"/api/v1/jobs/{jobs[1]['id']}/result")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"].startswith("unet: ")


def test_a_fault_of_our_own_tells_clients_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(request: Any, **options: Any) -> Any:
        raise RuntimeError("a secret of /home/me")

    monkeypatch.setattr(engine, "run", failing)
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        job = submit(client)
        found = wait(client, job)
        assert found["status"] == "failed"
        assert found["error"] == {
            "type": "InternalError",
            "message": "the server failed; its log says more.",
        }
        assert "a secret" in caplog.text
        monkeypatch.undo()
        assert wait(client, submit(client))["status"] == "completed"  # the server goes on


def test_a_fault_beside_the_engine_does_not_end_the_server(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"tiny": engine}) as (url, service), httpx.Client(base_url=url) as client:
        monkeypatch.setattr(service.metrics, "generated", None)
        assert wait(client, submit(client))["status"] == "failed"
        monkeypatch.undo()
        assert wait(client, submit(client))["status"] == "completed"
        monkeypatch.setattr(engine, "run", lambda *_, **__: sys.exit(3))
        assert wait(client, submit(client))["status"] == "failed"
        monkeypatch.undo()
        assert wait(client, submit(client))["status"] == "completed"
        assert client.get("/ready").status_code == 200


def picture(side: int) -> str:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_pictures_are_bounded_together(engine: Engine, held: Held) -> None:
    """Those of one request by their heads, and those of all that are not over."""
    limits = Limits(max_picture_pixels=64 * 64, max_held_bytes=4 * 64 * 64)
    with serving({"tiny": engine}, limits=limits) as (url, service):
        with httpx.Client(base_url=url) as client:
            controls = [{"network": "edges", "image": picture(64)}] * 5
            given = {"request": {"prompt": "a", "controls": controls}}
            refused = client.post("/api/v1/jobs", json=given)
            assert refused.status_code == 400
            assert "pixels together" in refused.json()["error"]["message"]
        waiting = Request("a", width=64, height=64, mask=None)
        loop = asyncio.new_event_loop()
        jobs = [Job(waiting, "a", "tiny", "job", None, 0, loop) for _ in range(2)]
        for job in jobs:
            job.picture_bytes = 3 * 64 * 64
        service.jobs.add(jobs[0])
        with pytest.raises(BusyError, match="pictures of waiting requests"):
            service._check_held(jobs[1])
        jobs[0].end("cancelled")
        service._check_held(jobs[1])
        loop.close()


def test_one_token_does_not_drive_out_the_results_of_another(engine: Engine) -> None:
    store = JobStore(Limits(keep_jobs=2))
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        def ended(owner: str, status: str) -> Job:
            job = Job(Request("a"), owner, "tiny", "job", None, 0, loop)
            store.add(job)
            result = engine.generate("a", steps=2, seed=1) if status == "completed" else None
            job.end(status, result)
            return job

        theirs = ended("b", "completed")
        own = [ended("a", "completed"), *(ended("a", "cancelled") for _ in range(5))]
        assert store.get(theirs.id, "b") is theirs
        assert store.get(theirs.id, "a") is None
        assert store.get(own[0].id, "a") is own[0]  # what has pictures stays longest
        assert [job for job in own if store.get(job.id, "a")] == [own[0], own[-1]]


def test_a_full_queue_says_when_to_come_again(engine: Engine, held: Held) -> None:
    limits = Limits(max_queue=2)
    with (
        serving({"tiny": engine}, limits=limits) as (url, service),
        httpx.Client(base_url=url) as client,
    ):
        first = submit(client, **LONG)
        wait(client, first, "generating")
        for _ in range(2):
            submit(client)
        answer = client.post("/api/v1/jobs", json={"request": {"prompt": "a"}})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.json()["error"]["type"] == "BusyError"
        assert 'sdengine_rejected_total{reason="queue"} 1.0' in service.metrics.text().decode()
        held.may_go.set()
        wait(client, first)
        for _ in range(100):
            if submit_or_none(client) is not None:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the queue stayed full")


def submit_or_none(client: httpx.Client) -> dict[str, Any] | None:
    answer = client.post("/api/v1/jobs", json={"request": {"prompt": "a", "steps": 2}})
    return answer.json() if answer.status_code == 202 else None


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        ({"request": {"prompt": "a", "steps": 0}}, 400, "steps"),
        ({"request": {"prompt": "a", "sampler": "x"}}, 400, "sampler"),
        ({"request": {"prompt": "a", "width": 4096, "height": 4096}}, 400, ""),
        ({"request": {"prompt": "a" * 20_000}}, 400, "prompt"),
        ({"request": {"prompt": 3}}, 400, "prompt"),
        ({"request": {}}, 400, "prompt"),
        ({"request": None}, 400, "request"),
        ({}, 400, "request"),
        ([], 400, "request"),
        ({"request": {"prompt": "a"}, "bundle": "no"}, 400, "bundle"),
        ({"request": {"prompt": "a"}, "bundle": 3}, 400, "bundle"),
        ({"request": {"prompt": "a"}, "preview_every": -1}, 400, "preview_every"),
        ({"request": {"prompt": "a"}, "priority": 9}, 400, "priority"),
        ({"request": {"prompt": "a", "image": "/etc/passwd"}}, 400, "image"),
        ({"request": {"prompt": "a", "loras": {"x": 1}}}, 400, "loras"),
    ],
)
def test_bad_requests_are_told_the_field(
    engine: Engine, content: Any, status: int, field: str
) -> None:
    with serving({"tiny": engine}) as (url, service), httpx.Client(base_url=url) as client:
        answer = client.post("/api/v1/jobs", json=content)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"].get("field", "") == field, answer.text
        assert not len(service.jobs)


def test_tokens_have_their_own_jobs_and_quotas(engine: Engine, held: Held, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    secrets = [add_token(file, name) for name in ("a", "b", "c")]
    entries = json.loads(file.read_text())
    entries[0]["max_queue"] = 1
    entries[2]["images_per_hour"] = 2
    file.write_text(json.dumps(entries))
    with serving({"tiny": engine}, tokens=Tokens(read_tokens(file)), hosts=None) as (url, _):
        a, b, c = (
            httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"})
            for secret in secrets
        )
        with httpx.Client(base_url=url) as nobody, a, b, c:
            for path in ("/api/v1/info", "/api/v1/jobs", "/metrics", "/openapi.json"):
                assert nobody.get(path).status_code == 401, path
            assert nobody.post("/api/v1/jobs", json={}).headers["www-authenticate"] == "Bearer"
            assert nobody.get("/health").status_code == 200
            assert nobody.get("/api/v1/info", auth=("me", secrets[1])).status_code == 200
            assert nobody.get("/api/v1/info", auth=(secrets[1], "me")).status_code == 401
            first = submit(a, **LONG)
            wait(a, first, "generating")
            submit(a)
            assert a.post("/api/v1/jobs", json={"request": {"prompt": "a"}}).status_code == 429
            own = submit(b)
            for method in ("GET", "DELETE"):
                assert a.request(method, f"/api/v1/jobs/{own['id']}").status_code == 404
            assert [one["id"] for one in b.get("/api/v1/jobs").json()["jobs"]] == [own["id"]]
            too_many = c.post("/api/v1/jobs", json={"request": {"prompt": "a", "batch_size": 3}})
            assert too_many.status_code == 400
            submit(c, batch_size=2)
            spent = c.post("/api/v1/jobs", json={"request": {"prompt": "a"}})
            assert spent.status_code == 429
            assert int(spent.headers["retry-after"]) <= 1800
            held.may_go.set()


def test_results_are_kept_within_bounds(engine: Engine) -> None:
    limits = Limits(keep_jobs=3)
    with (
        serving({"tiny": engine}, limits=limits) as (url, service),
        httpx.Client(base_url=url) as client,
    ):
        jobs = []
        for _ in range(6):
            jobs.append(submit(client))
            wait(client, jobs[-1])
        found = client.get("/api/v1/jobs").json()["jobs"]
        assert [one["id"] for one in found] == [one["id"] for one in jobs[-3:]]
        assert client.get(f"/api/v1/jobs/{jobs[0]['id']}/result").status_code == 404
        assert len(service.jobs) == 3


def test_draining_finishes_what_is_there(engine: Engine, held: Held) -> None:
    with serving({"tiny": engine}) as (url, service), httpx.Client(base_url=url) as client:
        running = submit(client, steps=2)
        wait(client, running, "generating")
        waiting = submit(client, steps=4)
        drained: list[bool] = []
        thread = threading.Thread(target=lambda: drained.append(asyncio.run(service.drain(20))))
        thread.start()
        while not service.is_draining:
            time.sleep(0.001)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        refused = client.post("/api/v1/jobs", json={"request": {"prompt": "a"}})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        held.may_go.set()
        thread.join(20)
        assert drained == [True]
        for job in (running, waiting):
            assert wait(client, job)["status"] == "completed"


def test_draining_cancels_what_takes_too_long(engine: Engine, held: Held) -> None:
    with serving({"tiny": engine}) as (url, service), httpx.Client(base_url=url) as client:
        jobs = [submit(client, **LONG), submit(client)]
        wait(client, jobs[0], "generating")
        assert asyncio.run(service.drain(0.05)) is False
        for job in jobs:
            assert wait(client, job)["status"] == "cancelled"


def test_a_closed_engine_fails_the_request_alone(tmp_path: Path) -> None:
    engine = load(make_tiny_bundle(tmp_path / "tiny"), precision="fp32", threads=1)
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        wait(client, submit(client))
        engine.close()
        failed = wait(client, submit(client))
        assert failed["status"] == "failed"
        assert failed["error"]["type"] == DeviceError.__name__
        assert client.get("/health").status_code == 200
