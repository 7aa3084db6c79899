"""What a request does on the device, to the last copy, kernel, launch and wait.

The device is the native runtime's CPU device, which the engine's stand-in computes on; it counts at
the interface that GPUs have too. `tests/cpp/fake_cuda` counts the calls of CUDA behind that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import fake_tensorrt

import sdengine
from sdengine.pipeline import decoding, seamless
from sdengine.pipeline.trajectory import Trajectory

STEPS = 6
SIZE = 128
LATENTS_BYTES = 4 * (SIZE // 8) ** 2 * 4  # of one image, fp32
STATE_BYTES = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "batch": 4}
        sdengine.build("demo", place, resolutions=(SIZE,), **options)
        return place


@pytest.fixture
def engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sdengine.Engine]:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle) as opened:
        yield opened


def stages(
    engine: sdengine.Engine, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, dict[str, int]]:
    """Serve a request; return what its trajectory and its decoding did."""
    device = fake_tensorrt.Gpu.device
    marks: list[dict[str, int]] = []
    run, decode = Trajectory.run, decoding.decode

    def marked_run(self: Trajectory, *arguments: Any) -> Any:
        marks.append(device.ledger())
        return run(self, *arguments)

    def marked_decode(*arguments: Any) -> Any:
        marks.append(device.ledger())
        return decode(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trajectory, "run", marked_run)
        patched.setattr(seamless, "decode", marked_decode)
        engine.generate("a red circle", seed=1, steps=STEPS, **options)
    marks.append(device.ledger())
    assert len(marks) == 3
    between = [
        {name: after[name] - before[name] for name in before if name != "uploaded_bytes"}
        for before, after in itertools.pairwise(marks)
    ]
    return dict(zip(("trajectory", "decoding"), between, strict=True))


@pytest.mark.parametrize("noise", ["cpu", "cuda", None])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_request_to_the_last_copy(
    engine: sdengine.Engine,
    batch: int,
    guidance_scale: float,
    noise: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"batch_size": batch, "guidance_scale": guidance_scale}
    options["sampler"] = "euler" if noise is None else "euler_a"
    options["noise"] = noise or "cpu"
    engine.generate("warm", seed=1, steps=1, **options)
    noisy = 0 if noise is None else STEPS - 1  # the last step of an ancestral sampler adds none
    # Of the U-Net sample and timestep are written by the steps, ControlNets' inputs are zeros.
    names = [tensor.name for tensor in engine.bundle.network("unet").inputs]
    zeros = sum("_residual" in name for name in names)
    inputs = len(names) - zeros - 2
    expected = {
        "trajectory": {
            # The program, the first latents, inputs; noise of the host for 1, 2 and 2 steps.
            "uploads": 2 + inputs + (3 if noise == "cpu" else 0),
            "downloads": 2,  # whether all was finite, and the latents
            "downloaded_bytes": STATE_BYTES + batch * LATENTS_BYTES,
            "fills": zeros,
            # The first step's begin; then each step's end, with the next one's begin.
            "kernels": 1 + STEPS + (noisy * batch if noise == "cuda" else 0),
            "networks": STEPS,
            "graph_launches": STEPS,
            # For the queue to have room, for the latents, and for the run that goes to be at rest.
            "waits": STEPS - 2 + 2,
        },
        "decoding": {
            "uploads": 0,  # the latents are there
            "downloads": batch + 1,  # pixels, and whether all was finite
            "downloaded_bytes": batch * 3 * SIZE**2 + 4,
            "fills": 1,
            "kernels": 2 * batch,
            "networks": batch,
            "graph_launches": 0,
            "waits": 1,  # for all images
        },
    }
    for progress in (None, lambda step: None):
        assert stages(engine, monkeypatch, progress=progress, **options) == expected


def test_progress_is_told_of_each_step_and_gets_latents_at_the_end(
    engine: sdengine.Engine,
) -> None:
    seen: list[tuple[int, bool]] = []
    result = engine.generate(
        "a red circle",
        seed=1,
        steps=5,
        progress=lambda step: seen.append((step.index, step.latents is not None)),
    )
    assert seen == [(k, k == 4) for k in range(5)]
    streamed = list(engine.stream("a red circle", seed=1, steps=5))
    assert all(step.latents is not None for step in streamed)
    assert streamed[-1].result is not None
    assert (streamed[-1].result.arrays[0] == result.arrays[0]).all()
