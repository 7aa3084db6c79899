"""Hostile clients of the whole server: bodies by its own schema, bombs, traversal, sizes."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from support.served import serving
from support.tiny_bundle import make_tiny_bundle

from sdengine.loading import load
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.limits import Limits

# Of each call; SDENGINE_HOSTILE_BODIES=2000 is for a machine with time.
EXAMPLES = int(os.environ.get("SDENGINE_HOSTILE_BODIES", "3"))
PHASES = "fuzzing" if EXAMPLES < 10 else "examples,coverage,fuzzing"
MOST_GROWTH_BYTES = 200 << 20


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "loras").mkdir()
    (folder / "loras" / "good.safetensors").write_bytes(b"x")
    limits = Limits(max_steps=4, max_images=2, max_body_bytes=4 << 20, max_picture_pixels=1 << 20)
    catalogue = Catalogue({"lora": folder / "loras"})
    with (
        load(make_tiny_bundle(folder / "tiny"), precision="fp32", threads=1) as engine,
        serving({"tiny": engine}, limits=limits, catalogue=catalogue) as (url, _),
    ):
        yield url


def test_bodies_by_the_schema_give_no_fault(url: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--checks", "not_a_server_error", "--max-examples", str(EXAMPLES)),
            *("--phases", PHASES, "--generation-deterministic"),
            *("--request-timeout", "60", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def bomb(width: int, height: int) -> str:
    """Return a PNG whose head claims a size that its few bytes decode to, in base64."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    pixels = zlib.compress(b"\0" * ((width + 1) * height), 9)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


def text_bomb() -> str:
    """Return a small PNG with a text chunk that inflates to far more than the body, in base64."""
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("parameters", "a" * (64 << 20), zip=True)
    Image.new("RGB", (64, 64)).save(buffer, "PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


NAMES = ("../../etc/passwd", "/etc/passwd", "good\0", "..\\good", "good/../good", "file:///etc")
CALLS: list[tuple[str, dict[str, Any]]] = [
    *(("/api/v1/jobs", {"request": {"prompt": "a", "loras": {name: 1}}}) for name in NAMES),
    *(("/api/v1/jobs", {"request": {"prompt": "a", "image": name}}) for name in NAMES),
    *(("/sdapi/v1/img2img", {"prompt": "a", "init_images": [name]}) for name in NAMES),
    *(
        ("/sdapi/v1/txt2img", {"prompt": "a", "override_settings": {"sd_model_checkpoint": name}})
        for name in NAMES
    ),
    *(("/v1/images/generations", {"prompt": "a", "model": name}) for name in NAMES),
    ("/api/v1/jobs", {"request": {"prompt": "a " * 500_000}}),
    ("/sdapi/v1/txt2img", {"prompt": "a " * 500_000}),
    ("/v1/images/generations", {"prompt": "a " * 500_000}),
    ("/sdapi/v1/txt2img", {"prompt": "[" * 9_000 + "a" + ":0.5]" * 9_000}),
    ("/api/v1/jobs", {"request": {"prompt": "a", "image": bomb(20_000, 20_000)}}),
    ("/sdapi/v1/img2img", {"prompt": "a", "init_images": [bomb(20_000, 20_000)]}),
    ("/sdapi/v1/extra-single-image", {"image": bomb(20_000, 20_000)}),
    ("/sdapi/v1/extra-single-image", {"image": bomb(1000, 1000), "upscaling_resize": 1000}),
    ("/sdapi/v1/png-info", {"image": bomb(20_000, 20_000)}),
    ("/sdapi/v1/png-info", {"image": text_bomb()}),
    ("/api/v1/jobs", {"request": {"prompt": "a", "seed": 2**70, "width": 1e308}}),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_bombs_and_names_are_refused(url: str, number: int) -> None:
    path, body = CALLS[number]
    before = psutil.Process().memory_info().rss
    answer = httpx.post(url + path, json=body, timeout=60)
    assert 400 <= answer.status_code < 500 or path == "/sdapi/v1/png-info", answer.text[:500]
    assert answer.status_code < 500, answer.text[:500]
    assert "root:" not in answer.text
    assert psutil.Process().memory_info().rss - before < MOST_GROWTH_BYTES


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/edits"])
def test_what_is_too_large_is_refused_before_it_is_read(url: str, path: str) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1 << 20
            yield b"\0" * (1 << 20)

    before = psutil.Process().memory_info().rss
    try:
        status = httpx.post(url + path, content=pieces(), timeout=60).status_code
    except httpx.TransportError:  # it was cut off
        status = 413
    assert status == 413
    assert sent < 100 << 20
    assert psutil.Process().memory_info().rss - before < MOST_GROWTH_BYTES
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as declared:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {200 << 20}\r\n\r\n"
        declared.sendall(head.encode())
        assert b"413" in declared.recv(1000).split(b"\r\n")[0]


def test_deeply_nested_prompts_are_read_or_refused(url: str) -> None:
    for prompt in ("(" * 9_000, "[" * 9_000, "a AND " * 1_500, "[a:" * 3_000, "<lora:" * 1_500):
        answer = httpx.post(f"{url}/api/v1/jobs", json={"request": {"prompt": prompt}}, timeout=60)
        assert answer.status_code < 500, answer.text[:500]


def test_deep_and_odd_json_is_refused(url: str) -> None:
    for content in (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", b"null", b"1e999", b"NaN"):
        for path in ("/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations"):
            answer = httpx.post(
                url + path, content=content, headers={"Content-Type": "application/json"}
            )
            assert 400 <= answer.status_code < 500, (path, content[:10], answer.text[:200])
