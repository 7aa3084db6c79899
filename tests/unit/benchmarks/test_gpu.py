"""The benchmark on a GPU, as far as it needs none: cases, sides, waiting, memory, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sdengine
from sdengine.backends.torch.triton_ops import Choice
from sdengine.benchmarks import alone, bundles, gpu, harness
from sdengine.benchmarks.cases import GPU_SIDES, NATIVE_SIDES, TARGETS, Case, gpu_cases
from sdengine.benchmarks.harness import STAGES
from sdengine.benchmarks.records import SIDES, append_record, make_record, read_records
from sdengine.benchmarks.tables import as_markdown, as_rich, rows
from sdengine.benchmarks.verification import require_equal
from sdengine.errors import BackendUnavailableError, ConfigError, DeviceError
from sdengine.images.timings import StageTime, Timings
from sdengine.kernels.geglu import GegluShape
from sdengine.request.request import Request

GPU_CASE = Case(
    arch="sd15", resolution=512, device="cuda", target="triton", baseline_precision="fp16"
)


def test_everything_is_measured_at_its_sizes() -> None:
    cases = gpu_cases()
    assert {arch for arch, _ in cases} == {"demo", "sd15", "sd21", "sdxl"}
    for arch in ("sd15", "sd21", "sdxl"):
        assert [side for name, side in cases if name == arch] == [512, 768, 1024]
    assert gpu_cases("demo") == (("demo", 128), ("demo", 192), ("demo", 256))
    assert set(GPU_SIDES) == set(NATIVE_SIDES)
    for arch, side in cases:
        for target in TARGETS["cuda"]:
            Case(arch, side, device="cuda", target=target, baseline_precision="fp16")
    with pytest.raises(ConfigError, match="arch: 'sd9'"):
        gpu_cases("sd9")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "tpu"}, "device: 'tpu' is not accepted; expected cpu, cuda"),
        ({"target": "triton"}, "target: 'triton' .* native on device cpu"),
        ({"device": "cuda"}, "target: 'native' .* tensorrt, triton on device cuda"),
        ({"device": "cuda", "target": "triton", "precision": "int8"}, "precision: 'int8'"),
        ({"precision": "fp16"}, "precision: 'fp16'"),
        ({"baseline_precision": "fp16"}, "baseline_precision: 'fp16'"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Case(**values)


def test_one_bundle_holds_all_sizes_and_serves_both_sides_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def build(case: Case, checkpoint: str, path: Path, target: str) -> str:
        commands.append((path, target))
        return json.dumps({"seconds": {}, "peak_bytes": 0})

    monkeypatch.setattr(bundles, "_build", build)
    monkeypatch.setattr(bundles, "check_memory", lambda *_: None)
    case = replace(GPU_CASE, arch="tiny", resolution=128)
    built = bundles.prepare(case, tmp_path, lambda _: None)
    folder = tmp_path / "tiny-64-128-batch1"
    assert commands == [(folder / "torch", "torch")]
    assert built["ours"].path == built["baseline"].path == str(folder / "torch")

    del commands[:]
    engines = replace(case, target="tensorrt", precision="bf16")
    built = bundles.prepare(engines, tmp_path, lambda _: None)
    assert built["ours"].path == str(folder / "tensorrt-bf16")
    assert [target for _, target in commands] == ["tensorrt", "torch"]


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
    case = replace(GPU_CASE, target="tensorrt-rtx", precision="bf16")
    bundles._build(case, "checkpoint", tmp_path, "tensorrt-rtx")
    bundles._build(case, "checkpoint", tmp_path, "torch")
    engines, weights = (" ".join(command) for command in commands)
    assert "--target tensorrt-rtx --resolutions 512,768,1024" in engines
    assert "--precision bf16" in engines
    assert "--precision" not in weights
    assert "--no-controlnet" in weights


@pytest.mark.parametrize("target", ["triton", "tensorrt-rtx", "tensorrt"])
def test_without_a_gpu_nothing_is_built_and_the_reason_is_said(target: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendUnavailableError, match=rf"backend {target} is not available"):
        harness.run(replace(GPU_CASE, target=target), tmp_path / "cache")
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
    timings = gpu.timed(engine, GPU_CASE, lambda: log.append("wait"))
    assert log == ["wait", "run", "wait"]
    assert (timings.total_ms, timings.other_ms, timings.unet_ms) == (260.0, 258.0, 2.0)


def test_requests_of_a_gpu_alternate_and_each_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    monkeypatch.setattr(gpu, "_synchronize", lambda: log.append("wait"))
    engines: Any = {name: _Engine(log) for name in SIDES}
    timings = harness._interleave(replace(GPU_CASE, runs=2), engines, lambda _: None)
    # The text encoders are timed too.
    assert log == ["forget", "wait", "run", "wait"] * 4
    assert [len(rows) for rows in timings.values()] == [2, 2]


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


def test_memory_of_a_cpu_side_has_no_gpus_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(_Engine):
        def __enter__(self) -> Engine:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(sdengine, "load", lambda *_: Engine([]))
    figures = alone.measure("demo", "native", "auto", None, {"prompt": "a"})
    assert set(figures) == {"load_seconds", "first_seconds", "peak_bytes"}
    watch = gpu.DeviceMemory(lambda: 1, 7, None)
    monkeypatch.setattr(gpu.DeviceMemory, "of", lambda backend: watch)
    assert alone.measure("demo", "tensorrt", "auto", None, {"prompt": "a"})["device_bytes"] == 6


def test_fp32_on_a_gpu_is_held_to_what_tf32_keeps() -> None:
    assert harness._limits(GPU_CASE, "fp32") == "tf32"
    assert harness._limits(GPU_CASE, "fp16") == "fp16"
    assert harness._limits(Case(), "fp32") == "fp32"
    require_equal("ours", "fp16", {"unet": 0.01})
    with pytest.raises(DeviceError, match="unet differs"):
        require_equal("ours", "fp16", {"unet": 0.06})


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


@pytest.fixture
def record() -> dict[str, Any]:
    spread = {"median": 2.0, "p10": 1.0, "p90": 3.0, "n": 5}
    errors = dict.fromkeys(("text_encoder", "unet", "vae_decoder", "latents"), 0.001)
    alone = {"load_seconds": 1.0, "first_seconds": 2.0, "peak_bytes": 2e9}
    figures = {
        "backends": {"ours": "triton fp16", "baseline": "torch eager fp16"},
        "build": {"ours": None, "baseline": None},
        "alone": {
            "ours": {**alone, "device_bytes": 2e9},
            "baseline": {**alone, "device_bytes": 3e9, "allocated_device_bytes": 2.5e9},
        },
        "errors": {key: {**errors, "image_psnr_db": 50.0} for key in SIDES},
        "stages_ms": {key: {"ours": spread, "baseline": spread, "ratio": 1.0} for key in STAGES},
        "outside_percent": {"ours": 1.0, "baseline": 1.0},
        "others_percent": 0.0,
        "gpu": {"name": "a made-up GPU", "compute_capability": "9.9"},
        "kernels": gpu.kernels_of(_Reporting()),
    }
    return dict(make_record(GPU_CASE, figures))


def test_a_gpus_table_names_it_its_memory_and_its_kernels(
    record: dict[str, Any], tmp_path: Path
) -> None:
    append_record(record, tmp_path / "gpu.jsonl")
    (read,) = read_records(tmp_path / "gpu.jsonl")
    assert {"triton", "tensorrt", "tensorrt-rtx-cu13"} <= set(read["versions"])
    table = as_markdown(read)
    assert table.startswith(
        "**sd15 512x512, 4 steps, guidance 3; a made-up GPU, compute capability 9.9**"
    )
    assert "|  | triton fp16 | torch eager fp16 | ratio |" in table
    assert "| GPU memory taken, GB | 2.00 | 3.00 | 1.50x |" in table
    assert "| of it in use by torch at the peak, GB | - | 2.50 |  |" in table
    assert "TF32 in the convolutions of fp32" in table
    assert (
        "Shapes of unet in Triton: 2 geglu; torch: 1 attention, because head dimension 8" in table
    )
    assert as_rich(read).row_count == len(rows(read)) == len(STAGES) + 3 + 2


def test_a_cpus_table_says_nothing_of_a_gpu(record: dict[str, Any]) -> None:
    for key in ("gpu", "kernels"):
        del record[key]
    for side in record["alone"].values():
        side.pop("device_bytes", None)
        side.pop("allocated_device_bytes", None)
    table = as_markdown(record)
    assert "GPU" not in table
    assert "TF32" not in table
