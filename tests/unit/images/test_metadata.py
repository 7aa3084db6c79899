"""Metadata of images: what is written comes back, and what is hostile is refused."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdengine
from sdengine.errors import ConfigError
from sdengine.images.metadata import describe_image, read_metadata
from sdengine.images.provenance import Provenance, processor
from sdengine.images.result import Result
from sdengine.images.timings import Timings
from sdengine.inputs.loras import Lora
from sdengine.request.request import Request

PROVENANCE = Provenance(
    backend="openvino",
    precision="bf16",
    threads=2,
    version=sdengine.__version__,
    processor=processor(),
    model="demo",
    model_hash="a" * 64,
    bundle_hash="b" * 64,
)
NAN = float("nan")
FULL: dict[str, Any] = {
    "prompt": 'a "red" circle, (blue:1.2)\nsecond line: x',
    "negative_prompt": "ugly, Steps: 3",
    "width": 64,
    "height": 128,
    "steps": 7,
    "guidance_scale": 3.5,
    "guidance_rescale": 0.25,
    "guidance_interval": (0.2, 0.8),
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
    return Result(arrays, request, Timings({}, 0.0), PROVENANCE)


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
    assert metadata.provenance == replace(PROVENANCE, model="")


def test_image_of_a_batch_comes_back_alone(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"prompt": ("a", "b", "c"), "seed": (4, 9, 2), "variation_seed": 10}
    paths = result_of(**fields, variation_strength=0.5).save(tmp_path / "a.png")
    for index, path in enumerate(paths):
        request = Request(**read_metadata(path).request_fields())
        assert request == Request(**fields, variation_strength=0.5).only(index)
        assert request.batch_size == 1


def test_what_ran_it_comes_back(tmp_path: Path) -> None:
    (path,) = result_of(prompt="a").save(tmp_path / "a.png")
    found = read_metadata(path).provenance
    assert found.version == sdengine.__version__
    assert found.processor == processor()
    assert found.processor.split()[0] == platform.machine()


def test_loras_come_back(tmp_path: Path) -> None:
    loras = (Lora("cat", "1" * 64, 0.5, 0.8), Lora("dog", "2" * 64, 1.0, 1.0))
    request = Request("a", loras=loras)
    found = read_metadata(write(tmp_path / "a.png", sdengine=describe_image(request, PROVENANCE)))
    assert found.request_fields()["loras"] == loras
    assert "loras" not in json.loads(describe_image(Request("a"), PROVENANCE))["request"]


def test_a_vae_in_bands_comes_back_and_is_named(tmp_path: Path) -> None:
    used = replace(PROVENANCE, vae_bands=(("vae_decoder", 1024, 2048, 5000),))
    content = describe_image(Request("a"), used)
    metadata = read_metadata(write(tmp_path / "a.png", sdengine=content))
    assert metadata.provenance.vae_bands == used.vae_bands
    assert metadata.differences(PROVENANCE) == metadata.provenance.band_differences(used) == []
    then, now = "vae_decoder at 1024x2048 in bands of 5000 bytes", "the VAE's maps whole"
    for one, other, said in ((used, PROVENANCE, (then, now)), (PROVENANCE, used, (now, then))):
        (line,) = one.band_differences(other)
        assert line.startswith("the image was made with {}, not {}, ".format(*said))
    assert Provenance().band_differences(used) == []  # of another tool: nothing is known
    assert "vae_bands" not in describe_image(Request("a"), PROVENANCE)


@pytest.mark.parametrize(
    "bands",
    [
        "vae_decoder",
        {"vae_decoder": 1},
        [["vae_decoder", 64, 64]],
        [["unet", 64, 64, 5]],
        [["vae_decoder", 64, True, 5]],
        [["vae_decoder", 64, 64, -1]],
        [["vae_decoder", 64, 64, 1.5]],
        [["vae_decoder", 64, 64, 10**30]],
        [[["vae_decoder"], 64, 64, 5]],
        [["vae_decoder", 64, 64, 5]] * 17,
    ],
)
def test_bands_of_no_known_form_are_left_out(bands: object, tmp_path: Path) -> None:
    content = json.loads(describe_image(Request("a"), PROVENANCE)) | {"vae_bands": bands}
    path = write(tmp_path / "a.png", sdengine=json.dumps(content))
    assert read_metadata(path).provenance.vae_bands == ()


def test_differences_are_named(tmp_path: Path) -> None:
    (path,) = result_of(prompt="a").save(tmp_path / "a.png")
    metadata = read_metadata(path)
    assert metadata.differences(PROVENANCE) == []
    other = replace(PROVENANCE, bundle_hash="c" * 64, backend="torch", precision="fp32")
    assert metadata.differences(other) == [
        "the image was made with another bundle, so the picture will differ.",
        "the image was made with backend openvino, not torch.",
        "the image was made with precision bf16, not fp32.",
    ]
    older = replace(
        PROVENANCE, bundle_hash="", model_hash="d" * 10, version="0.0.1", processor="z80"
    )
    lines = older.differences(PROVENANCE)
    assert [line.split(" with ")[1].split(",")[0] for line in lines] == [
        "another model",
        "sdengine 0.0.1",
        "processor z80",
    ]
    assert Provenance(model_hash="a" * 10).differences(PROVENANCE) == []
    of_the_request = replace(PROVENANCE, model_hash="d" * 64)
    assert of_the_request.differences(PROVENANCE) == []


# As the release before requests had a JSON form of their own wrote it.
OLD_CHUNK = (
    '{"format": 1, "request": {"prompt": "a pink heart [red:green:0.4]", "negative_prompt": '
    '"", "width": 128, "height": 128, "steps": 6, "guidance_scale": 3.0, "guidance_rescale": '
    '0.0, "sampler": "dpmpp_2m", "schedule": "karras", "eta": null, "s_noise": null, '
    '"s_churn": null, "s_tmin": null, "s_tmax": null, "seed": 4, "batch_size": 1, '
    '"variation_seed": 6, "variation_strength": 0.3, "seed_width": 128, "seed_height": 128, '
    '"noise": "cuda", "emphasis": "original", "clip_skip": null, "original_size": null, '
    '"crop": [0, 0], "target_size": null, "aesthetic_score": 6.0, '
    '"negative_aesthetic_score": 2.5}, "model": {"name": "demo", "sha256": '
    '"d96394e7b89981ef8a9adf494deed37e1a2ac14e8e6e07bae9510258036ae093"}, "bundle": '
    '"efc41a81634a62163327ba694d208b00ff6c00cdfbc06b7faf57ec0dd1777a05", "backend": '
    '"native", "precision": "bf16", "threads": null, "version": "0.1.0", "processor": '
    '"x86_64 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8"}'
)


def test_a_chunk_of_the_first_release_is_read_and_written_again(tmp_path: Path) -> None:
    path = write(tmp_path / "old.png", sdengine=OLD_CHUNK)
    metadata = read_metadata(path)
    provenance = replace(metadata.provenance, model="demo")
    old, new = OLD_CHUNK, describe_image(Request(**metadata.request_fields()), provenance)
    old_request, new_request = (json.loads(chunk).pop("request") for chunk in (old, new))
    assert old_request.items() <= new_request.items()
    assert json.loads(old).keys() == json.loads(new).keys()
    assert {**json.loads(new), "request": old_request} == json.loads(old)


GOOD = {"format": 1, "request": {"prompt": "a"}, "model": {"sha256": "a"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"request": []}, "lacks the request"),
        ({"model": None}, "lacks the model"),
        ({"request": {"prompt": "a", "exec": "x"}}, "'exec': a request has no such field"),
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
    with pytest.raises(ConfigError, match="not a usable picture"):
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
    found = read_metadata(write(tmp_path / "a.png", sdengine=text)).provenance
    assert getattr(found, field) == ""


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
