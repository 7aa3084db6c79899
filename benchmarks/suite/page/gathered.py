"""Gathered records: what belongs to one setting together, and which colour each system has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdengine.benchmarks.suite.page.ink import OURS, PEERS
from sdengine.benchmarks.suite.suite_records import (
    MEASURED,
    Comparison,
    Growth,
    Profile,
    Ratio,
    Record,
    Side,
    Spread,
)

# Colours that peers have on every page; others take those that are left.
_KNOWN = ("eager", "compile", "diffusers", "onnxruntime", "openvino", "openvino-genai",
          "stable-diffusion.cpp")  # fmt: skip
_STRENGTHS = (1.0, 0.6, 0.4)
REFERENCE = "eager fp32"
_SYMBOLS = {"resolution": "Resolution", "batch_size": "Pictures of a request", "threads": "Threads"}
AXES = tuple(_SYMBOLS)


@dataclass(frozen=True)
class Sourced:
    """A record, and the folder whose pictures it names."""

    record: Record
    folder: Path


@dataclass(frozen=True)
class Together:
    """All comparisons of one setting on one machine, of each peer the last.

    Args:
        number: of the setting in the page, from 1.
        sources: in the order of the files.
        sides: by label, ours first; one that was measured several times is that of the last record.
        folders: of each side's picture.
        ours: labels of sides.
        label: what was asked for, on how many threads or on a GPU, and of which machine where
            another one's would be called the same.
    """

    number: int
    sources: Sequence[Sourced]
    sides: Mapping[str, Side]
    folders: Mapping[str, Path]
    ours: Sequence[str]
    label: str

    @property
    def records(self) -> list[Comparison]:
        """The comparisons themselves."""
        return [one.record for one in self.sources if one.record["kind"] == "comparison"]

    @property
    def first(self) -> Comparison:
        """One whose setting and machine are those of all."""
        return self.records[0]

    @property
    def measured(self) -> dict[str, Side]:
        """Sides that were measured."""
        return {label: side for label, side in self.sides.items() if side["state"] == MEASURED}

    def ratios(self, stage: str) -> Iterator[tuple[str, str, Ratio]]:
        """Yield ours, the peer and their ratio in a stage."""
        for record in self.records:
            for ours, found in record["ratios"].items():
                if stage in found and found[stage]["ratio"] > 0 and record["peer"] is not None:
                    yield ours, record["peer"], found[stage]


@dataclass(frozen=True)
class Scaling:
    """Settings that differ in one field alone.

    Args:
        axis: of AXES.
        label: what they have in common.
        settings: by the field's value, ascending.
    """

    axis: str
    label: str
    settings: Mapping[int, Together]

    @property
    def title(self) -> str:
        """What it is called on the page."""
        return _SYMBOLS[self.axis]

    def points(self, stage: str) -> dict[str, list[tuple[int, Spread]]]:
        """Return the stage's spreads along the axis, by side."""
        found: dict[str, list[tuple[int, Spread]]] = {}
        for value, together in self.settings.items():
            for label, side in together.measured.items():
                spread = side.get("stages_ms", {}).get(stage)
                if spread is not None and spread["median"] > 0:
                    found.setdefault(label, []).append((value, spread))
        return {label: points for label, points in found.items() if len(points) > 1}


@dataclass(frozen=True)
class Gathered:
    """Everything that a page shows.

    Args:
        settings: in the order of their first records.
        growths, profiles: in their order.
        inks: colour of each system, by name.
    """

    settings: Sequence[Together]
    growths: Sequence[Growth]
    profiles: Sequence[Profile]
    inks: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_records(self) -> list[Record]:
        """Every record."""
        compared = [record for together in self.settings for record in together.records]
        return [*compared, *self.growths, *self.profiles]

    def ink(self, label: str) -> str:
        """Return the colour of a side."""
        return self.inks.get(system_of(label), PEERS[0])

    def strength(self, label: str) -> float:
        """Return how strong a side's colour is: weaker for other precisions of a system of ours."""
        system = system_of(label)
        labels = dict.fromkeys(label for one in self.settings for label in one.ours)
        same = [name for name in labels if system_of(name) == system]
        return _STRENGTHS[same.index(label) % len(_STRENGTHS)] if label in same else 1.0

    def scalings(self) -> Iterator[Scaling]:
        """Yield every group of settings that differ in one field, on one machine."""
        for axis in AXES:
            groups: dict[str, dict[int, Together]] = {}
            for together in self.settings:
                value = _value(together, axis)
                if value is not None:
                    groups.setdefault(_without(together, axis), {}).setdefault(value, together)
            scaled = [found for found in groups.values() if len(found) > 1]
            firsts = [next(iter(found.values())) for found in scaled]
            labels = _told_apart([(_common(one, axis), one.first) for one in firsts])
            for label, found in zip(labels, scaled, strict=True):
                yield Scaling(axis, label, dict(sorted(found.items())))


def system_of(label: str) -> str:
    """Return the system's name of a side's label, which ends in a precision."""
    return label.rpartition(" ")[0] or label


def precision_of(label: str) -> str:
    """Return the precision of a side's label."""
    return label.rpartition(" ")[2] if " " in label else ""


def marked(one: Together, rows: Sequence[Sequence[str]]) -> frozenset[int]:
    """Return the indices of a table's rows that begin with a side of ours."""
    return frozenset(index for index, row in enumerate(rows) if row[0] in one.ours)


def gather(sources: Sequence[Sourced]) -> Gathered:
    """Return records by what they belong to."""
    groups: dict[str, dict[str, Sourced]] = {}
    growths: list[Growth] = []
    profiles: list[Profile] = []
    for one in sources:
        record = one.record
        if record["kind"] == "growth":
            growths.append(record)
        elif record["kind"] == "profile":
            profiles.append(record)
        else:
            key = json.dumps([record["setting"], _processor(record), _gpu(record)], sort_keys=True)
            pair = json.dumps([record["peer"], record["ours"]])
            groups.setdefault(key, {}).pop(pair, None)
            groups[key][pair] = one
    settings = [
        _together(number, list(group.values())) for number, group in enumerate(groups.values(), 1)
    ]
    labels = _told_apart([(one.label, one.first) for one in settings])
    settings = [replace(one, label=label) for one, label in zip(settings, labels, strict=True)]
    return Gathered(settings, growths, profiles, _inks(settings, growths, profiles))


def _together(number: int, sources: Sequence[Sourced]) -> Together:
    ours: dict[str, Side] = {}
    peers: dict[str, Side] = {}
    folders: dict[str, Path] = {}
    for one in sources:
        record = one.record
        assert record["kind"] == "comparison"
        for label, side in record["sides"].items():
            among = ours if label in record["ours"] else peers
            if label not in among or side["state"] == MEASURED:
                among[label] = side
                folders[label] = one.folder
    others = {label: side for label, side in peers.items() if label not in ours}
    compared = next(one.record for one in sources if one.record["kind"] == "comparison")
    return Together(number, sources, {**ours, **others}, folders, list(ours), _label(compared))


def _label(record: Comparison) -> str:
    setting, where = record["setting"], ""
    if setting["device"] != "cpu":
        where = f", {setting['device']}"
    elif setting["threads"]:
        where = f", {setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    return f"{record['label']}{where}"


def _told_apart(labels: Sequence[tuple[str, Record]]) -> list[str]:
    """Return labels, with the machine of each that another one's would be equal to."""
    counts = Counter(label for label, _ in labels)
    return [
        f"{label}, {_machine(record)}" if counts[label] > 1 else label for label, record in labels
    ]


def _inks(
    settings: Sequence[Together], growths: Sequence[Growth], profiles: Sequence[Profile]
) -> dict[str, str]:
    """Give our systems the accents, and each peer a quieter colour of its own while they last."""
    ours = dict.fromkeys(system_of(label) for one in settings for label in one.ours)
    if not ours:
        ours = dict.fromkeys(one["backend"] for one in (*growths, *profiles))
    found = {name: OURS[index % len(OURS)] for index, name in enumerate(ours)}
    known = dict(zip(_KNOWN, PEERS, strict=False))
    labels = dict.fromkeys(system_of(label) for one in settings for label in one.sides)
    others = [name for name in labels if name not in found]
    left = [ink for ink in PEERS if ink not in {known.get(name) for name in others}] or PEERS
    strangers = [name for name in others if name not in known]
    found |= {name: known[name] for name in others if name in known}
    return found | {name: left[index % len(left)] for index, name in enumerate(strangers)}


def _machine(record: Record) -> str:
    gpu = _gpu(record)
    return f"{gpu}, {_processor(record)}" if gpu else _processor(record)


def _gpu(record: Record) -> str:
    return str(record.get("gpu", {}).get("name") or "") if record["kind"] == "comparison" else ""


def _processor(record: Record) -> str:
    return str(record["machine"].get("processor"))


def _value(together: Together, axis: str) -> int | None:
    setting = together.first["setting"]
    if axis == "resolution":
        return setting["resolution"]
    return setting["batch_size"] if axis == "batch_size" else setting["threads"]


def _without(together: Together, axis: str) -> str:
    setting = {name: value for name, value in together.first["setting"].items() if name != axis}
    first = together.first
    return json.dumps([setting, _processor(first), _gpu(first)], sort_keys=True)


def _common(together: Together, axis: str) -> str:
    """Return what settings of one axis have in common, in words."""
    setting = together.first["setting"]
    parts = [
        setting["arch"] if setting["task"] == "text" else f"{setting['arch']} {setting['task']}"
    ]
    if axis != "resolution":
        parts.append(f"{setting['resolution']}x{setting['resolution']}")
    if axis != "batch_size" and setting["batch_size"] > 1:
        parts.append(f"batch {setting['batch_size']}")
    parts.append(f"{setting['steps']} steps")
    if axis != "threads" and setting["threads"]:
        parts.append(f"{setting['threads']} threads")
    if setting["device"] != "cpu":
        parts.append(setting["device"])
    return ", ".join(parts)
