"""Rows that two sessions evaluate at once: which, in which threads, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from support.forked import status_of_child

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.backends.split_session import Half, SplitSession
from sdengine.backends.split_worker import SplitWorker, do_at_once
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ConfigError, DeviceError

NAMES = ("split-test-1", "split-test-2")
_LIMIT_SECONDS = 10


class FakeModule:
    """Adds the first number of `table` to each row, and says where it ran."""

    def __init__(self, session: FakeSession, rows: int) -> None:
        self.session = session
        self.inputs = (
            TensorSpec("sample", (rows, 2), "float32"),
            TensorSpec("table", (3,), "float32"),
        )
        self.outputs = (TensorSpec("noise_pred", (rows, 2), "float32"),)

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.session.before_run()
        self.session.ran.append((threading.current_thread().name, inputs["sample"].copy()))
        return {"noise_pred": inputs["sample"] + inputs["table"][0]}

    def close(self) -> None:
        self.session.closed.append("module")


class FakeSession:
    precision = "fp32"
    budget = MemoryBudget()
    max_chunks: int | None = 7
    works_after_fork = True

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str, Mapping[str, tuple[int, ...]]]] = []
        self.ran: list[tuple[str, Any]] = []
        self.closed: list[str] = []
        self.before_run: Any = lambda: None

    def load(
        self, network: str, shapes: Mapping[str, tuple[int, ...]], weights: WeightSet = PRISTINE
    ) -> Any:
        self.loaded.append((threading.current_thread().name, network, shapes))
        return FakeModule(self, shapes["sample"][0])

    def close(self) -> None:
        self.closed.append("session")


class FakeBundle:
    """Networks of two inputs, of which one has rows."""

    def network(self, name: str) -> Any:
        class Entry:
            inputs = (
                TensorSpec("sample", ("batch", 2), "float32"),
                TensorSpec("table", (3,), "float32"),
            )
            outputs = (TensorSpec("noise_pred", ("batch" if name != "odd" else 4, 2), "float32"),)

        return Entry


class Split:
    def __init__(self) -> None:
        self.main, self.first, self.second = (FakeSession() for _ in range(3))
        halves = [
            Half(SplitWorker(name), session)
            for name, session in zip(NAMES, (self.first, self.second), strict=True)
        ]
        bundle: Any = FakeBundle()
        self.session = SplitSession(bundle, self.main, (halves[0], halves[1]))

    def load(self, rows: int, network: str = "unet") -> Any:
        return self.session.load(network, {"sample": (rows, 2), "table": (3,)})


@pytest.fixture
def split() -> Iterator[Split]:
    made = Split()
    yield made
    made.session.close()


def given(rows: int) -> dict[str, Any]:
    sample = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    return {"sample": sample, "table": np.array([100, 0, 0], np.float32)}


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("split-test")]


@pytest.mark.parametrize(("rows", "counts"), [(1, (1,)), (2, (1, 1)), (3, (2, 1)), (8, (4, 4))])
@pytest.mark.parametrize("network", ["unet", "control_edges"])
def test_each_half_has_its_rows(
    split: Split, rows: int, counts: tuple[int, ...], network: str
) -> None:
    module, inputs = split.load(rows, network), given(rows)
    for _ in range(2):
        found = module.run(inputs)["noise_pred"]
        assert (found == inputs["sample"] + 100).all() and found.dtype == np.float32
    assert [spec.shape for spec in (*module.inputs, *module.outputs)] == [
        (rows, 2),
        (3,),
        (rows, 2),
    ]
    sessions, first = (split.first, split.second), 0
    for session, name, count in zip(sessions, NAMES, counts, strict=False):
        assert session.loaded == [(f"{name}_0", network, {"sample": (count, 2), "table": (3,)})]
        for thread, sample in session.ran:
            assert thread == f"{name}_0"
            assert (sample == inputs["sample"][first : first + count]).all()
        first += count
    assert len(split.second.loaded) == len(counts) - 1 and not split.main.loaded


@pytest.mark.parametrize("network", ["vae_decoder", "text_encoder"])
def test_other_networks_are_the_main_sessions(split: Split, network: str) -> None:
    module = split.load(2, network)
    assert isinstance(module, FakeModule) and module.session is split.main
    assert not split.first.loaded and not split.second.loaded


def test_the_halves_run_at_the_same_time(split: Split) -> None:
    meeting = threading.Barrier(2, timeout=_LIMIT_SECONDS)  # broken if one waits for the other
    split.first.before_run = split.second.before_run = meeting.wait
    split.load(2).run(given(2))


def test_inputs_of_other_shapes_are_refused(split: Split) -> None:
    with pytest.raises(ConfigError, match=r"'sample' is \[3, 2\]; this network .* \[2, 2\]"):
        split.load(2).run(given(3))
    assert not split.first.ran


@pytest.mark.parametrize("failing", [0, 1])
def test_a_half_that_fails_leaves_nothing_running(split: Split, failing: int) -> None:
    sessions = (split.first, split.second)

    def fail() -> None:
        raise DeviceError("it is gone")

    sessions[failing].before_run = fail
    sessions[1 - failing].before_run = lambda: time.sleep(0.2)
    module = split.load(2)
    with pytest.raises(DeviceError, match="it is gone"):
        module.run(given(2))
    assert len(sessions[1 - failing].ran) == 1  # it has ended, too
    sessions[failing].before_run = lambda: None
    assert (module.run(given(2))["noise_pred"] == given(2)["sample"] + 100).all()


def test_a_signal_waits_for_both_halves(split: Split) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.2)

    split.first.before_run = interrupt
    with pytest.raises(KeyboardInterrupt):
        split.load(2).run(given(2))
    assert len(split.first.ran) == len(split.second.ran) == 1


def test_closing_frees_both_halves_and_ends_their_threads(split: Split) -> None:
    module = split.load(2)
    assert threads()
    module.close()
    for _ in range(2):
        split.session.close()
    assert split.first.closed == split.second.closed == ["module", "session"]
    assert split.main.closed == ["session"] and not threads()
    with pytest.raises(DeviceError, match="split_guidance: a half does not run"):
        module.run(given(2))


def test_halves_run_in_child_processes(split: Split) -> None:
    module = split.load(2)
    module.run(given(2))

    def again() -> None:
        assert (module.run(given(2))["noise_pred"] == given(2)["sample"] + 100).all()

    assert status_of_child(again) == 0
    again()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not bound here")
def test_a_worker_and_what_it_starts_are_bound_to_processors() -> None:
    before = os.sched_getaffinity(0)
    chosen = max(before)
    worker, found = SplitWorker(NAMES[0], (chosen,)), []

    def start_another() -> set[int]:
        other = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        other.start()
        other.join()
        return os.sched_getaffinity(0)

    assert do_at_once([(worker, start_another)]) == [{chosen}]
    worker.close()
    assert found == [{chosen}] and os.sched_getaffinity(0) == before


def test_processors_that_were_taken_away_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cpus: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    worker = SplitWorker(NAMES[0], (5,))
    with pytest.raises(DeviceError, match=r"may not use processors \[5\] any more"):
        do_at_once([(worker, lambda: None)])
    worker.close()
