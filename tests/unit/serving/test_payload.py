from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.request.request import FIELDS, Request
from sdengine.serving.catalogue import KINDS, Catalogue
from sdengine.serving.limits import Limits
from sdengine.serving.payload import InBase64, read_payload
from sdengine.serving.payload_schema import payload_schema

PIXELS = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)


def png(pixels: Any = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def text(content: bytes | None = None) -> str:
    return base64.b64encode(png() if content is None else content).decode()


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    for kind, endings in KINDS.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / f"my-{kind}{endings[0]}").write_bytes(b"x")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    return Catalogue({kind: tmp_path / kind for kind in KINDS})


def read(catalogue: Catalogue, **fields: Any) -> dict[str, Any]:
    return read_payload({"prompt": "a", **fields}, catalogue, InBase64(1000))


def test_pictures_are_read_from_base64(catalogue: Catalogue) -> None:
    for given in (text(), f"data:image/png;base64,{text()}", text()[:40] + "\r\n" + text()[40:]):
        found = read(catalogue, image=given, controls=[{"network": "edges", "image": given}])
        assert found["image"] == png()
        assert found["controls"] == [{"network": "edges", "image": png()}]
    found = read(
        catalogue,
        regions=[{"mask": text(), "weight": 2}, {"box": [0, 0, 1, 1]}],
        ip_adapters=[{"file": "my-ip_adapter", "image": [text(), text()]}],
    )
    assert found["regions"][0] == {"mask": png(), "weight": 2}
    assert found["ip_adapters"][0]["image"] == [png(), png()]
    picture: dict[str, Any] = {"image": png()}
    request = Request("a", width=16, height=8, **picture)
    assert request.image is not None


def test_files_are_had_by_name(catalogue: Catalogue, tmp_path: Path) -> None:
    found = read(
        catalogue,
        loras={"my-lora": 0.5},
        hypernetworks={"my-hypernetwork": 1},
        embeddings=["my-embedding"],
        model={"my-model": 0.5, "bundle": 0.5},
        hires_model="my-upscaler",
        steps=None,
        version=1,
    )
    assert found == {
        "prompt": "a",
        "loras": {tmp_path / "lora/my-lora.safetensors": 0.5},
        "hypernetworks": {tmp_path / "hypernetwork/my-hypernetwork.pt": 1},
        "embeddings": [tmp_path / "embedding/my-embedding.safetensors"],
        "model": {tmp_path / "model/my-model.safetensors": 0.5, "bundle": 0.5},
        "hires_model": tmp_path / "upscaler/my-upscaler.onnx",
    }
    assert read(catalogue, loras={"my-lora": [0.5, 1]})["loras"].popitem()[1] == (0.5, 1)
    assert read(catalogue, model="bundle")["model"] == "bundle"


@pytest.mark.parametrize("field", ["image", "mask", "depth"])
@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd",
        "out.png",
        "http://169.254.169.254/latest",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "",
        3,
        ["a"],
        {"path": "out.png"},
        "data:image/png;base64,!!!",
        "data:text/html;base64,PGI+",
    ],
)
def test_no_picture_is_anything_else(catalogue: Catalogue, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        read(catalogue, **{field: value})


def test_a_picture_is_refused_by_what_its_head_says(catalogue: Catalogue) -> None:
    large = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"image: '40x40' is not accepted; .* 1000 pixels"):
        read(catalogue, image=text(png(large)))
    head = bytearray(png(np.zeros((8, 8), np.uint8)))
    head[16:24] = (50_000).to_bytes(4, "big") * 2  # a bomb: the head claims what is not there
    with pytest.raises(ConfigError, match=r"^image: "):
        read(catalogue, image=text(bytes(head)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loras", {"../secret": 1}),
        ("loras", {"my-lora.safetensors": 1}),
        ("loras", {"/etc/passwd": 1}),
        ("loras", ["my-lora"]),
        ("loras", "my-lora"),
        ("hypernetworks", {"no": 1}),
        ("embeddings", "my-embedding"),
        ("embeddings", ["../secret"]),
        ("embeddings", [["my-embedding"]]),
        ("model", "/etc"),
        ("model", {"../secret": 1}),
        ("model", 3),
        ("hires_model", "../upscaler/my-upscaler.onnx"),
        ("hires_model", {}),
    ],
)
def test_nothing_is_had_by_another_name(catalogue: Catalogue, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        read(catalogue, **{field: value})
    with pytest.raises(ConfigError, match=r"^ip_adapter.file: .* 'my-ip_adapter'"):
        read(catalogue, ip_adapters=[{"file": "my-ip-adapter", "image": text()}])


def test_other_faults_are_named(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match=r"'sed': .* Did you mean seed"):
        read(catalogue, sed=1)
    with pytest.raises(ConfigError, match="prompt: it is missing"):
        read_payload({}, catalogue, InBase64(10))
    with pytest.raises(ConfigError, match="version: 2"):
        read(catalogue, version=2)
    for field in ("controls", "regions", "ip_adapters"):
        with pytest.raises(ConfigError, match=f"{field}: .* a list of objects"):
            read(catalogue, **{field: "x"})
    with pytest.raises(ConfigError, match=r"ip_adapter.embeds: "):
        read(catalogue, ip_adapters=[{"file": "my-ip_adapter", "embeds": [[1], [2, 3]]}])
    with pytest.raises(ConfigError, match=r"ip_adapter.embeds: "):
        read(catalogue, ip_adapters=[{"file": "my-ip_adapter", "embeds": "/etc/passwd"}])
    with pytest.raises(ConfigError, match=r"request: .* an object"):
        read_payload([], catalogue, InBase64(10))  # type: ignore[arg-type]


def test_names_that_two_files_have_are_places(tmp_path: Path) -> None:
    for place in ("a/cat.safetensors", "b/cat.safetensors", "dog.pt", ".hidden.pt", "note.txt"):
        file = tmp_path / place
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text("{}")
    (peft / "adapter_model.safetensors").write_bytes(b"x")
    catalogue = Catalogue({"lora": tmp_path})
    assert list(catalogue.files("lora")) == [
        "a/cat.safetensors",
        "b/cat.safetensors",
        "dog",
        "peft",
    ]
    assert catalogue.path("loras", "lora", "peft") == peft
    (tmp_path / "new.pt").write_bytes(b"x")
    assert "new" not in catalogue.files("lora")
    catalogue.refresh()
    assert "new" in catalogue.files("lora")
    with pytest.raises(ConfigError, match="folder of loras: "):
        Catalogue({"lora": tmp_path / "dog.pt"})
    with pytest.raises(ConfigError, match="kind: "):
        Catalogue({"loras": tmp_path})


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("width, height", {"width": 1024, "height": 1032}),
        ("hires", {"hires": 3.0}),
        ("steps", {"steps": 51}),
        ("steps", {"steps": 30, "hires": 1.5}),
        ("batch_size", {"batch_size": 5}),
        ("prompt", {"prompt": "a" * 101}),
        ("negative_prompt", {"negative_prompt": ("a", "b" * 101)}),
    ],
)
def test_limits(field: str, request_: dict[str, Any]) -> None:
    limits = Limits(max_pixels=1 << 20, max_steps=50, max_images=4, max_prompt_characters=100)
    limits.check(Request("a", width=1024, height=1024, steps=50, batch_size=4))
    with pytest.raises(ConfigError, match=f"^{field}: .* at most"):
        limits.check(Request(**{"prompt": "a", **request_}))
    with pytest.raises(ConfigError, match="max_queue: 0"):
        Limits(max_queue=0)


def test_the_schema_knows_every_field() -> None:
    schema = payload_schema()
    assert set(schema["properties"]) == {*FIELDS, "version"}
    json.dumps(schema)
    assert schema["properties"]["steps"]["maximum"] == 1000
    assert all("description" in one for name, one in schema["properties"].items() if name in FIELDS)
