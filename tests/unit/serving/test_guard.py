"""What stands before the server: bodies, hosts, pages of other sites, ids of requests."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from support.served import serving
from support.tiny_bundle import make_tiny_bundle

from sdengine.engine import Engine
from sdengine.loading import load
from sdengine.serving.limits import Limits


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    tiny = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


def test_bodies_are_bounded_in_size_and_time(engine: Engine) -> None:
    limits = Limits(max_body_bytes=1000, max_bodies_bytes=1500, body_seconds=1)
    with serving({"tiny": engine}, limits=limits) as (url, service):
        port = int(url.rpartition(":")[2])
        with httpx.Client(base_url=url) as client:
            large = b"x" * 2000
            assert client.post("/api/v1/jobs", content=large).status_code == 413
            assert client.post("/api/v1/jobs", content=iter([large])).status_code == 413
        heads = [
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{",
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n",
        ]
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(heads[0] + b" " * 850)
            time.sleep(0.2)
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(heads[1] + b" " * 850)  # for which the first one leaves no room
                assert b"429" in other.recv(1000).split(b"\r\n")[0]
            assert b"408" in slow.recv(1000).split(b"\r\n")[0]
        both = b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
        with socket.create_connection(("127.0.0.1", port)) as twice:
            twice.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + both)
            assert b"400" in twice.recv(1000).split(b"\r\n")[0]
        claims = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for claim in claims:  # what is only claimed takes nothing from others
            claim.sendall(heads[1])
        with httpx.Client(base_url=url) as client:
            assert client.post("/api/v1/jobs", content=b"{}").status_code == 400
        for claim in claims:
            claim.close()
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(heads[0])
        for _ in range(200):
            if "sdengine_body_bytes 0.0" in service.metrics.text().decode():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("bytes of bodies are still counted as held")


def test_json_of_millions_of_values_is_refused_unread(engine: Engine) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        for content in (b'{"request":[' + b"[]," * 300_000 + b"[]]}", b"[" * 300_000):
            answer = client.post("/api/v1/jobs", content=content)
            assert answer.status_code == 400
            assert "values" in answer.json()["error"]["message"]
        picture = {"request": {"prompt": "a", "image": "a" * 3_000_000}}  # one value
        assert "values" not in client.post("/api/v1/jobs", json=picture).text


def test_pages_of_other_sites_cannot_ask(engine: Engine) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        for headers, status in (
            ({"Host": "attacker.example"}, 421),
            ({"Host": "localhost:1234"}, 200),
            ({"Host": "[::1]:7860"}, 200),
            ({"Host": "127.0.0.1.attacker.example"}, 421),
            ({"Host": ""}, 421),
            ({"Origin": "https://attacker.example"}, 403),
            ({"Origin": "http://localhost@attacker.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Origin": "http://localhost:7860"}, 200),
        ):
            assert client.get("/api/v1/info", headers=headers).status_code == status, headers


def test_request_ids_go_round(engine: Engine) -> None:
    with serving({"tiny": engine}) as (url, _), httpx.Client(base_url=url) as client:
        answer = client.get("/health", headers={"X-Request-Id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert float(answer.headers["x-process-time"]) >= 0
        odd = client.get("/health", headers={"X-Request-Id": "a b"})
        assert odd.headers["x-request-id"] not in ("", "a b")
