"""The page's files: what is served, with which headers, and what must not stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine.serving import page
from sdengine.serving.app import create_app
from sdengine.serving.service import Service

FOLDER = Path(page.__file__).parent / "page"
SCRIPTS = sorted(name for name in page.FILES if name.endswith(".js"))
HTML = (FOLDER / "index.html").read_text(encoding="utf-8")
IDS = re.findall(r'\bid="([^"]+)"', HTML)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    with sdengine.load(bundle) as engine:
        app = create_app(Service({"tiny": engine}), drain_seconds=1.0)
        with TestClient(app, base_url="http://127.0.0.1") as found:
            yield found


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in page.FILES)])
def test_every_file_is_served_with_strict_headers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    name = path.removeprefix("/page/").strip("/") or "index.html"
    assert answer.content == (FOLDER / name).read_bytes()
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_what_is_known_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/")
    tag = first.headers["etag"]
    again = client.get("/", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers
    assert client.get("/", headers={"If-None-Match": '"other"'}).content == first.content
    assert client.get("/page/style.css").headers["etag"] != tag


def test_head_is_answered_without_a_body(client: TestClient) -> None:
    answer = client.head("/page/page.js")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "name", ["page.py", "README.md", "..%2Fpage.py", "%2e%2e/page.py", "style.css%00", "a/b.js"]
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_the_list_is_what_the_folder_has() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(page.FILES)


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    for name in page.FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        places = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not places, name
        assert not re.search(r"url\(|@import", text), name
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", HTML)
    assert re.findall(r"<script[^>]*>", HTML) == ['<script type="module" src="/page/page.js">']


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_text_becomes_markup_or_code(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    assert not re.search(unsafe, text)
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_find_what_they_name(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(page.FILES)
    assert set(re.findall(r'(?:byId|fromTemplate|\bon)\("([\w-]+)"', text)) <= set(IDS)


def test_ids_are_unique_and_every_input_has_a_label() -> None:
    assert len(IDS) == len(set(IDS))
    outside = re.sub(r"<template.*?</template>", "", HTML, flags=re.DOTALL)
    for tag in re.findall(r"<(?:input|select|textarea)\b[^>]*>", outside):
        found = re.search(r'\bid="([^"]+)"', tag)
        is_named = "aria-label=" in tag or (found and f'for="{found[1]}"' in outside)
        is_inside = re.search(r"<label[^>]*>\s*" + re.escape(tag), outside)
        assert is_named or is_inside, tag


def test_the_documents_of_the_api_do_not_list_it(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/" not in paths
    assert not [path for path in paths if path.startswith("/page")]


def test_info_has_what_the_page_offers(client: TestClient) -> None:
    info = client.get("/api/v1/info").json()
    assert set(info["labels"]) == {*info["samplers"], *info["schedules"]}
    assert "canny" in info["preprocessors"]
    assert "onnx" not in info["preprocessors"]  # reads a file
    assert info["file_names"]["loras"] == {}
    (bundle,) = info["bundles"].values()
    assert bundle["size_multiple"] in (None, *range(8, 129, 8))
    assert bundle["resolutions"]
