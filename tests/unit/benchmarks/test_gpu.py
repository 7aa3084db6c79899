"""The benchmark on a GPU, as far as it needs none: cases, sides, waiting, memory, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdengine.backends.torch.triton_ops import Choice
from sdengine.benchmarks import bundles, gpu
from sdengine.benchmarks.bundles import Model
from sdengine.benchmarks.cases import GPU_SIDES, NATIVE_SIDES
from sdengine.benchmarks.suite import measuring, running
from sdengine.benchmarks.suite.options import Asked, suite_of
from sdengine.benchmarks.suite.setting import Setting
from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.images.timings import StageTime, Timings
from sdengine.kernels.geglu import GegluShape
from sdengine.request.request import Request


def test_everything_is_measured_at_its_sizes() -> None:
    for arch in ("sd15", "sd21", "sdxl"):
        assert Model.on_gpu(arch).sides == (512, 768, 1024)
    assert Model.on_gpu("demo").sides == (128, 192, 256)
    assert set(GPU_SIDES) == set(NATIVE_SIDES)
    with pytest.raises(ConfigError, match="arch: 'sd9'"):
        Model.on_gpu("sd9")


def test_one_bundle_holds_all_sizes_and_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def build(model: Model, checkpoint: str, path: Path, target: str, precision: str) -> str:
        commands.append((path, target, precision))
        return json.dumps({"seconds": {}, "peak_bytes": 0})

    monkeypatch.setattr(bundles, "_build", build)
    monkeypatch.setattr(bundles, "is_current", lambda *_: True)
    model = Model("tiny", (64, 128), device="cuda")
    folder = tmp_path / "tiny-64-128-batch1"
    for _ in range(2):
        built = bundles.bundle_of(model, "torch", tmp_path, lambda _: None)
        assert built.path == str(folder / "torch")
    built = bundles.bundle_of(model, "tensorrt", tmp_path, lambda _: None, precision="bf16")
    assert built.path == str(folder / "tensorrt-bf16")
    assert commands == [
        (folder / "torch", "torch", "auto"),
        (folder / "tensorrt-bf16", "tensorrt", "bf16"),
    ]
    steered = replace(model, flags=("--control", "canny=x"))
    assert bundles.bundle_path(steered, "torch", tmp_path).parent != folder


def test_engines_are_built_in_the_precision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    class Done:
        returncode, stdout, stderr = 0, "{}", ""

    def run(command: list[str], **_: Any) -> Done:
        commands.append(command)
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    model = Model.on_gpu("sd15")
    bundles._build(model, "checkpoint", tmp_path, "tensorrt-rtx", "bf16")
    bundles._build(model, "checkpoint", tmp_path, "torch", "bf16")
    engines, weights = (" ".join(command) for command in commands)
    assert "--target tensorrt-rtx --resolutions 512,768,1024" in engines
    assert "--precision bf16" in engines
    assert "--precision" not in weights
    assert "--no-controlnet" in weights


@pytest.mark.parametrize("target", ["triton", "tensorrt-rtx", "tensorrt"])
def test_without_a_gpu_nothing_is_built_and_the_reason_is_said(target: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    suite = suite_of(Asked(arch="tiny", device="cuda", backends=target), "again")
    with pytest.raises(BackendUnavailableError, match=r"backend torch-cuda is not available"):
        running.run(suite, tmp_path / "cache", lambda _: None, lambda _: None)
    assert list(tmp_path.iterdir()) == []


class _Served:
    def __init__(self, timings: Timings) -> None:
        self.timings = timings


class _Engine:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def forget_prompts(self) -> None:
        self.log.append("forget")

    def run(self, request: Request) -> _Served:
        self.log.append("run")
        return _Served(Timings({"unet": StageTime(2.0, 4)}, 10.0))


def test_a_request_ends_when_the_gpu_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    clock = iter([5.0, 5.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    engine: Any = _Engine(log)
    request = Setting().request()
    _, timings = gpu.timed(engine, request, lambda: log.append("wait"))
    assert log == ["wait", "run", "wait"]
    assert (timings.total_ms, timings.other_ms, timings.unet_ms) == (260.0, 258.0, 2.0)


def test_products_are_exact_inside_the_block_only() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError), gpu.exact_products():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        raise RuntimeError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_memory_is_what_is_gone_and_what_torch_had_in_use() -> None:
    free = iter([9_000, 4_000, 3_000])
    watch = gpu.DeviceMemory(lambda: next(free), next(free), lambda: 2_500)
    assert watch.figures() == {"device_bytes": 5_000, "allocated_device_bytes": 2_500}
    assert replace(watch, allocated=None).figures() == {"device_bytes": 6_000}
    assert gpu.DeviceMemory.of("native") is None
    assert gpu.DeviceMemory.of("torch") is None


def test_fp32_on_a_gpu_is_held_to_what_tf32_keeps() -> None:
    assert measuring._limits("eager fp32", "cuda") == "tf32"
    assert measuring._limits("eager fp32", "cpu") == "fp32"
    assert measuring._limits("stable-diffusion.cpp q8_0", "cpu") == "int8"
    assert measuring._limits("triton fp16", "cuda") == "fp16"


class _Reporting:
    def report(self) -> dict[str, tuple[Choice, ...]]:
        shapes = [GegluShape(rows, 8) for rows in (1, 2)]
        kept = Choice("attention", None, "float16", "head dimension 8 is none of 40")
        return {"unet": (*(Choice("geglu", s, "float16", "") for s in shapes), kept)}


def test_what_kernels_computed_is_counted_with_the_reasons() -> None:
    assert gpu.kernels_of(object()) == {}
    assert gpu.kernels_of(_Reporting()) == {
        "unet": {
            "replaced": {"geglu": 2},
            "kept": {"attention, because head dimension 8 is none of 40": 1},
        }
    }
