"""The benchmark's arithmetic, records and tables, on fixed figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdengine.benchmarks.cases import Case, native_side
from sdengine.benchmarks.harness import STAGES, Statistics, psnr, relative_rms
from sdengine.benchmarks.records import (
    SCHEMA,
    append_record,
    as_markdown,
    make_record,
    read_records,
    rows,
)
from sdengine.errors import ConfigError, OutputError


@pytest.fixture
def record() -> dict[str, Any]:
    spread = {"median": 2.0, "p10": 1.0, "p90": 3.0, "n": 5}
    slower = {"median": 6.0, "p10": 5.0, "p90": 7.0, "n": 5}
    stage = {"ours": spread, "baseline": slower, "ratio": 3.0}
    alone = {"load_seconds": 1.0, "first_image_seconds": 2.0, "peak_bytes": 2e9}
    errors = {"latents_relative_rms": 0.01, "image_psnr_db": 41.0}
    figures = {
        "backends": {"ours": "openvino bf16", "baseline": "torch eager fp32"},
        "errors": {"ours": errors, "baseline": errors},
        "stages_ms": dict.fromkeys(STAGES, stage),
        "alone": {"ours": alone, "baseline": {**alone, "peak_bytes": 5e9}},
    }
    return make_record(Case(arch="sd15", resolution=512), figures)


def test_statistics_are_median_and_tenths() -> None:
    figures = Statistics.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (figures.median, figures.n) == (3.0, 5)
    assert (figures.p10, figures.p90) == pytest.approx((1.4, 4.6))


def test_error_measures() -> None:
    expected = np.full((2, 2), 2.0)
    assert relative_rms(expected + 0.2, expected) == pytest.approx(0.1)
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == 100.0
    assert psnr(black + np.uint8(255), black) == pytest.approx(0.0)


def test_records_survive_the_file(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_record(record, path)
    append_record(record, path)
    assert read_records(path) == [json.loads(json.dumps(record))] * 2
    assert record["schema"] == SCHEMA


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 99}'])
def test_foreign_lines_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl:1 is not a benchmark record"):
        read_records(path)


def test_missing_folder_is_an_output_error(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        append_record(record, tmp_path / "absent" / "results.jsonl")


def test_table_states_spread_ratio_and_error(record: dict[str, Any]) -> None:
    table = as_markdown(record)
    assert "| U-Net step, ms | 2.0 (1.0 to 3.0) | 6.0 (5.0 to 7.0) | 3.00x |" in table
    assert "| peak memory, GB | 2.00 | 5.00 | 2.50x |" in table
    assert "| latents' relative RMS error | 1.00e-02 | 1.00e-02 |  |" in table
    assert len(rows(record)) == len(STAGES) + 4


@pytest.mark.parametrize("values", [{"arch": "sd9"}, {"runs": 0}, {"baseline_precision": "int8"}])
def test_bad_cases_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Case(**values)


def test_unknown_architecture_has_no_size() -> None:
    with pytest.raises(ConfigError, match="arch"):
        native_side("sd9")
