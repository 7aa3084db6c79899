"""Variant timing: which way to cut a kernel's work is fastest on a GPU, measured once and kept.

A shape is timed when it is first met, which is in the warm-up before a capture, never within one.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdengine.backends.kernel_choices import KeptChoices
from sdengine.backends.torch.graphs import WARM_UP_RUNS, GraphPool
from sdengine.kernels.variants import Variant

# Launching a graph takes as long as a small kernel, so that one holds at least so many.
MIN_CALLS = 20
_RUNS = 5
_WARM_UP_REPLAYS = 2
_log = logging.getLogger(__name__)

Call = Callable[[], object]
# Milliseconds of a call, by several measurements. The calls are one, on tensors of their own.
Timer = Callable[[Sequence[Call]], list[float]]


def graph_timer(
    cuda: Any = torch.cuda, runs: int = _RUNS, before_each: Call = lambda: None
) -> Timer:
    """Return a timer by CUDA events around a graph of many calls, divided by their number.

    The graph holds the calls' own work and nothing else. Each call's result is kept until its
    function comes again.

    Args:
        cuda: torch's interface to graphs and events.
        runs: counted, after a warm-up.
        before_each: runs before each measurement and is not counted.
    """

    def times(functions: Sequence[Call]) -> list[float]:
        calls = len(functions) * -(-MIN_CALLS // len(functions))
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for function in (*[functions[0]] * WARM_UP_RUNS, *functions):
                function()
        cuda.current_stream().wait_stream(side)
        pool = GraphPool(cuda)
        kept: list[Any] = [None] * len(functions)
        with pool.capture() as graph:
            for call, function in zip(range(calls), itertools.cycle(functions), strict=False):
                kept[call % len(functions)] = function()
        for _ in range(_WARM_UP_REPLAYS):
            pool.replay(graph)
        pairs = []
        for _ in range(runs):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            before_each()
            start.record()
            pool.replay(graph)
            end.record()
            pairs.append((start, end))
        cuda.synchronize()
        kept.clear()
        pool.free(graph)
        cuda.empty_cache()
        return [start.elapsed_time(end) / calls for start, end in pairs]

    return times


class VariantChoices:
    """The fastest variant of each kernel and shape; the networks of a session share them.

    Args:
        kept: what was found before, and where it is written.
        timer: see `graph_timer`.
    """

    def __init__(self, kept: KeptChoices, timer: Timer) -> None:
        self._kept = kept
        self._timer = timer

    def choose(
        self, name: str, variants: Sequence[Variant], run: Callable[[Variant], object]
    ) -> Variant:
        """Return the fastest variant for a shape, timing them unless that is known.

        Args:
            name: of the operation, its type and shape.
            variants: the presumably fastest first.
            run: computes with one on the tensors at hand.
        """
        by_name = {variant.name: variant for variant in variants}
        known = by_name.get(self._kept.found.get(name, ""))
        if known is not None or len(variants) == 1:
            return known or variants[0]
        best_ms = {v.name: min(self._timer([functools.partial(run, v)])) for v in variants}
        fastest = min(best_ms, key=lambda one: best_ms[one])
        shown = ", ".join(f"{one} {1000 * ms:.1f} us" for one, ms in best_ms.items())
        _log.debug("%s: %s of %s", name, fastest, shown)
        self._kept.add(name, fastest)
        return by_name[fastest]

    def save(self) -> None:
        """Write down what is new."""
        self._kept.save()
