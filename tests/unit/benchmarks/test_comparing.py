"""Comparing two runs of the suite: planted changes are told from noise and from drift."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from sdengine.benchmarks.records import append_record
from sdengine.benchmarks.suite.comparing import (
    BETTER,
    GATED,
    NO_WORSE,
    UNCLEAR,
    WORSE,
    compare_records,
    judge,
)
from sdengine.benchmarks.suite.comparing_report import regressions, unclear
from sdengine.cli import main as cli
from sdengine.cli.bench_compare import compare
from sdengine.errors import ConfigError

OURS, PEER = "native bf16", "eager fp32"
BASE_MS = {"text_encoder": 40.0, "unet_step": 900.0, "vae_decoder": 2000.0, "end_to_end": 20_000.0}
RUNS = 7
Change = Callable[[dict[str, Any]], None]


def side(
    rng: np.random.Generator, speeds: Any, factor: float, noise: float = 0.01
) -> dict[str, Any]:
    """Return a side's figures: noise of each run, one of the process, and rare disturbances."""
    own = np.exp(rng.normal(0, noise / 3))
    stages = {}
    for stage, base in BASE_MS.items():
        disturbed = 1 + (rng.random(len(speeds)) < 0.05) * rng.uniform(0.05, 0.3, len(speeds))
        values = base * factor * own * speeds * np.exp(rng.normal(0, noise, len(speeds)))
        values = (values * disturbed).tolist()
        stages[stage] = {"median": float(np.median(values)), "n": len(values), "values": values}
    return {
        "state": "measured",
        "stages_ms": stages,
        "memory": {"peak_bytes": 3e9 * float(np.exp(rng.normal(0, 0.002)))},
        "start_seconds": {"import": 0.2, "load": 1.0, "first_request": 25.0},
    }


def record(seed: int, factor: float = 1.0, speed: float = 1.0, **changed: Any) -> dict[str, Any]:
    """Return a run in which the machine's speed drifts by up to a fifth meanwhile."""
    rng = np.random.default_rng(seed)
    runs = changed.pop("runs", RUNS)
    speeds = speed * (1 + 0.2 * np.sin(np.linspace(0, 3, runs) + rng.uniform(0, 6)))
    noise = changed.pop("noise_of_runs", 0.01)
    sides = {OURS: side(rng, speeds, factor, noise), PEER: side(rng, speeds, 3.0, noise)}
    made = {
        "schema": 3,
        "kind": "comparison",
        "time": f"2026-01-01T00:00:{seed % 60:02}+00:00",
        "setting": {"arch": "sd15", "resolution": 512, "threads": 2, "device": "cpu"},
        "label": "sd15 512x512",
        "ours": [OURS],
        "peer": PEER,
        "sides": sides,
        "noise": {"is_noisy": False, "why": []},
        "machine": {"processor": "A processor", "cores": 2},
        "versions": {"sdengine": "1.0", "commit": "abc", "numpy": "2.0"},
    }
    return {**made, **changed}


def verdicts(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    (pair,) = compare_records([before], [after], 0.05).pairs
    return {stage: change.verdict for stage, change in pair.changes.items()}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("runs", [7, 10])
def test_a_planted_tenth_is_flagged(seed: int, runs: int) -> None:
    before = record(2 * seed, runs=runs)
    found = verdicts(before, record(2 * seed + 1, 1.1, speed=0.8, runs=runs))
    assert (found["unet_step"], found["end_to_end"]) == (WORSE, WORSE)
    assert found["peak_memory"] == NO_WORSE


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_same_code_passes_on_a_machine_that_became_slower(seed: int, runs: int) -> None:
    before = record(2 * seed, runs=runs)
    found = compare_records([before], [record(2 * seed + 1, speed=1.6, runs=runs)], 0.05)
    assert regressions(found, GATED) == []
    (pair,) = found.pairs
    # The plain times show nothing but the machine.
    assert pair.changes["unet_step"].after > 1.15 * pair.changes["unet_step"].before


def test_what_became_faster_or_smaller_is_told() -> None:
    after = record(1, 1 / 1.1)
    after["sides"][OURS]["memory"]["peak_bytes"] = 2e9
    found = verdicts(record(0), after)
    assert (found["unet_step"], found["peak_memory"]) == (BETTER, BETTER)


def test_without_a_common_peer_plain_times_are_compared() -> None:
    before, after = (record(seed, speed=m) for seed, m in ((0, 1.0), (1, 1.3)))
    after["sides"]["another"] = after["sides"].pop(PEER)
    after["peer"] = "another"
    found = compare_records([before], [after], 0.05)
    (pair,) = found.pairs
    assert pair.peer is None and pair.changes["unet_step"].yardstick is None
    assert pair.changes["unet_step"].ratio == pytest.approx(1.3, abs=0.25)
    assert any("no peer in common" in line for line in found.notes)


def test_a_peer_of_one_stage_still_tells_how_fast_the_machine_was() -> None:
    before, after = record(0), record(1, speed=1.3)
    for one in (before, after):
        stages = one["sides"][PEER]["stages_ms"]
        one["sides"][PEER]["stages_ms"] = {"end_to_end": stages["end_to_end"]}
    (pair,) = compare_records([before], [after], 0.05).pairs
    change = pair.changes["unet_step"]
    assert change.yardstick == "end_to_end"
    assert change.ratio == pytest.approx(1, abs=0.05)


def test_a_peer_whose_times_scatter_hides_no_change() -> None:
    flagged = 0
    for seed in range(20):
        ends = []
        for number, factor in ((0, 1.0), (1, 1.1)):
            rng = np.random.default_rng(2 * seed + number)
            made, steady = record(2 * seed + number), np.ones(9)
            made["sides"][OURS] = side(rng, steady, factor)
            made["sides"][PEER] = side(rng, steady, 3.0, noise=0.25)
            ends.append(made)
        found = compare_records([ends[0]], [ends[1]], 0.05)
        (pair,) = found.pairs
        step = pair.changes["unet_step"]
        if step.yardstick is None:
            assert step.verdict == WORSE
            assert any("scatter more than ours" in line for line in found.notes)
            flagged += 1
    # In the others the peer's times tell, by chance, that the machine changed.
    assert flagged >= 18


def test_a_drift_that_one_stage_of_the_peer_tells_counts_for_all() -> None:
    rng = np.random.default_rng(0)
    ends = []
    for number, speed in enumerate((1.0, 1.2)):
        made, speeds = record(number), np.full(9, speed)
        made["sides"][OURS] = side(rng, speeds, 1.0)
        made["sides"][PEER] = side(rng, speeds, 3.0, noise=0.25)
        steady = side(rng, speeds, 3.0)["stages_ms"]["unet_step"]
        made["sides"][PEER]["stages_ms"]["unet_step"] = steady
        ends.append(made)
    found = compare_records([ends[0]], [ends[1]], 0.05)
    assert regressions(found, GATED) == []
    (pair,) = found.pairs
    assert pair.changes["end_to_end"].yardstick == "end_to_end"


def test_few_values_of_a_peer_do_not_tell_that_the_machine_stayed_as_it_was() -> None:
    ends = [record(0, runs=20), record(1, speed=1.3, runs=20)]
    for one in ends:
        # As of a peer that was asked for one step.
        told = one["sides"][PEER]["stages_ms"]["end_to_end"]
        told["values"] = told["values"][:1]
        one["sides"][PEER]["stages_ms"] = {"end_to_end": told}
    found = compare_records([ends[0]], [ends[1]], 0.05)
    assert regressions(found, GATED) == []
    assert len(unclear(found, GATED)) == 2


def test_too_few_or_too_noisy_values_are_unclear_and_fail_no_gate() -> None:
    for before, after in (
        (record(0, runs=2), record(1, 1.1, runs=2)),
        (record(0, noise_of_runs=0.3), record(1, noise_of_runs=0.3)),
    ):
        found = compare_records([before], [after], 0.05)
        assert regressions(found, GATED) == []
        assert len(unclear(found, GATED)) == 2


def test_a_disturbed_round_of_many_is_left_out() -> None:
    before, after = record(0, runs=10), record(1, 1.1, runs=10)
    for one, name in ((before, OURS), (after, PEER)):
        one["sides"][name]["stages_ms"]["unet_step"]["values"][4] *= 1.5
    (pair,) = compare_records([before], [after], 0.05).pairs
    change = pair.changes["unet_step"]
    assert change.left_out >= 2 and sum(change.counts) + change.left_out == 20
    assert change.verdict == WORSE


def test_the_rule() -> None:
    assert judge(1.06, 1.03, 1.09, 0.05) == WORSE
    assert judge(1.06, 1.02, 1.09, 0.05) == UNCLEAR  # may be what two processes differ by
    assert judge(1.04, 1.03, 1.06, 0.05) == UNCLEAR
    assert judge(1.04, 1.03, 1.05, 0.05) == NO_WORSE
    assert judge(1 / 1.06, 1 / 1.09, 1 / 1.03, 0.05) == BETTER
    assert judge(1 / 1.06, 1 / 1.09, 1 / 1.02, 0.05) == NO_WORSE
    assert judge(2.0, None, None, 0.05) == UNCLEAR


def test_more_memory_and_a_side_that_fails_are_regressions() -> None:
    after = record(1)
    after["sides"][OURS]["memory"]["peak_bytes"] = 3.3e9
    (line,) = regressions(compare_records([record(0)], [after], 0.05), GATED)
    assert "peak_memory more, +1" in line
    after["sides"][OURS] = {"state": "out of memory", "why": "killed"}
    (line,) = regressions(compare_records([record(0)], [after], 0.05), ())
    assert "out of memory: killed" in line
    after["sides"][OURS] = {"state": "not run", "why": "not installed"}
    found = compare_records([record(0)], [after], 0.05)
    assert regressions(found, GATED) == [] and unclear(found, GATED)


def test_the_newest_of_each_is_taken_and_the_rest_named() -> None:
    other = record(2, label="another", setting={**record(0)["setting"], "threads": 1})
    found = compare_records(
        [record(5), record(3, 2.0), other], [record(4), {"schema": 3, "kind": "growth"}], 0.05
    )
    (pair,) = found.pairs
    assert pair.records[0]["time"] == record(5)["time"]
    assert any(
        "another, native bf16 was measured only before; nearest is one with threads 2 in place "
        "of 1" in line
        for line in found.notes
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    app = typer.Typer(rich_markup_mode=None)
    app.command("compare")(compare)
    app.command("other")(lambda: None)
    monkeypatch.setattr(cli, "_make_app", lambda invoked: app)
    return lambda *words: cli.main(["compare", *map(str, words)])


def write(path: Path, *records: dict[str, Any]) -> Path:
    for one in records:
        append_record(one, path)
    return path


def test_the_command_tables_json_and_statuses(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", record(0))
    same, slow = write(tmp_path / "b.jsonl", record(1)), write(tmp_path / "c.jsonl", record(1, 1.1))
    assert command(a, same) == 0
    shown = capsys.readouterr().out
    assert "end_to_end *" in shown and "no regression" in shown and "multiples of eager" in shown
    assert command(a, slow) == 1
    assert "regression: sd15 512x512, native bf16: unet_step slower, +1" in capsys.readouterr().out
    assert command(a, slow, "--threshold", "20%") == 0
    assert command(a, slow, "--stages", "peak_memory") == 0
    capsys.readouterr()
    assert command(a, slow, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"][0]["changes"]["unet_step"]["verdict"] == WORSE
    assert len(told["regressions"]) == 2
    few = write(tmp_path / "few.jsonl", record(1, runs=2))
    assert command(a, few) == 0
    assert command(a, few, "--strict") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threshold", "0.05"), "a percentage above 0"),
        (("--threshold", "-5%"), "a percentage above 0"),
        (("--threshold", "nan%"), "a percentage above 0"),
        (("--stages", "unet"), "--stages: 'unet' is not accepted"),
        (("--stages", "device_memory"), "what both files tell"),
    ],
)
def test_wrong_options_are_refused(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    message: str,
) -> None:
    path = write(tmp_path / "a.jsonl", record(0))
    assert command(path, path, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"setting": {"arch": "sdxl"}}, "no measured side of ours with an equal setting"),
        ({"machine": {"processor": "B"}}, "--any-machine"),
        ({"versions": None}, "incomplete or damaged"),
        ({"sides": {}}, "incomplete or damaged"),
        ({"ours": 3}, "incomplete or damaged"),
        ({"schema": 1}, "not a benchmark record of schema 3"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
    message: str,
) -> None:
    a, b = (write(tmp_path / f"{i}.jsonl", record(i, **o)) for i, o in enumerate(({}, other)))
    assert command(a, b) == 2
    assert message in capsys.readouterr().err
    assert command(a, tmp_path / "absent.jsonl") == 2


def test_other_processors_are_compared_if_asked_for_and_named(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed: dict[str, Any] = {
        "machine": {"processor": "B", "cores": 4},
        "versions": {"numpy": "2.1"},
    }
    a, b = (write(tmp_path / f"{i}.jsonl", record(i, **o)) for i, o in enumerate(({}, changed)))
    assert command(a, b, "--any-machine") == 0
    told = capsys.readouterr().err
    assert "processor was A processor before and is B after" in told
    assert "numpy was 2.0 before and is 2.1 after" in told


def test_a_name_alone_does_not_make_one_processor_of_two() -> None:
    before, after = record(0), record(1)
    after["machine"] = {**after["machine"], "processor": "A processor (family 25, model 1)"}
    with pytest.raises(ConfigError, match="on A processor before and on A processor \\(family 25"):
        compare_records([before], [after], 0.05)
