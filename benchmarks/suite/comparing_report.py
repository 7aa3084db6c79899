"""Report of two compared files: verdicts that fail, JSON, tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.suite.comparing import (
    BETTER,
    CONFIDENCE,
    MEMORIES,
    START,
    UNCLEAR,
    WORSE,
    Change,
    Found,
    Pair,
)

if TYPE_CHECKING:
    from rich.table import Table

_COLORS = {WORSE: "bold red", BETTER: "green", UNCLEAR: "yellow"}
_WORDS = {
    False: {WORSE: "slower", BETTER: "faster"},
    True: {WORSE: "more", BETTER: "less"},
}


def regressions(found: Found, stages: Collection[str]) -> list[str]:
    """Return a line for each gated stage that became worse, and each side that was lost."""
    lines = [f"{pair.label}, {pair.side}: {pair.lost}" for pair in found.pairs if pair.lost]
    return lines + list(_with_verdict(found, stages, WORSE))


def unclear(found: Found, stages: Collection[str]) -> list[str]:
    """Return a line for each gated stage of which cannot be told whether it became worse."""
    lines = [
        f"{pair.label}, {pair.side}: {stage} is no longer told"
        for pair in found.pairs
        for stage in pair.missing
        if stage in stages
    ]
    return lines + list(_with_verdict(found, stages, UNCLEAR))


def _with_verdict(found: Found, stages: Collection[str], verdict: str) -> Iterator[str]:
    for pair in found.pairs:
        for stage, change in pair.changes.items():
            if stage in stages and change.verdict == verdict:
                word = _word(stage, verdict)
                text = f"{_percent(change.ratio)}{_interval(change, ' ({})')}"
                yield f"{pair.label}, {pair.side}: {stage} {word}, {text}"


def as_json(found: Found, threshold: float, stages: Collection[str]) -> dict[str, Any]:
    """Return everything for a program to read; changes are in percent."""
    return {
        "threshold_percent": 100 * threshold,
        "stages": list(stages),
        "pairs": [
            {
                "label": pair.label,
                "setting": pair.records[0]["setting"],
                "side": pair.side,
                "peer": pair.peer,
                **{
                    when: {
                        "time": record["time"],
                        "commit": record["versions"].get("commit"),
                        "sdengine": record["versions"].get("sdengine"),
                    }
                    for when, record in zip(("before", "after"), pair.records, strict=True)
                },
                "lost": pair.lost,
                "changes": {stage: asdict(change) for stage, change in pair.changes.items()},
            }
            for pair in found.pairs
        ],
        "regressions": regressions(found, stages),
        "unclear": unclear(found, stages),
        "notes": list(found.notes),
    }


def as_rich(pair: Pair, stages: Collection[str]) -> Table:
    """Return a table of one side in one setting; gated stages have a star."""
    from rich.table import Table

    commits = [str(record["versions"].get("commit")) for record in pair.records]
    by = f"times as multiples of {pair.peer}" if pair.peer else "plain times"
    shown = Table(title=f"{pair.label}: {pair.side}, {by}; * fails the gate")
    heads = (
        "",
        f"before, {commits[0]}",
        f"after, {commits[1]}",
        "change",
        f"{100 * CONFIDENCE:g} % interval",
        "",
    )
    for index, name in enumerate(heads):
        shown.add_column(name, justify="right" if 0 < index < len(heads) - 1 else "left")
    for stage, change in pair.changes.items():
        few = "" if min(change.counts) > 2 or change.low is not None else ", too few values"
        shown.add_row(
            stage + " *" * (stage in stages),
            _figure(stage, change.before),
            _figure(stage, change.after),
            _percent(change.ratio),
            _interval(change, "{}"),
            _word(stage, change.verdict) + few,
            style=_COLORS.get(change.verdict),
        )
    if pair.lost:
        shown.add_row("", "measured", pair.lost, "", "", "lost", style=_COLORS[WORSE])
    return shown


def _word(stage: str, verdict: str) -> str:
    if verdict in (WORSE, BETTER):
        return _WORDS[stage in MEMORIES][verdict]
    return verdict


def _figure(stage: str, value: float) -> str:
    if stage in MEMORIES:
        return f"{value / 1e9:.3f} GB"
    return f"{value:.2f} s" if stage == START else f"{value:.2f} ms"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _interval(change: Change, form: str) -> str:
    if change.low is None or change.high is None or change.low == change.high:
        return ""
    return form.format(f"{_percent(change.low)} to {_percent(change.high)}")
