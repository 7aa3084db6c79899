"""The record of adapters' formats is whole, and its table says what is not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdengine.benchmarks.accuracy_tables import adapter_formats as as_markdown
from sdengine.benchmarks.adapter_cases import FORMATS
from sdengine.benchmarks.adapter_formats import FAMILIES, PLAIN, failures

RECORD = Path(__file__).parents[3] / "benchmarks" / "results" / "adapter-formats.json"


def test_every_format_and_family_is_recorded_or_said_not_to_exist() -> None:
    cells = json.loads(RECORD.read_text())["psnr_db"]
    assert list(cells) == [PLAIN, *FORMATS]
    assert not failures(cells)
    for title, form in FORMATS.items():
        assert list(FAMILIES) == [n for n in FAMILIES if n in cells[title] or n in form.absent]
        assert not cells[title].keys() & form.absent.keys()


@pytest.mark.parametrize(
    ("near", "effect", "told"),
    [(40.0, 30.0, []), (39.9, 30.0, ["39.9 dB, below 40 dB"]), (40.0, 30.1, ["no effect"])],
)
def test_what_is_far_and_what_does_nothing_fail(near: float, effect: float, told: Any) -> None:
    cell = {"against_reference": near, "against_without": effect}
    found = failures({PLAIN: {"SD 1": {"against_reference": 100.0}}, "a": {"SD 1": cell}})
    assert len(found) == len(told)
    assert all(one in line and "a, SD 1" in line for one, line in zip(told, found, strict=True))


def test_empty_cells_say_why() -> None:
    record = {
        "families": ["SD 1", "SDXL"],
        "references": {"a": "diffusers", "b": "PEFT"},
        "absent": {"a": {"SDXL": "no"}, "b": {"SD 1": "none", "SDXL": "no"}},
        "psnr_db": {"a": {"SD 1": {"against_reference": 55.55, "against_without": 12.0}}, "b": {}},
    }
    shown = as_markdown(record)
    assert "| a | diffusers | 55.5 / 12.0 | - [1] |" in shown
    assert "| b | PEFT | - [2] | - [1] |" in shown
    assert shown.endswith("No such files: [1] no; [2] none.")
