"""The triton backend's trajectory on the device: what it computes, and all that it moves.

The native runtime's CPU device runs the steps, the stand-in for torch.cuda captures and replays the
network on that device's stream. Kernels are torch's own: those of Triton have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cuda_graphs import FakeCuda
from support.tiny_checkpoints import make_tiny

from sdengine import _native
from sdengine.backends.base import SessionOptions
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.torch import triton, triton_unet
from sdengine.backends.torch.eager import TorchBackend
from sdengine.backends.torch.triton import TritonBackend
from sdengine.backends.torch.triton_model import JoinedCrossAttention
from sdengine.backends.torch.triton_ops import TritonOps
from sdengine.backends.torch.triton_unet import TritonUNet
from sdengine.building.build import build
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.engine import Engine
from sdengine.errors import DeviceError

SIZE = 64
STEPS = 3
BASE: dict[str, Any] = {"width": SIZE, "height": SIZE, "seed": 3, "steps": STEPS}
FP32 = SessionOptions("fp32")


def make_bundle(kind: str, folder: Path) -> Bundle:
    checkpoint = make_tiny(kind, folder / "checkpoint")
    return open_bundle(build(checkpoint, folder / "b", target="torch", resolutions=(SIZE,)).path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle("tiny", tmp_path_factory.mktemp("trajectory"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(triton, "TritonOps", lambda choices: TritonOps(replace=()))
    return FakeCuda(_native.CpuDevice(1 << 40))


@pytest.fixture
def engine(bundle: Bundle, cuda: FakeCuda) -> Iterator[Engine]:
    with Engine(bundle, backend_of(cuda), FP32) as opened:
        yield opened


def backend_of(cuda: FakeCuda) -> TritonBackend:
    assert cuda.device is not None
    device = cuda.device
    return TritonBackend("cpu", cuda, lambda number: device)


def unet_of(engine: Engine, rows: int = 2) -> TritonUNet:
    unet = engine._networks.get("unet", rows, SIZE, SIZE)
    assert isinstance(unet, TritonUNet)
    return unet


def images(bundle: Bundle, backend: Any, **options: Any) -> list[np.ndarray[Any, Any]]:
    with Engine(bundle, backend, FP32) as engine:
        return list(engine.generate("a red circle", **BASE, **options).arrays)


REQUESTS: dict[str, dict[str, Any]] = {
    "guided": {"guidance_scale": 4.0},
    "unguided": {"guidance_scale": 1.0, "sampler": "dpmpp_2m"},
    "noise, two images": {"sampler": "euler_a", "batch_size": 2, "guidance_scale": 3.0},
    "an interval": {"guidance_scale": 4.0, "guidance_interval": (0.3, 0.8)},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_pictures_are_those_of_eager_torch(bundle: Bundle, cuda: FakeCuda, name: str) -> None:
    expected = images(bundle, TorchBackend(), **REQUESTS[name])
    found = images(bundle, backend_of(cuda), **REQUESTS[name])
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert cuda.device is not None and cuda.device.ledger()["networks"] >= STEPS


def test_without_the_native_device_the_host_runs_the_steps_of_an_sdxl_model_too(
    tmp_path: Path, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(number: int) -> _native.Device:
        raise DeviceError("the extension was built without CUDA")

    bundle = make_bundle("tiny-sdxl", tmp_path)
    (found,) = images(bundle, backend_of(cuda), guidance_scale=4.0)
    assert cuda.device is not None and cuda.device.ledger()["networks"] == STEPS + 1
    caplog.set_level("DEBUG")
    (expected,) = images(bundle, TritonBackend("cpu", FakeCuda(), refuse), guidance_scale=4.0)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert "the host runs the sampler's steps: the extension was built without CUDA" in caplog.text


def test_prompts_that_change_on_the_way_are_brought_when_they_do(
    bundle: Bundle, engine: Engine, cuda: FakeCuda
) -> None:
    prompt = "a [red:blue:0.5] circle"
    with Engine(bundle, TorchBackend(), FP32) as eager:
        (expected,) = eager.generate(prompt, **BASE).arrays
    engine.generate("warm", **BASE)
    before = ledger(cuda)
    (found,) = engine.generate(prompt, **BASE).arrays
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert spent(cuda, before)["networks"] == STEPS + 2  # keys and values twice


def ledger(cuda: FakeCuda) -> dict[str, int]:
    assert cuda.device is not None
    return {**cuda.device.ledger(), "replays": cuda.log.count("replay")}


def spent(cuda: FakeCuda, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in ledger(cuda).items()}


@pytest.mark.parametrize("progress", [None, lambda step: None])
def test_a_request_to_the_last_copy(
    engine: Engine, cuda: FakeCuda, progress: Callable[[Any], None] | None
) -> None:
    engine.generate("a red circle", **BASE, progress=progress)
    before, captures = ledger(cuda), len(cuda.captured)
    engine.generate("a red circle", **BASE, progress=progress)
    assert len(cuda.captured) == captures
    found = spent(cuda, before)
    # The program, the first latents, the text. The prompt is known, so its encoder is not run.
    assert found["uploads"] == 3
    assert found["downloads"] == 2  # whether all was finite, and the latents
    # The first step's begin; then each step's end, with the next one's begin.
    assert found["kernels"] == 1 + STEPS
    assert found["networks"] == STEPS + 1  # what the steps have in common, once
    assert found["replays"] == STEPS + 1 + 1  # and the decoder
    # For the queue to have room, for the latents, and for the run that goes to be at rest.
    assert found["waits"] == STEPS - 2 + 2
    # Nothing else of the network runs again: no keys and values of the text, no timestep.
    unet = unet_of(engine)
    kinds = unet._split._attentions
    assert kinds and all(isinstance(module, JoinedCrossAttention) for module in kinds)


def test_a_step_has_fewer_operations_than_the_whole_network(engine: Engine, cuda: FakeCuda) -> None:
    """Two products for each attention's text are one a request, and so are those of the time."""
    engine.generate("a red circle", **BASE)
    split = unet_of(engine)._split

    def products(work: list[Any]) -> int:
        names = [getattr(func, "__name__", "") for func in work]
        return sum(name.startswith(("addmm", "mm", "bmm", "linear")) for name in names)

    common, step = (products(work) for work in cuda.captured[1:3])
    assert common >= len(split._attentions) + len(split._resnets) + 2
    engine.generate("a red circle", **BASE, guidance_rescale=0.5)  # on the host: all of it
    (whole,) = (products(work) for work in cuda.captured[4:])
    assert whole == common + step


def test_more_evaluations_than_a_graph_reads_are_another_graph(
    bundle: Bundle, engine: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_unet, "LEAST_EVALUATIONS", 1)
    options = {**BASE, "steps": STEPS + 2}  # beyond the next power of two
    with Engine(bundle, TorchBackend(), FP32) as eager:
        (expected,) = eager.generate("a red circle", **options).arrays
    engine.generate("a red circle", **BASE)
    captures = len(cuda.captured)
    (found,) = engine.generate("a red circle", **options).arrays
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(cuda.captured) == captures + 2
    engine.generate("a red circle", **BASE)
    assert len(cuda.captured) == captures + 2


def test_two_requests_take_turns_in_the_same_memory(engine: Engine) -> None:
    expected = [engine.generate("a red circle", **{**BASE, "seed": s}).arrays[0] for s in (3, 4)]
    streams = [engine.stream("a red circle", **{**BASE, "seed": s}) for s in (3, 4)]
    last: list[Any] = [None, None]
    for _ in range(STEPS):
        for index, stream in enumerate(streams):
            last[index] = next(stream)
    for step, image in zip(last, expected, strict=True):
        assert step.result is not None
        assert (step.result.arrays[0] == image).all()


def test_what_fails_in_a_step_names_the_network_and_the_next_request_works(
    engine: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = engine.generate("a red circle", **BASE).arrays
    graphs = next(iter(unet_of(engine)._graphs.values()))

    def failing() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(graphs.step, "replay", failing)
        with pytest.raises(DeviceError, match="unet: memory ran out"):
            engine.generate("a red circle", **BASE)
    (found,) = engine.generate("a red circle", **BASE).arrays
    assert (found == expected).all()


def test_closing_frees_graphs_and_memory(bundle: Bundle, cuda: FakeCuda) -> None:
    with Engine(bundle, backend_of(cuda), FP32) as engine:
        engine.generate("a red circle", **BASE)
        unet = unet_of(engine)
    # Text encoder, what steps have in common, a step, decoder.
    assert cuda.log.count("reset") == len(cuda.captured) == 4
    unet.close()
    kind = TrajectoryKind(batch=1, copies=2, channels=4, evaluations=4, registers=1)
    with pytest.raises(DeviceError, match="was closed"):
        unet.prepare(kind)
