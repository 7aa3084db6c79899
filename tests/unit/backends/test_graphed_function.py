"""When graphs are captured, replayed and freed, on a stand-in for torch.cuda."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch
from support.fake_cuda_graphs import FakeCuda, FakeGraph

from sdengine.backends.torch.graphs import WARM_UP_RUNS, GraphedFunction, GraphPool, buffer_for


class Doubling:
    """Return 2x + y and x in another order; count the calls and note on which stream they ran."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.streams: list[str] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.streams.append(self.cuda.current_stream().name)
        return x * 2 + y, x.flip(0)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def pair(seed: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(4, generator=generator)


def check(graphed: GraphedFunction, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second = graphed(x, y)
    assert torch.equal(first, x * 2 + y)
    assert torch.equal(second, x.flip(0))
    return first


def test_captures_once_after_a_warm_up_on_a_side_stream(cuda: FakeCuda) -> None:
    function = Doubling(cuda)
    graphed = GraphedFunction(function, "cpu", cuda)
    for seed in range(4):
        check(graphed, *pair(seed))
    assert function.streams == ["side"] * WARM_UP_RUNS + ["main"]
    assert cuda.log == [
        "side waits for main",
        "main waits for side",
        "pool",
        "capture thread_local",
        *["replay"] * 4,
    ]


def test_convolutions_are_measured_for_what_is_captured_and_for_nothing_else(
    cuda: FakeCuda,
) -> None:
    measured: list[bool] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        measured.append(torch.backends.cudnn.benchmark)
        if len(x) == 2:
            raise ValueError("lost")
        return x + 1

    assert not torch.backends.cudnn.benchmark
    graphed = GraphedFunction(function, "cpu", cuda)
    graphed(torch.zeros(3))
    # In the capture too, which else would not take what the warm-up has found.
    assert measured == [True] * (WARM_UP_RUNS + 1)
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(ValueError, match="lost"):
        graphed(torch.zeros(2))
    assert not torch.backends.cudnn.benchmark


def test_buffers_are_the_same_at_every_replay(cuda: FakeCuda) -> None:
    graphed = GraphedFunction(Doubling(cuda), "cpu", cuda)
    x, y = pair(0)
    kept = x.clone()
    first = check(graphed, x, y)
    again = check(graphed, *pair(1))
    assert first.data_ptr() == again.data_ptr()
    assert torch.equal(x, kept)  # the caller's memory is not the graph's


def test_each_shape_has_a_graph_of_its_own(cuda: FakeCuda) -> None:
    graphed = GraphedFunction(Doubling(cuda), "cpu", cuda)
    for rows in (3, 5, 3, 5, 1):
        check(graphed, *pair(rows, rows))
    assert cuda.log.count("capture thread_local") == 3
    assert cuda.log.count("replay") == 5
    x, y = pair(0)
    check(graphed, x.double(), y.double())
    assert cuda.log.count("capture thread_local") == 4


def test_closing_frees_every_graph_and_gives_the_memory_back(cuda: FakeCuda) -> None:
    graphed = GraphedFunction(Doubling(cuda), "cpu", cuda)
    for rows in (3, 5):
        check(graphed, *pair(rows, rows))
    del cuda.log[:]
    graphed.close()
    graphed.close()
    assert cuda.log == ["reset", "reset", "empty_cache"]


def test_what_was_never_called_frees_nothing(cuda: FakeCuda) -> None:
    GraphedFunction(Doubling(cuda), "cpu", cuda).close()
    assert cuda.log == []


def test_a_failed_capture_leaves_nothing_behind(cuda: FakeCuda) -> None:
    calls = 0

    def failing(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == WARM_UP_RUNS + 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x + 1

    graphed = GraphedFunction(failing, "cpu", cuda)
    x = torch.zeros(2)
    with pytest.raises(RuntimeError, match="not permitted"):
        graphed(x)
    assert "replay" not in cuda.log
    assert torch.equal(graphed(x)[0], x + 1)


def test_threads_capture_one_after_the_other(cuda: FakeCuda) -> None:
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        check(GraphedFunction(Doubling(cuda), "cpu", cuda), *pair(0, 64))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.log.count("replay") == 4  # the stand-in refuses two captures at a time


def test_maps_lie_in_channels_last_order() -> None:
    x = torch.randn(2, 3, 4, 5)
    buffer = buffer_for(x, "cpu")
    assert buffer.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(buffer, x)
    assert buffer.data_ptr() != x.data_ptr()


def functions(cuda: FakeCuda, count: int = 2) -> tuple[GraphPool, list[GraphedFunction]]:
    pool = GraphPool(cuda)
    return pool, [GraphedFunction(Doubling(cuda), "cpu", cuda, pool) for _ in range(count)]


def test_outputs_outlive_the_replays_of_others_in_the_pool(cuda: FakeCuda) -> None:
    _, (one, other) = functions(cuda)
    x, y = pair(0)
    expected = x * 2 + y
    first = check(one, x, y)
    for seed, rows in ((1, 3), (2, 5), (3, 3), (4, 5)):  # in any order, at any shapes
        check(other, *pair(seed, rows))
        assert torch.equal(first, expected)
    check(one, *pair(5, 5))
    assert torch.equal(first, expected)
    check(one, *pair(6))
    assert not torch.equal(first, expected)  # the same function's at the same shapes
    assert cuda.log.count("pool") == 1


def test_the_stand_in_overwrites_what_lies_in_a_pool(cuda: FakeCuda) -> None:
    kept: list[torch.Tensor] = []

    def careless(x: torch.Tensor) -> torch.Tensor:
        kept.append(x + 1)
        return kept[-1]

    graphed = GraphedFunction(careless, "cpu", cuda)
    x = torch.ones(3)
    assert torch.equal(graphed(x)[0], x + 1)
    assert [tensor.isnan().any().item() for tensor in kept] == [False] * WARM_UP_RUNS + [True]


def test_a_pool_without_graphs_is_not_used_again(cuda: FakeCuda) -> None:
    _, (one, other) = functions(cuda)
    check(one, *pair(0))
    one.close()
    check(other, *pair(1))  # the stand-in refuses the handle of a pool that is gone
    assert cuda.log.count("pool") == 2


def test_graphs_that_nobody_closed_count_as_gone(cuda: FakeCuda) -> None:
    pool = GraphPool(cuda)
    for seed in range(3):
        check(GraphedFunction(Doubling(cuda), "cpu", cuda, pool), *pair(seed))
        gc.collect()
    assert cuda.log.count("pool") == 3


def test_a_pool_lives_on_while_one_of_its_graphs_does(cuda: FakeCuda) -> None:
    _, (one, other, third) = functions(cuda, 3)
    check(one, *pair(0))
    check(other, *pair(1))
    one.close()
    check(other, *pair(2))
    check(third, *pair(3))
    check(other, *pair(4))
    assert cuda.log.count("pool") == 1


def test_no_graph_joins_the_pool_of_a_failed_capture(cuda: FakeCuda) -> None:
    pool, (one, other) = functions(cuda)
    check(one, *pair(0))
    calls = 0

    def failing(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == WARM_UP_RUNS + 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x + 1

    with pytest.raises(RuntimeError, match="not permitted"):
        GraphedFunction(failing, "cpu", cuda, pool)(torch.zeros(2))
    check(other, *pair(1))
    check(one, *pair(2))
    assert cuda.log.count("pool") == 2


def test_replays_on_different_streams_wait_for_each_other(cuda: FakeCuda) -> None:
    _, (one, other) = functions(cuda)
    check(one, *pair(0))
    check(other, *pair(1))
    before = len(cuda.log)
    with cuda.stream(cuda.Stream()):
        check(one, *pair(2))
        check(other, *pair(3))
    check(one, *pair(4))
    waits = ["side waits for main", "replay", "replay", "main waits for side", "replay"]
    assert cuda.log[before:] == waits


def test_replays_of_different_threads_do_not_overlap(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graphed = functions(cuda, 4)
    for function in graphed:
        check(function, *pair(0))
    run = FakeGraph._run
    failed: list[BaseException] = []

    def slowly(graph: FakeGraph) -> None:
        time.sleep(0.01)
        run(graph)

    def work(function: GraphedFunction) -> None:
        try:
            for seed in range(3):
                check(function, *pair(seed))
        except BaseException as error:
            failed.append(error)

    monkeypatch.setattr(FakeGraph, "_run", slowly)
    threads = [threading.Thread(target=work, args=(function,)) for function in graphed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
