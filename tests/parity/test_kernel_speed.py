"""What the kernels' benchmark compares, on small shapes in the interpreter; nothing is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_cuda_graphs import FakeCuda
from support.interpreted import DTYPES

from sdengine.benchmarks import gpu, kernel_speed
from sdengine.benchmarks.kernel_sides import kernel, tensors_of, torchs, truth
from sdengine.benchmarks.kernel_speed import CASES, Roofline, Row
from sdengine.errors import DeviceError
from sdengine.kernels.attention import AttentionShape
from sdengine.kernels.geglu import GegluShape
from sdengine.kernels.group_norm import GroupNormShape
from sdengine.kernels.layer_norm import LayerNormShape
from sdengine.kernels.registry import OPS

assert DTYPES  # importing `interpreted` skips this module where triton cannot interpret
ROOFLINE = Roofline(1000.0, 100.0)
SMALL: list[tuple[str, str, Any]] = [
    ("attention", "self", AttentionShape(1, 2, 20, 20, 40)),
    ("attention", "causal", AttentionShape(2, 1, 9, 9, 64, causal=True)),
    ("group_norm_silu", "NCHW", GroupNormShape(2, 8, 12, 4)),
    ("group_norm_silu", "NHWC", GroupNormShape(1, 8, 12, 4, True, time_embedding=True)),
    ("group_norm_silu", "additions", GroupNormShape(2, 8, 12, 2, True, True, True, True)),
    ("layer_norm", "alone", LayerNormShape(5, 48)),
    ("layer_norm", "residual", LayerNormShape(5, 48, True)),
    ("geglu", "", GegluShape(5, 24)),
]


def constant(_: Any) -> list[float]:
    return [2.0]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: " ".join(case[:2]))
def test_both_sides_compute_the_same(case: tuple[str, str, Any]) -> None:
    row = kernel_speed.measure(case, "float16", None, ROOFLINE, constant, "cpu", 1)
    assert 0 < row.error <= 2 * row.torch_error < 1e-2
    assert row.kernel_ms["median"] == row.torch_ms["median"] == row.best_ms == 2.0
    assert row.best == row.variant == OPS[case[0]].variants(case[2], "float16", None)[0].name


def test_tensors_have_the_shape_and_layout_of_the_case() -> None:
    for op, _, shape in SMALL:
        tensors = tensors_of(op, shape, "float32", "cpu")
        (variant, *_) = OPS[op].variants(shape, "float32", None)
        assert kernel(op, shape, tensors, variant)().shape == truth(op, shape, tensors).shape
        assert torchs(op, shape, tensors)().shape == truth(op, shape, tensors).shape
        if op == "group_norm_silu":
            assert tensors["x"].is_contiguous() != shape.channels_last


def test_the_truth_of_many_queries_is_that_of_all_at_once() -> None:
    shape = AttentionShape(1, 1, 2100, 2100, 8)
    tensors = tensors_of("attention", shape, "float32", "cpu")
    q, k, v = (tensors[name] for name in "qkv")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(truth("attention", shape, tensors), expected, atol=1e-5)


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        return lambda: torchs(*arguments[:3])() * 1.01

    def forbidden(_: Any) -> list[float]:
        raise AssertionError("it was timed")

    monkeypatch.setattr(kernel_speed, "kernel", wrong)
    with pytest.raises(DeviceError, match=r"geglu, , float16: variant \w+ is wrong by 0\.00"):
        kernel_speed.measure(SMALL[-1], "float16", None, ROOFLINE, forbidden, "cpu", 1)


def test_the_fastest_variant_is_named() -> None:
    times = iter([[3.0], [1.0], [2.0], [6.0]])
    row = kernel_speed.measure(
        SMALL[-1], "float16", None, ROOFLINE, lambda _: next(times), "cpu", 1
    )
    names = [v.name for v in OPS["geglu"].variants(SMALL[-1][2], "float16", None)]
    assert (row.variant, row.best, row.best_ms) == (names[0], names[1], 1.0)
    assert row.ratio == 2.0


def operations_of(function: Any) -> list[Any]:
    """Return what one call does, as a capture that holds nothing else would."""
    cuda = FakeCuda()
    with cuda.graph(cuda.CUDAGraph()):
        function()
    return cuda.captured[0]


@pytest.mark.parametrize(
    ("case", "rotating"), [(SMALL[0], 3), (SMALL[3], 1), (SMALL[5], 3), (SMALL[7], 30)]
)
def test_a_graph_holds_the_calls_and_nothing_else(
    case: tuple[str, str, Any], rotating: int
) -> None:
    op, _, shape = case
    sets = [tensors_of(op, shape, "float16", "cpu") for _ in range(rotating)]
    (variant, *_) = OPS[op].variants(shape, "float16", None)
    for functions in (
        [kernel(op, shape, tensors, variant) for tensors in sets],
        [torchs(op, shape, tensors) for tensors in sets],
    ):
        cuda = FakeCuda()
        kernel_speed.cold_times(1, cuda)(functions)
        (captured,) = cuda.captured
        once = operations_of(functions[0])
        calls = {1: 20, 3: 21, 30: 30}[rotating]  # whole rounds, 20 at least
        assert captured == once * calls


def test_copying_is_timed_as_one_copy() -> None:
    source, target = torch.ones(4), torch.zeros(4)
    cuda = FakeCuda()
    kernel_speed.cold_times(1, cuda)([lambda: target.copy_(source)])
    assert [str(func) for func in cuda.captured[0]] == ["aten.copy_.default"] * 20


def test_runs_are_replays_between_events_of_an_idle_gpu() -> None:
    cuda = FakeCuda()
    calls = 0

    def function() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.ones(1) + 1

    assert kernel_speed.cold_times(3, cuda)([function]) == [1.0 / 20] * 3
    assert calls == 3 + 20  # to warm up, captured
    assert cuda.log.count("capture thread_local") == 1
    assert cuda.log.count("replay") == 2 + 3
    assert cuda.log[-2:] == ["reset", "empty_cache"]


def test_calls_take_turns_on_more_than_the_cache_holds() -> None:
    op, _, shape = case = SMALL[-1]
    moved = OPS[op].cost(shape, "float16")[0]
    told: list[int] = []

    def timer(functions: Any) -> list[float]:
        results = [function() for function in functions]
        told.append(len({result.data_ptr() for result in results}))
        assert all(torch.equal(result, results[0]) for result in results)
        return [1.0]

    kernel_speed.measure(case, "float16", None, ROOFLINE, timer, "cpu", 5 * moved - 1)
    assert set(told) == {5}


def test_bounds() -> None:
    # 1 GB at 1000 GB/s; 1e12 operations at 100 TFLOPS.
    assert ROOFLINE.bound_ms("geglu", 10**9, 10**12) == pytest.approx(1.0)
    assert ROOFLINE.bound_ms("attention", 10**9, 10**12) == pytest.approx(10.0)
    assert ROOFLINE.bound_ms("attention", 10**9, 10) == pytest.approx(1.0)


def test_published_networks_are_covered() -> None:
    names = " ".join(name for _, name, _ in CASES)
    for op in OPS:
        assert any(case[0] == op and "SDXL" in case[1] for case in CASES)
        assert any(case[0] == op and "SD1.5" in case[1] for case in CASES)
    assert "VAE" in names
    reasons = list(kernel_speed.skipped("float16", 75, CASES))
    assert len(reasons) == sum(case[0] == "attention" for case in CASES)
    assert "without tensor cores" in reasons[0]


@pytest.fixture
def row() -> Row:
    figures = {"median": 2.0, "p10": 1.0, "p90": 3.0, "n": 30}
    slower = {**figures, "median": 5.0}
    return Row("geglu", "a case", "float16", 1e-4, 2e-4, "a", figures, "a", 2.0, slower, 1.5)


def test_table_and_records(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "describe", lambda: {"name": "a made-up GPU"})
    kernel_speed.write([row, replace(row, best="b", best_ms=1.25)], ROOFLINE, tmp_path)
    table = (tmp_path / "kernel-speed.md").read_text()
    figures = "2.000 (1.000 to 3.000) | 5.000 (1.000 to 3.000) | 2.50x | 75 %"
    assert f"| geglu | a case | float16 | {figures} | the default | 1.0e-04 | 2.0e-04 |" in table
    assert "| b, 1.250 ms |" in table
    assert "1000 GB/s, 100 TFLOPS" in table
    assert table.startswith("**Triton kernels on a made-up GPU**")
    records = [json.loads(s) for s in (tmp_path / "kernel-speed.jsonl").read_text().splitlines()]
    assert [record["best"] for record in records] == ["a", "b"]
    assert records[0]["percent_of_roofline"] == 75.0


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert kernel_speed.main(["--output", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: kernels are timed on an NVIDIA GPU only: torch ")
    assert list(tmp_path.iterdir()) == []
