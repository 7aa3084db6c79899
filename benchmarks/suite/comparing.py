"""Two files of comparisons, before and after a change of the code: what became slower or larger.

The two were measured at different times, on a machine whose speed drifts and is shared. Where both
have the same peer, which took turns with ours, ours is taken as a multiple of the peer's time of
the same round: what slowed both down cancels. Plain times are compared where there is no such peer,
or where its own times tell of no change and scatter so much that dividing by them hides ours.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sdengine.benchmarks.measures import ratio_interval
from sdengine.benchmarks.suite.sides.side import STAGES
from sdengine.errors import ConfigError

SCHEMA, KIND = 3, "comparison"
START = "start"
MEMORIES = {"peak_memory": "peak_bytes", "device_memory": "device_bytes"}
# Each end of an interval is passed by chance once in 20 times: a gate looks at one of them.
CONFIDENCE = 0.9
# Stages of a peer that tell whether the machine became slower, and how surely they must before all
# of ours are divided by the peer's though these scatter more.
_TELLING = ("unet_step", "end_to_end")
_CONFIDENCE_OF_CHANGE = 0.99
# Of fewer values none can be told to stand apart.
_LEAST_TO_LEAVE_OUT = 5
_MOST_DEVIATIONS, _LEAST_DEVIATION = 3.5, 0.0015
COMPARED = (*STAGES, START, *MEMORIES)
GATED = ("unet_step", "end_to_end", *MEMORIES)
WORSE, BETTER, NO_WORSE, UNCLEAR = "worse", "better", "no worse", "unclear"
# What a side can have become since it was measured before, besides slower.
_LOST = ("failed", "out of memory")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """What became of one stage.

    Args:
        before, after: medians, in ms; in seconds of START, in bytes of memory.
        ratio: after over before, by the peer's time where there is one.
        low, high: ends of the ratio's interval at CONFIDENCE; None where there are too few values.
        counts: values that were used before and after.
        left_out: values that stood apart, before and after together.
        yardstick: stage of the peer that both were divided by, or None for plain times.
        verdict: WORSE, BETTER, NO_WORSE or UNCLEAR.
    """

    before: float
    after: float
    ratio: float
    low: float | None
    high: float | None
    counts: tuple[int, int]
    left_out: int
    yardstick: str | None
    verdict: str


@dataclass(frozen=True)
class Pair:
    """One side of ours in one setting, before and after.

    Args:
        label: of the setting.
        side: of ours.
        peer: that both records have, or None.
        records: before and after.
        changes: by stage, of those that both have.
        lost: why the side was not measured after, where that is a failure; else "".
        missing: stages that were there before, and are no more.
    """

    label: str
    side: str
    peer: str | None
    records: tuple[Record, Record]
    changes: Mapping[str, Change]
    lost: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """Everything that two files tell of each other."""

    pairs: Sequence[Pair]
    notes: Sequence[str]


class _Side(NamedTuple):
    """One side of ours in one record."""

    record: Record
    figures: Mapping[str, Any]

    @property
    def is_measured(self) -> bool:
        return bool(self.figures["state"] == "measured")

    def peer(self) -> Mapping[str, Any] | None:
        """Return the figures of the peer that took turns with it, if it was measured."""
        figures = self.record["sides"].get(self.record["peer"] or "")
        return figures if figures and figures["state"] == "measured" else None

    def values(self, stage: str) -> list[float]:
        return _values(self.figures, stage)


def judge(ratio: float, low: float | None, high: float | None, threshold: float) -> str:
    """Return what a change is called.

    It is worse where the ratio is above 1 + threshold and all of its interval above half of that:
    the change is large and not only noise. The half is room for what differs between two
    processes of the same code, such as where their memory lies, of which the values within one
    tell nothing. Better is the same for the inverse. Else it is no worse where all of the interval
    is below 1 + threshold, and where that cannot be told it is unclear.

    Args:
        ratio, low, high: after over before.
        threshold: above 0; 0.05 for 5 %.
    """
    if low is None or high is None:
        return UNCLEAR
    if ratio > 1 + threshold and low > 1 + threshold / 2:
        return WORSE
    if 1 / ratio > 1 + threshold and 1 / high > 1 + threshold / 2:
        return BETTER
    return NO_WORSE if high <= 1 + threshold else UNCLEAR


def compare_records(
    before: Sequence[Record],
    after: Sequence[Record],
    threshold: float,
    *,
    any_machine: bool = False,
) -> Found:
    """Compare the newest records of equal settings and sides.

    Args:
        before, after: records of SCHEMA; those of another kind are passed over.
        threshold: a change beyond it counts; 0.05 for 5 %.
        any_machine: compare records of different processors too.

    Raises:
        ConfigError: a record lacks something, nothing can be paired, or processors differ.
    """
    sides = [_newest(records) for records in (before, after)]
    pairs, notes = [], _unpaired(*sides)
    for key in sides[0]:
        if key not in sides[1]:
            continue
        first, second = _chosen(sides[0][key], sides[1][key])
        if not first.is_measured:
            continue
        if not any_machine:
            _require_one_processor(first.record, second.record)
        pair = _pair(key[1], first, second, threshold)
        pairs.append(pair)
        notes += [f"{pair.label}, {pair.side}: {text}" for text in _differences(pair)]
    if not pairs:
        raise ConfigError(
            "The two files have no measured side of ours with an equal setting. "
            + " ".join(f"{text}." for text in notes)
        )
    return Found(pairs, list(dict.fromkeys(notes)))


def _newest(records: Sequence[Record]) -> dict[tuple[str, str], dict[str | None, _Side]]:
    """Return the newest of each side of ours by its setting and label, and then by its peer."""
    found: dict[tuple[str, str], dict[str | None, _Side]] = {}
    mine = [record for record in records if record.get("kind") == KIND]
    try:
        for record in sorted(mine, key=lambda record: str(record["time"])):
            setting = json.dumps(record["setting"], sort_keys=True)
            for label in record["ours"]:
                side = _Side(record, record["sides"][label])
                _check(side)
                found.setdefault((setting, label), {})[record["peer"]] = side
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"A record of a comparison is incomplete or damaged: {error!r}. Measure again."
        ) from None
    return found


def _check(side: _Side) -> None:
    """Touch all that is read later, so that what a record lacks is told at once."""
    record = side.record
    _ = record["label"], record["machine"]["processor"], record["versions"].items()
    for figures in filter(None, (side.figures, side.peer())):
        if figures["state"] == "measured":
            for stage in COMPARED:
                if not all(0 <= value < math.inf for value in _values(figures, stage)):
                    raise ValueError(f"{stage} of {record['label']} is no number from 0 up")


def _values(figures: Mapping[str, Any], stage: str) -> list[float]:
    """Return a stage's values in their order; none where it is not told."""
    if stage in MEMORIES:
        found = figures["memory"].get(MEMORIES[stage])
        return [] if found is None else [float(found)]
    if stage == START:
        seconds = figures["start_seconds"]
        # Without what is kept for the next start, and so missing then.
        total = sum(float(value) for name, value in seconds.items() if name != "pack")
        return [total] if seconds else []
    spread = figures["stages_ms"].get(stage)
    if spread is None:
        return []
    return [float(value) for value in spread.get("values") or [spread["median"]]]


def _chosen(
    before: Mapping[str | None, _Side], after: Mapping[str | None, _Side]
) -> tuple[_Side, _Side]:
    """Return the two with a common peer and the most values, or else the newest of each."""

    def count(peer: str | None) -> int:
        both = before[peer], after[peer]
        if not all(side.is_measured and side.peer() for side in both):
            return 0
        return min(len(side.values("end_to_end")) for side in both)

    common = [peer for peer in before if peer in after and count(peer)]
    if common:
        best = max(common, key=count)
        return before[best], after[best]
    ends = []
    for sides in (before, after):
        measured = [side for side in sides.values() if side.is_measured]
        ends.append(max(measured or sides.values(), key=lambda side: str(side.record["time"])))
    return ends[0], ends[1]


def _pair(label: str, before: _Side, after: _Side, threshold: float) -> Pair:
    records = (before.record, after.record)
    name = before.record["label"]
    if not after.is_measured:
        state = after.figures["state"]
        why = f"{state}: {after.figures.get('why', '')}".rstrip(": ")
        lost = why if state in _LOST else ""
        gone = () if lost else tuple(stage for stage in COMPARED if before.values(stage))
        return Pair(name, label, None, records, {}, lost, gone)
    peers = before.peer(), after.peer()
    is_common = before.record["peer"] == after.record["peer"] and all(peers)
    changes: dict[str, Change] = {}
    missing: list[str] = []
    has_drifted = is_common and any(
        _is_changed(*(_values(peer or {}, stage) for peer in peers)) for stage in _TELLING
    )
    for stage in COMPARED:
        values = before.values(stage), after.values(stage)
        if all(values):
            both = (peers[0], peers[1]) if is_common and stage in STAGES else (None, None)
            changes[stage] = _change(stage, values, both, has_drifted, threshold)
        elif values[0]:
            missing.append(stage)
    peer = before.record["peer"] if is_common else None
    return Pair(name, label, peer, records, changes, missing=tuple(missing))


def _change(
    stage: str,
    values: tuple[list[float], list[float]],
    peers: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
    has_drifted: bool,
    threshold: float,
) -> Change:
    yardstick = None
    compared = plain = _compared(*values)
    if peers[0] and peers[1]:
        # A peer that does not tell its stages apart still tells how fast the machine was, and what
        # it does outside its networks is too little to measure by.
        told = stage != "outside" and all(_values(peer, stage) for peer in peers if peer)
        yardstick = stage if told else "end_to_end"
        rulers = _values(peers[0], yardstick), _values(peers[1], yardstick)
        multiples = [_multiples(*pair) for pair in zip(values, rulers, strict=True)]
        compared = _compared(multiples[0], multiples[1])
        # Few values of a peer tell nothing: not that the machine stayed as it was either.
        if plain.width < compared.width < math.inf and not has_drifted:
            compared, yardstick = plain, None
    ratio, low, high = compared.interval
    if stage in MEMORIES:
        low = high = ratio  # which hardly varies, and is measured once
    verdict = judge(ratio, low, high, threshold)
    medians = _median(values[0]), _median(values[1])
    return Change(
        *medians, ratio, low, high, compared.counts, compared.left_out, yardstick, verdict
    )


class _Compared(NamedTuple):
    """Values after over those before, without what stands apart."""

    interval: tuple[float, float | None, float | None]
    counts: tuple[int, int]
    left_out: int

    @property
    def width(self) -> float:
        _, low, high = self.interval
        return math.inf if low is None or high is None else high / low


def _compared(before: list[float], after: list[float], confidence: float = CONFIDENCE) -> _Compared:
    kept = _undisturbed(before), _undisturbed(after)
    counts = len(kept[0]), len(kept[1])
    interval = ratio_interval(kept[1], kept[0], paired=False, confidence=confidence)
    return _Compared(interval, counts, len(before) + len(after) - sum(counts))


def _is_changed(before: list[float], after: list[float]) -> bool:
    if not before or not after:
        return False
    _, low, high = _compared(before, after, _CONFIDENCE_OF_CHANGE).interval
    return low is not None and high is not None and not low <= 1 <= high


def _undisturbed(values: list[float]) -> list[float]:
    """Leave out what stands apart by several times the usual deviation.

    Other programs take the machine for a moment, more often from one side than from both; a few
    such values among ten would make the interval as wide as they are.
    """
    if len(values) < _LEAST_TO_LEAVE_OUT:
        return values
    logs = np.log(np.maximum(values, 1e-9))
    apart = np.abs(logs - np.median(logs))
    # 1.4826 times the median of a normal distribution's deviations is its standard deviation.
    usual = max(1.4826 * float(np.median(apart)), _LEAST_DEVIATION)
    return [v for v, far in zip(values, apart, strict=True) if far <= _MOST_DEVIATIONS * usual]


def _multiples(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """Divide by the peer's of the same round; later rounds of only one of them are left out."""
    return [one / other for one, other in zip(ours, peers, strict=False)]


def _median(values: Sequence[float]) -> float:
    return ratio_interval(values, [1.0], paired=False)[0]


def _require_one_processor(before: Record, after: Record) -> None:
    places = []
    for record in (before, after):
        on_gpu = record["setting"].get("device") == "cuda" and record.get("gpu")
        places.append(on_gpu["name"] if on_gpu else record["machine"]["processor"])
    if places[0] != places[1]:
        raise ConfigError(
            f"{before['label']} was measured on {places[0]} before and on {places[1]} after. "
            "Measure both on one machine, or give --any-machine."
        )


def _differences(pair: Pair) -> Iterator[str]:
    """Yield what besides the code differs between the records of a pair."""
    before, after = pair.records
    for name in ("processor", "cores", "system", "isa", "governor", "affinity"):
        ends = [record["machine"].get(name) for record in pair.records]
        if ends[0] != ends[1]:
            yield f"{name} was {ends[0]} before and is {ends[1]} after"
    for name in sorted({*before["versions"], *after["versions"]} - {"commit", "sdengine"}):
        ends = [record["versions"].get(name) for record in pair.records]
        if ends[0] != ends[1]:
            # A peer's release changes the yardstick.
            yield f"{name} was {ends[0]} before and is {ends[1]} after"
    scaled = [r["sides"][pair.side].get("scaled_from_steps") for r in pair.records]
    if scaled[0] != scaled[1]:
        yield f"end_to_end was scaled from {scaled[0]} steps before and from {scaled[1]} after"
    for record, when in zip(pair.records, ("before", "after"), strict=True):
        noise = record.get("noise") or {}
        if noise.get("is_noisy"):
            yield f"measured {when} among noise: {'; '.join(map(str, noise.get('why', [])))}"
    if pair.changes and pair.peer is None:
        yield "no peer in common, so that a drift of the machine's speed is in the times"
    plain = [s for s, change in pair.changes.items() if s in STAGES and not change.yardstick]
    if pair.peer and plain:
        yield (
            f"plain times of {', '.join(plain)}: those of {pair.peer} scatter more than ours, and "
            "tell of no change of the machine"
        )
    if pair.missing:
        yield f"no longer told: {', '.join(pair.missing)}"


def _unpaired(
    before: Mapping[tuple[str, str], Mapping[str | None, _Side]],
    after: Mapping[tuple[str, str], Mapping[str | None, _Side]],
) -> list[str]:
    """Return a line for each side and setting that only one file has, and what the nearest is."""
    lines = []
    ends = (("before", before, after), ("after", after, before))
    for when, own, other in ends:
        for key in (key for key in own if key not in other):
            record = next(iter(own[key].values())).record
            line = f"{record['label']}, {key[1]} was measured only {when}"
            near = min((_unequal(key, one) for one in other), key=len, default=[])
            if 0 < len(near) <= 2:
                line += f"; nearest is one with {', '.join(near)}"
            lines.append(line)
    return lines


def _unequal(key: tuple[str, str], other: tuple[str, str]) -> list[str]:
    settings = json.loads(key[0]), json.loads(other[0])
    names = itertools.chain(settings[0], (name for name in settings[1] if name not in settings[0]))
    found = [
        f"{name} {settings[1].get(name)} in place of {settings[0].get(name)}"
        for name in names
        if settings[0].get(name) != settings[1].get(name)
    ]
    return found + ([f"{other[1]} in place of {key[1]}"] if key[1] != other[1] else [])
