"""Which variant of a kernel is taken: the one that was measured to be fastest, here or before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_cuda_graphs import FakeCuda

from sdengine.backends import kernel_choices
from sdengine.backends.cache_file import cache_path, save
from sdengine.backends.kernel_choices import ChoiceKey, KeptChoices
from sdengine.backends.torch import triton, triton_ops
from sdengine.backends.torch.graphs import GraphedCall, GraphPool
from sdengine.backends.torch.triton_ops import TritonOps
from sdengine.backends.torch.variant_timing import MIN_CALLS, VariantChoices, graph_timer
from sdengine.kernels import geglu
from sdengine.kernels.variants import Variant

KEY = ChoiceKey("3.9.0", "NVIDIA H100", 90, "580.10")
VARIANTS = [Variant(name, {}, 4, 1, 0) for name in ("first", "second", "third")]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    return tmp_path / "triton"


class Scripted:
    """Gives times one after the other, and counts how often it was asked."""

    def __init__(self, *times_ms: float) -> None:
        self.times_ms = list(times_ms)

    def __call__(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        for call in calls:
            call()
        return [self.times_ms.pop(0), 1000.0]


def choices(*times_ms: float, key: ChoiceKey = KEY) -> VariantChoices:
    return VariantChoices(KeptChoices(key), Scripted(*times_ms))


def chosen(found: VariantChoices, name: str = "geglu float16 5") -> str:
    return found.choose(name, VARIANTS, lambda variant: None).name


def test_the_fastest_is_taken_and_timed_once() -> None:
    ran: list[str] = []
    found = choices(3.0, 1.0, 2.0)
    for _ in range(2):
        assert found.choose("a", VARIANTS, lambda one: ran.append(one.name)).name == "second"
    assert ran == ["first", "second", "third"]
    assert found.choose("b", VARIANTS[:1], lambda one: ran.append("alone")).name == "first"
    assert "alone" not in ran


def test_what_was_found_holds_for_later_processes_of_that_gpu(place: Path) -> None:
    found = choices(3.0, 1.0, 2.0)
    assert not place.exists()
    assert chosen(found) == "second"
    found.save()
    assert chosen(choices()) == "second"
    for other in (
        ChoiceKey("3.10.0", KEY.gpu, 90, "580.10"),
        ChoiceKey("3.9.0", "NVIDIA H200", 90, "580.10"),
    ):
        assert chosen(choices(1.0, 2.0, 3.0, key=other)) == "first"
    # One file a GPU: another driver's is not used, and written over.
    newer = ChoiceKey("3.9.0", KEY.gpu, 90, "590.1")
    again = choices(3.0, 2.0, 1.0, key=newer)
    assert chosen(again) == "third"
    again.save()
    assert chosen(choices(key=newer)) == "third"
    assert len(list(place.iterdir())) == 1 == len(kernel_choices.KEPT.files())


def test_two_processes_keep_what_both_found() -> None:
    one, other = choices(3.0, 1.0, 2.0), choices(1.0, 2.0, 3.0)
    assert (chosen(one, "a"), chosen(other, "b")) == ("second", "first")
    one.save()
    other.save()
    later = choices()
    assert (chosen(later, "a"), chosen(later, "b")) == ("second", "first")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"geglu float16 5": 3}', b"[" * 100_000])
def test_what_is_no_choice_is_timed_again(place: Path, content: bytes) -> None:
    save(cache_path(kernel_choices.KIND, KEY), kernel_choices.KIND, KEY, content)
    assert chosen(choices(2.0, 3.0, 1.0)) == "third"


def test_a_variant_that_is_gone_is_timed_again() -> None:
    found = choices(3.0, 1.0, 2.0)
    chosen(found)
    found.save()
    left = [VARIANTS[0], VARIANTS[2]]
    again = choices(5.0, 4.0)
    assert again.choose("geglu float16 5", left, lambda one: None).name == "third"


def test_a_damaged_file_or_a_full_disk_fails_no_request(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = choices(3.0, 1.0, 2.0)
    chosen(found)
    found.save()
    (path,) = place.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    again = choices(1.0, 2.0, 3.0)
    assert "are not used: it is damaged" in caplog.text
    assert chosen(again) == "first"
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "0")
    again.save()
    assert "cannot be written" in caplog.text


def test_names_of_shapes_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ops, "compute_capability", lambda tensors: 90)
    ran: list[Any] = []

    def run(x: torch.Tensor, variant: Variant) -> torch.Tensor:
        ran.append(variant)
        return x[..., :8]

    monkeypatch.setattr(geglu, "geglu", run)
    kept = KeptChoices(KEY)
    count = len(geglu.VARIANTS)
    ops = TritonOps(choices=VariantChoices(kept, Scripted(*range(9, 9 - 2 * count, -1))))
    for rows in (3, 3, 5):
        ops.geglu(torch.zeros(rows, 16), 8)
    assert json.loads(json.dumps(kept.found)).keys() == {
        f"geglu float32 GegluShape(rows={rows}, width=8)" for rows in (3, 5)
    }
    # Timed at the first meeting, then run; the last in line is the fastest here.
    assert len(ran) == count + 1 + 1 + count + 1
    assert {choice.variant for choice in ops.report()} == {ran[-1].name}


def test_timing_comes_before_the_capture_and_leaves_nothing_in_it() -> None:
    cuda = FakeCuda()
    found = VariantChoices(KeptChoices(KEY), graph_timer(cuda))

    def function(x: torch.Tensor) -> torch.Tensor:
        found.choose("a", VARIANTS, lambda variant: x * 2)
        return x + 1

    call = GraphedCall(function, (torch.ones(3),), cuda, GraphPool(cuda))
    timed, captured = cuda.captured[:-1], cuda.captured[-1]
    assert [len(one) for one in timed] == [MIN_CALLS] * len(VARIANTS)
    assert [str(func) for func in captured] == ["aten.add.Tensor", "aten.copy_.default"]
    call.replay()
    assert torch.equal(call.outputs[0], torch.full((3,), 2.0))


def test_a_session_times_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda(FakeCuda):
        def get_device_capability(self, device: str) -> tuple[int, int]:
            return 9, 0

        def get_device_name(self, device: str) -> str:
            return "NVIDIA H100"

    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    assert triton._choices_of("cpu", Cuda()) is None
    found = triton._choices_of("cuda", Cuda())
    assert found is not None
    found._kept.add("a", "b")
    found.save()
    (file,) = kernel_choices.KEPT.files()
    assert "nvidia-h100-sm90" in file.path.name
