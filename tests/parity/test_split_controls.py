"""Controls, IP-Adapters and hypernetworks beside split guidance: the same pictures, to the byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.controls import CANNY, build_steered, calls, canny, make_steered

import sdengine
from sdengine.backends.split_session import SplitModule
from sdengine.engine import Engine

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(CPUS) < 2, reason="two processors cannot be had"),
]
PLACES = "/".join(map(str, CPUS[:2]))
USUAL: dict[str, Any] = {"steps": 4, "guidance_scale": 4.0, "seed": 5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_steered(tmp_path_factory.mktemp("controls"), "tiny", "canny")
    return build_steered(folder, "native", "canny", batch=2)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engines(bundle: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine]]:
    with (
        sdengine.load(bundle, precision=request.param) as whole,
        sdengine.load(bundle, precision=request.param, split_guidance=PLACES) as halves,
    ):
        yield whole, halves


@pytest.mark.parametrize(
    "options",
    [
        {"controls": [canny()]},
        {"controls": [canny(mode="prompt")], "batch_size": 2},
        {"controls": [canny(mode="control", end=0.6)]},
        {"controls": [canny(start=0.3)], "guidance_interval": (0.2, 0.8)},
        {"controls": [canny()], "seamless": "x"},
        {"controls": [canny()], "prompt": "a circle AND a star"},
    ],
)
def test_pictures_are_the_same_to_the_byte(
    engines: tuple[Engine, Engine], options: dict[str, Any]
) -> None:
    given = {"prompt": "a large red circle", **USUAL, **options}
    wanted, found = (engine.generate(**given) for engine in engines)
    assert [one.tobytes() for one in found.arrays] == [one.tobytes() for one in wanted.arrays]
    assert calls(found) == calls(wanted) > 0
    plain = engines[0].generate(**{**given, "controls": ()})
    assert plain.arrays[0].tobytes() != found.arrays[0].tobytes()


def test_controls_are_split_too(engines: tuple[Engine, Engine]) -> None:
    _, halves = engines
    halves.generate("a circle", controls=[canny()], **USUAL)
    module: Any = halves._networks.get(CANNY, 2, 64, 64)
    assert isinstance(module, SplitModule)
    assert [part.inputs[0].shape[0] for _, part in module._parts] == [1, 1]
