"""Metadata of images: what is written comes back, and what is hostile is refused."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdengine
from sdengine.errors import ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.images.provenance import processor
from sdengine.images.result import Result, Timings
from sdengine.request.request import Request

TIMINGS = Timings(0, 0, 0, 0, 0, 0, 1, 1, 1)
FULL: dict[str, Any] = {
    "prompt": 'a "red" circle, (blue:1.2)\nsecond line: x',
    "negative_prompt": "ugly, Steps: 3",
    "width": 64,
    "height": 128,
    "steps": 7,
    "guidance_scale": 3.5,
    "guidance_rescale": 0.25,
    "sampler": "euler_a",
    "schedule": "beta",
    "eta": 0.5,
    "s_noise": 1.25,
    "seed": 2**63 + 1,
    "variation_seed": 5,
    "variation_strength": 0.125,
    "seed_width": 64,
    "seed_height": 64,
    "noise": "cuda",
    "emphasis": "no_norm",
    "clip_skip": 2,
    "original_size": (512, 768),
    "crop": (8, 16),
    "aesthetic_score": 7.5,
}


def result_of(**fields: Any) -> Result:
    request = Request(**fields)
    arrays = tuple(np.zeros((8, 8, 3), np.uint8) for _ in range(request.batch_size))
    extra: dict[str, Any] = {"bundle_hash": "b" * 64, "threads": 2}
    return Result(
        arrays, request.seeds, request, TIMINGS, "demo", "a" * 64, "openvino", "bf16", **extra
    )


def write(path: Path, **chunks: str) -> Path:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_exact_request_comes_back(tmp_path: Path) -> None:
    (path,) = result_of(**FULL).save(tmp_path / "a.png")
    metadata = read_metadata(path)
    assert Request(**metadata.request_fields()) == Request(**FULL)
    assert (metadata.backend, metadata.precision, metadata.threads) == ("openvino", "bf16", 2)
    assert (metadata.model_hash, metadata.bundle_hash) == ("a" * 64, "b" * 64)


def test_image_of_a_batch_comes_back_alone(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"prompt": ("a", "b", "c"), "seed": (4, 9, 2), "variation_seed": 10}
    paths = result_of(**fields, variation_strength=0.5).save(tmp_path / "a.png")
    for index, path in enumerate(paths):
        request = Request(**read_metadata(path).request_fields())
        assert request == Request(**fields, variation_strength=0.5).only(index)
        assert request.batch_size == 1


def test_what_ran_it_comes_back(tmp_path: Path) -> None:
    (path,) = result_of(prompt="a").save(tmp_path / "a.png")
    metadata = read_metadata(path)
    assert metadata.version == sdengine.__version__
    assert metadata.processor == processor()
    assert metadata.processor.split()[0] == platform.machine()


def made_with(bundle_sha256: str, source_sha256: str, backend: str, precision: str) -> Any:
    manifest = SimpleNamespace(source=SimpleNamespace(sha256=source_sha256))
    return SimpleNamespace(
        bundle=SimpleNamespace(manifest=manifest, sha256=bundle_sha256),
        backend=SimpleNamespace(name=backend),
        precision=precision,
    )


def test_differences_are_named(tmp_path: Path) -> None:
    (path,) = result_of(prompt="a").save(tmp_path / "a.png")
    metadata = read_metadata(path)
    assert metadata.differences(made_with("b" * 64, "a" * 64, "openvino", "bf16")) == []
    assert metadata.differences(made_with("c" * 64, "a" * 64, "torch", "fp32")) == [
        "the image was made with another bundle, so the picture will differ.",
        "the image was made with backend openvino, not torch.",
        "the image was made with precision bf16, not fp32.",
    ]
    older = replace(metadata, bundle_hash="", model_hash="d" * 10, version="0.0.1", processor="z80")
    lines = older.differences(made_with("b" * 64, "a" * 64, "openvino", "bf16"))
    assert [line.split(" with ")[1].split(",")[0] for line in lines] == [
        "another model",
        "sdengine 0.0.1",
        "processor z80",
    ]


GOOD = {"format": 1, "request": {"prompt": "a"}, "model": {"sha256": "a"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"request": []}, "lacks the request"),
        ({"model": None}, "lacks the model"),
        ({"request": {"prompt": "a", "exec": "x"}}, "'exec' is unknown"),
        ({"request": {}}, "prompt"),
        ({"request": {"prompt": "a", "steps": 10**9}}, "steps"),
        ({"request": {"prompt": "a", "width": "64"}}, "width"),
        ({"request": {"prompt": 3}}, "prompt"),
    ],
)
def test_bad_chunk(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.png", sdengine=json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=message):
        read_metadata(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '"x"', "NaN"])
def test_chunk_that_is_no_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"sdengine chunk|says nothing"):
        read_metadata(write(tmp_path / "a.png", sdengine=text))


def test_files_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says nothing"):
        read_metadata(write(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="not a usable PNG"):
        read_metadata(tmp_path / "b.png")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metadata(tmp_path / "missing.png")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metadata(tmp_path)
    whole = write(tmp_path / "c.png", sdengine=json.dumps(GOOD)).read_bytes()
    (tmp_path / "c.png").write_bytes(whole[:40])
    with pytest.raises(ConfigError):
        read_metadata(tmp_path / "c.png")


@pytest.mark.parametrize("field", ["backend", "precision", "version", "processor"])
@pytest.mark.parametrize("value", ["\x1b[2J", "a\nb", "a" * 100, 3, None, ["a"], ""])
def test_names_that_are_none_are_left_out(tmp_path: Path, field: str, value: Any) -> None:
    text = json.dumps({**GOOD, field: value})
    assert getattr(read_metadata(write(tmp_path / "a.png", sdengine=text)), field) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=60), negative=st.text(max_size=60))
def test_any_prompt_comes_back_exactly(tmp_path: Path, prompt: str, negative: str) -> None:
    (path,) = result_of(prompt=prompt, negative_prompt=negative).save(tmp_path / "a.png")
    fields = read_metadata(path).request_fields()
    assert (fields["prompt"], fields["negative_prompt"]) == (prompt, negative)


def test_stacked_images_go_by_dlpack() -> None:
    result = result_of(prompt="a", batch_size=3)
    stacked = result.stacked
    assert stacked.shape == (3, 8, 8, 3)
    assert np.shares_memory(np.from_dlpack(stacked), stacked)
