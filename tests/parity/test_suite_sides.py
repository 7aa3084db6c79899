"""Sides of the benchmark suite: every system gives the picture that diffusers gives."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdengine.benchmarks.bundles import Model, bundle_of, checkpoint_of
from sdengine.benchmarks.measures import psnr, relative_rms
from sdengine.benchmarks.suite.setting import TASKS, Setting
from sdengine.benchmarks.suite.sides.side import STAGES, Place
from sdengine.benchmarks.suite.systems import OURS, PEERS, missing
from sdengine.benchmarks.suite.task_inputs import build_flags
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.timesteps import sigmas_at, spaced_timesteps

pytestmark = pytest.mark.slow

STEPS = 3
LEAST_PSNR_DB = 40.0
SYSTEMS = {
    "native": OURS["native"],
    "eager": PEERS["eager"],
    "onnxruntime": PEERS["onnxruntime"],
    "openvino-genai": PEERS["openvino-genai"],
}
Serve = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serve a task by a system, each pair once."""
    cache = tmp_path_factory.mktemp("bench")
    found: dict[tuple[str, str], Any] = {}

    def serve(name: str, task: str) -> Any:
        if (name, task) in found:
            return found[name, task]
        system = SYSTEMS.get(name) or PEERS[name]
        setting = Setting(arch="tiny", task=task, resolution=64, steps=STEPS, threads=1)
        # One bundle for all tasks: the control is of no effect on requests without it.
        flags = build_flags(Setting(arch="tiny", task="control", resolution=64), cache)
        is_ort = name == "onnxruntime"
        model = Model("tiny", (64,), flags=() if is_ort else flags)
        bundle = None
        if system.bundle is not None:
            bundle = bundle_of(model, system.bundle, cache, lambda _: None).path
        work = cache / f"tiny-{name}"
        work.mkdir(exist_ok=True)
        place = Place(checkpoint_of(model, cache, lambda _: None), bundle, str(work))
        side = getattr(importlib.import_module(system.module), system.side)(setting, "fp32", place)
        seconds = side.start()
        assert seconds["load"] > 0
        found[name, task] = side.serve(STEPS)
        if task == "text":
            found[name, "networks"] = side.networks(None)
        side.close()
        return found[name, task]

    return serve


def first(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    assert image.shape == (1, 64, 64, 3)
    assert image.std() > 3  # a flat picture would prove nothing
    picture: NDArray[np.uint8] = image[0]
    return picture


# Of tasks a system differs in what it is given; its networks are the same.
CASES = [("native", task) for task in TASKS] + [
    ("eager", "control"), ("eager", "image"), ("onnxruntime", "inpaint"),
    ("openvino-genai", "text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task"), CASES)
def test_pictures_are_those_of_diffusers(served: Serve, name: str, task: str) -> None:
    system = SYSTEMS[name]
    if missing(system):
        pytest.skip(f"{name} is not installed")
    assert task in system.tasks
    expected, found = served("diffusers", task), served(name, task)
    assert psnr(first(found.images), first(expected.images)) >= LEAST_PSNR_DB
    for one in (expected, found):
        assert set(one.stages_ms) <= set(STAGES)
        assert all(ms >= 0 for ms in one.stages_ms.values())
    if task in ("image", "inpaint"):
        assert "vae_encoder" in expected.stages_ms
    if task == "control":
        assert "control" in expected.stages_ms


@pytest.mark.parametrize("name", ["native", "onnxruntime", "diffusers"])
def test_networks_are_those_of_eager_torch(served: Serve, name: str) -> None:
    for one in ("eager", name):
        served(one, "text")
    expected, found = served("eager", "networks"), served(name, "networks")
    assert set(found) == {"text_encoder", "unet", "vae_decoder"}
    for network, output in expected.items():
        assert relative_rms(found[network], output) < 1e-3, network


def test_noise_levels_are_those_of_diffusers() -> None:
    import diffusers

    config = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading",
    }  # fmt: skip
    scheduler: Any = diffusers.EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(7)
    schedule = NoiseSchedule.from_config(json.loads(json.dumps(config)))
    levels = sigmas_at(schedule, spaced_timesteps(schedule, 7, rounded=False))
    np.testing.assert_allclose([*levels, 0.0], scheduler.sigmas.numpy(), rtol=1e-5)


def test_a_control_is_written_where_diffusers_reads_it(tmp_path: Path) -> None:
    import diffusers

    setting = Setting(arch="tiny", task="control", resolution=64)
    build_flags(setting, tmp_path)
    library: Any = diffusers
    assert library.ControlNetModel.from_pretrained(tmp_path / "tiny-controlnet") is not None
