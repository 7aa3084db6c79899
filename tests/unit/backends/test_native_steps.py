"""Sampler steps beside the native U-Net: the host's own pictures, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import _native
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.native.backend import NativeUNet
from sdengine.backends.native.sampler_steps import NativeRun
from sdengine.engine import Engine
from sdengine.errors import Cancelled, NonFiniteError
from sdengine.pipeline import trajectory
from sdengine.samplers import NoiseSchedule, SamplerProgram, build_program
from sdengine.samplers.noise import NoiseSource

SIDES: dict[str, Any] = {"width": 64, "height": 64, "seed": 5, "steps": 5}
KIND = TrajectoryKind(batch=1, copies=2, channels=4, evaluations=5, registers=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=2) as engine:
        yield engine


def unet(engine: Engine) -> NativeUNet:
    engine.generate("a", **{**SIDES, "steps": 1})
    module = engine._networks.get("unet", 2, 64, 64)
    assert isinstance(module, NativeUNet)
    return module


def noted(into: list[Any]) -> Any:
    """Return a `progress` that keeps the latents of each step."""
    return lambda step: into.append(step.latents.copy())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "euler_a", "batch_size": 2},
        {"sampler": "dpmpp_3m_sde", "noise": "cuda"},
        {"sampler": "heun", "guidance_scale": 1.0},
        {"guidance_interval": (0.2, 0.8)},
        {"prompt": "[a red circle:a blue star:0.4]"},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_pictures_are_those_of_the_hosts_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    asked = {"prompt": "a red circle", **SIDES, **fields}
    at_once = engine.generate(**asked)
    seen: list[Any] = []
    one_by_one = engine.generate(**asked, progress=noted(seen))
    never_set = engine.generate(**asked, cancel=threading.Event())
    monkeypatch.setattr(trajectory, "choose_device", lambda *given, **more: (None, "a test"))
    last: list[Any] = []
    by_host = engine.generate(**asked, progress=noted(last))
    for made in (one_by_one, never_set, by_host):
        assert all(map(np.array_equal, made.arrays, at_once.arrays))
        assert made.timings.unet_calls == at_once.timings.unet_calls
    assert len(seen) == len(last) and all(map(np.array_equal, seen, last))


def test_a_step_is_the_last_one_that_runs_after_a_cancel(engine: Engine) -> None:
    cancel, seen = threading.Event(), []

    def progress(step: Any) -> None:
        seen.append(step.index)
        cancel.set()

    with pytest.raises(Cancelled):
        engine.generate("a", **SIDES, progress=progress, cancel=cancel)
    assert seen == [0]


def program(steps: int = 5, sampler: str = "euler") -> SamplerProgram:
    return build_program(sampler, "normal", steps, NoiseSchedule.from_config({}))


def begun(module: NativeUNet, registers: Any, steps: int = 5) -> tuple[NativeRun, Any]:
    run = module.begin(KIND, program(steps), 3.0, registers)
    run.use({"encoder_hidden_states": np.zeros((2, 77, 128), np.float32)})
    return run, NoiseSource([1], (4, 8, 8))


def test_an_evaluation_without_numbers_ends_the_run_and_is_named(engine: Engine) -> None:
    registers = np.zeros((1, 1, 4, 8, 8), np.float32)
    registers[0, 0, 0, 0, 0] = np.inf
    run, noise = begun(unet(engine), registers)
    run.advance(3, noise)
    assert run.steps_done() == 1
    run.advance(2, noise)
    assert run.steps_done() == 1
    for read in (run.latents, run.hand_over):
        with pytest.raises(NonFiniteError, match=r"evaluation 1 of 5 gave NaN or infinity"):
            read()


def test_registers_of_one_run_are_anothers_start(engine: Engine) -> None:
    module = unet(engine)
    registers = np.random.default_rng(1).standard_normal((1, 1, 4, 8, 8)).astype(np.float32)
    whole, noise = begun(module, registers)
    whole.advance(5, noise)
    first, _ = begun(module, registers)
    first.advance(2, noise)
    second = module.begin(KIND, program(), 3.0, first.hand_over(), 2)
    second.use({"encoder_hidden_states": np.zeros((2, 77, 128), np.float32)})
    spent = second.advance(3, noise)
    assert np.array_equal(second.latents(), whole.latents()) and spent > 0
    assert not second.latents().flags.writeable


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (KIND, ""),
        (TrajectoryKind(2, 2, 4, 5, 2), "has 4 rows, the network 2"),
        (TrajectoryKind(1, 2, 3, 5, 2), "reads 4 channels, 3 are latents"),
        (TrajectoryKind(1, 2, 4, 5, 9), "takes 9 registers, of 8 at most"),
    ],
)
def test_what_the_network_cannot_run_beside_it_is_said(
    engine: Engine, kind: TrajectoryKind, reason: str
) -> None:
    assert reason in unet(engine).refuses(kind)
    assert bool(reason) == bool(unet(engine).refuses(kind))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"registers": np.zeros((2, 1, 4, 8, 8), np.float32)}, "as many as the program has"),
        ({"registers": np.zeros((1, 1, 4, 8, 9), np.float32)}, "sample"),
        ({"sample": np.zeros((3, 4, 8, 8), np.float32)}, "once or twice"),
        ({"noise_pred": np.zeros((1, 4, 8, 8), np.float32)}, "noise_pred"),
        ({"inputs": [(np.zeros(3, np.float32), np.zeros(4, np.float32))]}, "inputs"),
        ({"inputs": [(np.zeros(3, np.float32), np.zeros(3))]}, "inputs"),
        ({"count": 6}, "the program has 5 evaluations"),
        ({"noise": []}, "a generator an image"),
        ({"t": np.zeros(4)}, "t: has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    engine: Engine, change: dict[str, Any], match: str
) -> None:
    made = program()
    laid_out = unet(engine).bound()
    given: dict[str, Any] = {
        "inputs": [],
        "sample": laid_out.inputs["sample"],
        "timestep": laid_out.inputs["timestep"],
        "noise_pred": laid_out.outputs["noise_pred"],
        "registers": np.zeros((1, 1, 4, 8, 8), np.float32),
        **{name: getattr(made, name) for name in ("t", "c_in", "A", "b", "d")},
        "guidance_scale": 3.0,
        "first": 0,
        "count": 5,
        "noise": [_native.MersenneNormal(1)],
        **change,
    }
    with pytest.raises(ValueError, match=match):
        laid_out.network.run_steps(**given)
