"""A public reader of image metadata understands our files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sd_parsers import ParserManager

from sdengine.request import Request
from sdengine.result import Result, Timings


def result_of(prompt: str, negative: str, **fields: int) -> Result:
    request = Request(prompt, negative, width=64, height=128, seed=77, **fields)  # type: ignore[arg-type]
    arrays = (np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3),)
    timings = Timings(0, 0, 0, 0, 0, 0, 1, 1, 1)
    return Result(arrays, request.seeds, request, timings, "demo v2", "ab" * 32, "openvino", "fp32")


@pytest.mark.parametrize("prompt", ["a red circle", "(a:1.2), b: c", "grün 赤 \U0001f534", "a\nb"])
@pytest.mark.parametrize("negative", ["", "blue, green"])
def test_public_reader(tmp_path: Path, prompt: str, negative: str) -> None:
    (path,) = result_of(prompt, negative, steps=7, clip_skip=2).save(tmp_path / "a.png")
    found = ParserManager().parse(path)
    assert found is not None
    assert [p.value for p in found.prompts] == [prompt]
    assert [p.value for p in found.negative_prompts] == ([negative] if negative else [])
    (sampler,) = found.samplers
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters["seed"] == "77"
    assert {m.name for m in found.models} == {"demo v2"}


def test_torch_takes_the_stacked_images() -> None:
    stacked = result_of("a", "").stacked
    tensor = torch.utils.dlpack.from_dlpack(stacked)
    assert tensor.shape == (1, 8, 8, 3)
    assert tensor.data_ptr() == stacked.ctypes.data
