"""The embedded demo model through the real command and the API."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.engine import Engine
from sdengine.training.scoring import analyse

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


def test_first_command_shows_what_the_prompt_says(run: Run, tmp_path: Path) -> None:
    done = run("generate", PROMPT, "--seed", 7, "-o", "out.png")
    assert (done.returncode, done.stdout) == (0, "out.png (seed 7)\n"), done.stderr
    with Image.open(tmp_path / "out.png") as image:
        background, regions = analyse(np.asarray(image))
    assert background == "blue"
    assert [(region.color, region.shape) for region in regions] == [("red", "circle")]


def test_every_sampler_shows_the_prompt(demo: Engine) -> None:
    for sampler in ("ddim", "euler", "euler_a", "dpmpp_2m"):
        for schedule in ("normal", "karras"):
            result = demo.generate(PROMPT, sampler=sampler, schedule=schedule, seed=7)
            background, regions = analyse(result.arrays[0])
            found = (background, [region.color for region in regions])
            assert found == ("blue", ["red"]), (sampler, schedule)


def test_negative_prompt_takes_the_colour_away(demo: Engine) -> None:
    prompt, colors = "a circle", []
    for negative in ("", "red"):
        images = demo.generate(prompt, negative, seed=0, batch_size=24, guidance_scale=5).arrays
        colors.append([region.color for image in images for region in analyse(image)[1]])
    without, with_negative = colors
    assert with_negative.count("red") <= without.count("red") / 2


def test_every_built_size(demo: Engine) -> None:
    resolutions = demo.bundle.manifest.resolutions
    assert len(resolutions) >= 3
    for width, height in resolutions:
        result = demo.generate(PROMPT, width=width, height=height, seed=7)
        assert result.arrays[0].shape == (height, width, 3)
        assert np.ptp(result.arrays[0]) > 100


def test_precisions_agree(demo: Engine) -> None:
    with sdengine.load("demo", precision="fp32") as exact:
        expected = exact.generate(PROMPT, seed=7).arrays[0].astype(float)
    found = demo.generate(PROMPT, seed=7).arrays[0]
    error = np.square(found - expected).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 30


def test_batch_equals_its_images_alone(demo: Engine) -> None:
    batch = demo.generate(PROMPT, seed=3, batch_size=3, steps=10).arrays
    for index, array in enumerate(batch):
        alone = demo.generate(PROMPT, seed=3 + index, steps=10).arrays[0]
        error = np.square(array.astype(float) - alone).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 30


def test_time_outside_the_networks_is_small(demo: Engine) -> None:
    demo.generate(PROMPT, seed=7)
    timings = demo.generate(PROMPT, seed=7).timings
    assert timings.load_ms == 0
    assert timings.other_ms < timings.unet_ms


def test_inspect_verify_doctor(run: Run) -> None:
    assert json.loads(run("inspect", "demo", "--json").stdout)["target"] == "native"
    assert "all as built" in run("verify", "demo").stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert found["ready"]
