"""Guidance inside an interval of the steps: the time it saves, and what it does to the pictures.

    python benchmarks/guidance_interval.py          # the table and the record

Candidates are compared on prompts that are not the held-out ones; of those with at most MAX_FEWER
in a hundred fewer right pictures than guidance at every step has, the one with the fewest guided
steps is chosen. Only that one is then tried on the held-out prompts of prompt_following.py, each
with the same seed as without an interval. Whole requests are timed in turns, candidate after
candidate, by themselves.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sdengine
from sdengine.benchmarks.accuracy_tables import guidance_interval as as_markdown
from sdengine.benchmarks.measures import OtherLoad, median_ratio
from sdengine.benchmarks.prompt_following import CHOICE_SEED, SAMPLING, TEST_SEED, draw_prompts
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.training.scenes import Scene
from sdengine.training.scoring import score

Interval = tuple[float, float]
THROUGHOUT: Interval = (0.0, 1.0)
CANDIDATES: tuple[Interval, ...] = (
    THROUGHOUT,
    (0.0, 0.8),
    (0.2, 1.0),
    (0.0, 0.6),
    (0.2, 0.8),
    (0.0, 0.4),
    (0.2, 0.6),
)
MAX_FEWER = 2
PROMPT = "a large red circle above a small green star, blue background"


class Seconds(NamedTuple):
    """What one request took: by the clock, and of all processors together."""

    clock: float
    processors: float


def name_of(interval: Interval) -> str:
    """Return an interval as the command takes it."""
    return f"{interval[0]:g},{interval[1]:g}"


def guided_steps(interval: Interval) -> int:
    """Return how many of the steps are guided."""
    request = sdengine.Request("", steps=SAMPLING["steps"], guidance_interval=interval)
    return len(request.guided_steps)


def prompts_of(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Return `count` prompts of one object and as many of two."""
    return [one for objects in (1, 2) for one in draw_prompts(count, objects, seed)]


@dataclass(frozen=True)
class Place:
    """What makes the pictures, in any process."""

    bundle: str
    backend: str
    precision: str
    threads: int
    size: int

    def engine(self) -> sdengine.Engine:
        """Load it."""
        return sdengine.load(self.bundle, self.backend, self.precision, threads=self.threads)


def right(place: Place, count: int, seed: int, interval: Interval) -> list[bool]:
    """Say of each prompt of `prompts_of` whether its picture shows it; prompt i has seed i."""
    found = []
    sides: dict[str, Any] = {"width": place.size, "height": place.size}
    with place.engine() as engine:
        for index, (scene, text) in enumerate(prompts_of(count, seed)):
            made = engine.generate(
                text, seed=index, guidance_interval=interval, **sides, **SAMPLING
            )
            found.append(score(made.arrays[0], scene)["all"] == 1.0)
    print(f"{name_of(interval)}: {sum(found)} of {len(found)}", file=sys.stderr, flush=True)
    return found


def choose(counts: Mapping[Interval, float]) -> Interval:
    """Return the interval of the fewest guided steps that is about as good as all of them.

    Args:
        counts: right pictures in a hundred by interval; THROUGHOUT is one of them.
    """
    least = counts[THROUGHOUT] - MAX_FEWER
    kept = [one for one, count in counts.items() if count >= least]
    return min(kept, key=lambda one: (guided_steps(one), -counts[one], one))


def sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return how likely as uneven a split of the pairs that differ is, if chance decides each.

    Source: "Note on the sampling error of the difference between correlated proportions or
    percentages" (McNemar 1947), in its exact binomial form, two-sided.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    total = only_first + only_second
    tail = sum(math.comb(total, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**total))


def timed(engine: sdengine.Engine, size: int, rounds: int) -> dict[Interval, list[Seconds]]:
    """Return the seconds of whole requests by interval and round; loading is not among them."""
    seconds: dict[Interval, list[Seconds]] = {one: [] for one in CANDIDATES}
    given: dict[str, Any] = {"seed": 1, "width": size, "height": size, **SAMPLING}
    for index in range(rounds + 1):  # the first one loads and warms up
        for interval in CANDIDATES:
            started, busy = time.perf_counter(), time.process_time()
            engine.generate(PROMPT, guidance_interval=interval, **given)
            if index:
                taken = Seconds(time.perf_counter() - started, time.process_time() - busy)
                seconds[interval].append(taken)
    return seconds


def measure(
    place: Place, choice_count: int, count: int, rounds: int, processes: int
) -> dict[str, Any]:
    """Return all figures of the record.

    Args:
        place: what makes the pictures.
        choice_count, count: prompts of one object, and of two, to choose on and held out.
        rounds: of timed requests.
        processes: that make pictures to score at a time.
    """
    with place.engine() as engine:
        load = OtherLoad()
        seconds = timed(engine, place.size, rounds)
        others = round(load.percent(), 1)
        made = {
            "backend": engine.backend.name,
            "precision": engine.precision,
            "guidance_scale": engine.bundle.manifest.defaults.guidance_scale,
        }
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # This one is needed whatever is chosen, and takes longest.
        throughout = pool.submit(right, place, count, TEST_SEED, THROUGHOUT)
        choice = {
            one: pool.submit(right, place, choice_count, CHOICE_SEED, one) for one in CANDIDATES
        }
        counts = {one: sum(future.result()) for one, future in choice.items()}
        chosen = choose({one: 50 * found / choice_count for one, found in counts.items()})
        after = pool.submit(right, place, count, TEST_SEED, chosen).result()
        before = throughout.result()
    return {
        **made,
        "size": place.size,
        "threads": place.threads,
        **SAMPLING,
        "rounds": rounds,
        "other_load_percent": others,
        "candidates": {
            name_of(one): {
                "guided_steps": guided_steps(one),
                **_figures(seconds[THROUGHOUT], seconds[one]),
                "right_of_choice": counts[one],
            }
            for one in CANDIDATES
        },
        "prompts_of_choice": 2 * choice_count,
        "max_fewer_in_a_hundred": MAX_FEWER,
        "chosen": name_of(chosen),
        "held_out": {
            "prompts": 2 * count,
            "right_throughout": sum(before),
            "right_in_interval": sum(after),
            "right_in_both": sum(a and b for a, b in zip(before, after, strict=True)),
            "p": round(sign_test(before, after), 3),
        },
    }


def _figures(throughout: Sequence[Seconds], ours: Sequence[Seconds]) -> dict[str, float]:
    """Return medians, and median ratios of requests that followed each other."""
    found = {}
    for name in Seconds._fields:
        before, after = ([getattr(taken, name) for taken in side] for side in (throughout, ours))
        found[f"{name}_seconds"] = round(statistics.median(after), 4)
        found[f"{name}_ratio"] = round(median_ratio(before, after), 3)
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--count", type=int, default=100, help="held-out prompts for each set")
    parser.add_argument("--choice-count", type=int, default=50, help="others, to choose on")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2, help="that make pictures to score")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    place = Place(options.bundle, options.backend, options.precision, options.threads, options.size)
    counts = options.choice_count, options.count
    record = stamped(measure(place, *counts, options.rounds, options.processes))
    write_record(record, options.output / "guidance-interval.json")
    print(as_markdown(record))


if __name__ == "__main__":
    main()
