"""Evaluations of a calibration: spread over prompts and schedule, and few."""

from __future__ import annotations

import pytest

from sdengine.compilers.tensorrt.quantisation.calibration import (
    PROMPTS,
    calibration_recordings,
    held_out_recordings,
)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 100])
def test_every_prompt_and_every_step_is_seen(count: int, steps: int) -> None:
    prompts = [f"prompt {index}" for index in range(count)]
    recordings = calibration_recordings(prompts, steps)
    assert [recording.prompt for recording in recordings] == prompts
    seen = [place for recording in recordings for place in recording.evaluations]
    assert all(recording.evaluations for recording in recordings)
    assert set(seen) == set(range(steps))
    assert len(seen) <= max(12, count) + steps
    # First and last step as often as those between.
    assert max(map(seen.count, seen)) - min(map(seen.count, seen)) <= 1 + count % steps


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_held_out_evaluations_are_others_and_include_both_ends(steps: int) -> None:
    recordings = held_out_recordings(steps)
    seen = [place for recording in recordings for place in recording.evaluations]
    assert {0, steps - 1} <= set(seen) and len(seen) == len(set(seen)) <= 4
    known = calibration_recordings(PROMPTS, steps)
    assert not {r.prompt for r in recordings} & {r.prompt for r in known}
    assert not {r.seed for r in recordings} & {r.seed for r in known}
