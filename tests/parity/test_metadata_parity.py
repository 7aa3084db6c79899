"""Public readers of image metadata understand our files, and we read what Pillow reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from sdengine.images.picture_text import read_text
from sdengine.images.provenance import Provenance
from sdengine.images.result import Result
from sdengine.images.timings import Timings
from sdengine.request.request import Request


def result_of(prompt: str, negative: str = "", **fields: Any) -> Result:
    given = {"width": 64, "height": 128, "seed": 77, **fields}
    request = Request(prompt, negative, **given)
    arrays = (np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3),)
    provenance = Provenance("openvino", "fp32", model="demo v2", model_hash="ab" * 32)
    return Result(arrays, request, Timings({}, 0.0), provenance)


def parsed(path: Path) -> PromptInfo:
    found = ParserManager().parse(path)
    assert found is not None
    return found


PROMPTS = (
    "a red circle",
    "(a:1.2), b: c, [d|e], \\(f\\)",
    "gr\xfcn \u8d64 \U0001f534",
    "a\nb: c\n\nd",
    "a \"quoted\" 'word', {x: 1}",
    "Steps: 3 is a film",
    "Model: x, Seed: 5",
    "a\tb\\n<lora:x:1>",
)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", ["", "blue, green", PROMPTS[3], PROMPTS[6]])
def test_public_reader(tmp_path: Path, prompt: str, negative: str) -> None:
    (path,) = result_of(prompt, negative, steps=7, clip_skip=2).save(tmp_path / "a.png")
    found = parsed(path)
    assert [p.value for p in found.prompts] == [prompt]
    assert [p.value for p in found.negative_prompts] == ([negative] if negative else [])
    (sampler,) = found.samplers
    assert sampler.name == "DPM++ 2M"
    expected = {"steps": "7", "cfg_scale": "7.5", "seed": "77", "scheduler": "Karras"}
    assert sampler.parameters == expected
    assert {(m.name, m.hash) for m in found.models} == {("demo v2", "ab" * 5)}


def test_public_reader_finds_every_field(tmp_path: Path) -> None:
    result = result_of(
        "a",
        sampler="euler",
        schedule="simple",
        variation_seed=5,
        variation_strength=0.25,
        seed_width=128,
        seed_height=64,
        noise="cuda",
        emphasis="none",
        clip_skip=2,
        s_churn=3.0,
        s_tmin=0.5,
        s_tmax=20.0,
        s_noise=1.01,
        guidance_rescale=0.7,
    )
    (path,) = result.save(tmp_path / "a.png")
    found = dict(parsed(path).metadata)
    del found["Version"]
    assert found == {
        "Size": "64x128",
        "Variation seed": "5",
        "Variation seed strength": "0.25",
        "Seed resize from": "128x64",
        "Clip skip": "2",
        "Sigma churn": "3",
        "Sigma tmin": "0.5",
        "Sigma tmax": "20",
        "Sigma noise": "1.01",
        "CFG Rescale": "0.7",
        "Emphasis": "Ignore",
        "RNG": "NV",
    }


@pytest.mark.parametrize("prompt", PROMPTS)
def test_texts_are_those_that_pillow_reads(tmp_path: Path, prompt: str) -> None:
    (path,) = result_of(prompt, prompt).save(tmp_path / "a.png")
    with Image.open(path) as image:
        expected = {key: str(text) for key, text in image.info.items()}
    assert expected.keys() == {"parameters", "sdengine"}
    assert read_text(path, expected) == expected


def test_torch_takes_the_stacked_images() -> None:
    stacked = result_of("a").stacked
    tensor = torch.utils.dlpack.from_dlpack(stacked)
    assert tensor.shape == (1, 8, 8, 3)
    assert tensor.data_ptr() == stacked.ctypes.data
