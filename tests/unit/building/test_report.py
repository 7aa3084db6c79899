"""Stages of a build: timed, reported, cancelled between each other."""

from __future__ import annotations

import threading

import pytest

from sdengine.building.report import Stages
from sdengine.errors import Cancelled


def test_stages_are_reported_as_they_begin_and_timed_as_they_end() -> None:
    told: list[tuple[str, int, int]] = []
    stages = Stages(3, lambda *stage: told.append(stage))
    with stages.stage("read"):
        assert stages.seconds == {}
    with stages.stage("compile unet"):
        stages.compiler_step("unet: tactics", 1, 7)
    stages.begin("hash")
    stages.end()
    stages.end()  # nothing is open
    assert told == [
        ("read", 0, 3),
        ("compile unet", 1, 3),
        ("compile unet: tactics 1/7", 1, 3),
        ("hash", 2, 3),
    ]
    assert [*stages.seconds] == ["read", "compile unet", "hash"]
    assert min(stages.seconds.values()) >= 0


def test_a_cancelled_build_begins_no_stage() -> None:
    cancel = threading.Event()
    stages = Stages(2, cancel=cancel)
    stages.begin("read")
    cancel.set()
    with pytest.raises(Cancelled):
        stages.begin("hash")
