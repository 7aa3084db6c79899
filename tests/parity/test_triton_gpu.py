"""The triton backend on a GPU: real graphs, against eager torch there and on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine.benchmarks.measures import psnr
from sdengine.building.build import build
from sdengine.bundle.reader import Bundle, open_bundle

pytestmark = pytest.mark.gpu
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("triton") / "demo"
    return open_bundle(build("demo", path, target="torch", resolutions=(128, 192)).path)


def picture(bundle: Bundle, backend: str, precision: str, **options: Any) -> np.ndarray[Any, Any]:
    with sdengine.load(bundle.root, backend, precision) as engine:
        picture: np.ndarray[Any, Any] = engine.generate(PROMPT, seed=7, **options).arrays[0]
        return picture


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("backend", ["torch-cuda", "triton"])
def test_pictures_are_those_of_the_cpu(bundle: Bundle, backend: str, precision: str) -> None:
    expected = picture(bundle, "torch", "fp32")
    assert psnr(picture(bundle, backend, precision), expected) > 30


def test_replays_follow_their_inputs_at_every_size(bundle: Bundle) -> None:
    sizes = [(128, 128), (192, 192), (128, 128)]
    with sdengine.load(bundle.root, "triton", "fp16") as engine:
        for seed in range(2):
            for width, height in sizes:
                options: dict[str, Any] = {"seed": seed, "width": width, "height": height}
                found = engine.generate(PROMPT, **options).arrays[0]
                with sdengine.load(bundle.root, "torch-cuda", "fp32") as eager:
                    assert psnr(found, eager.generate(PROMPT, **options).arrays[0]) > 30
        report: Any = engine.session
        assert {c.op for c in report.report()["unet"] if c.replaced} >= {
            "group_norm_silu",
            "layer_norm",
            "geglu",
        }


def test_memory_is_given_back(bundle: Bundle) -> None:
    picture(bundle, "triton", "fp16")  # libraries keep their workspaces
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        picture(bundle, "triton", "fp16", steps=2)
    assert torch.cuda.memory_allocated() <= before
