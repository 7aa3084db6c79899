"""What the parity benchmarks share: which pictures they ask for, and what they make of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sdengine.benchmarks import device_parity, pipeline_parity, step_counts
from sdengine.benchmarks.cases import GPU_SIDES
from sdengine.benchmarks.pictures import (
    GUIDANCE_SCALE,
    PROMPTS,
    Pictures,
    below_required,
    distances,
    pictures,
)

BLACK = np.zeros((4, 4, 3), np.uint8)


def grey(level: int) -> Pictures:
    """Return pictures that differ from black: by 1 at 48.1 dB, by 10 at 28.1 dB."""
    return [BLACK + np.uint8(level)] * len(PROMPTS)


def test_each_picture_has_a_prompt_and_a_seed() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def generate(prompt: str, **options: Any) -> SimpleNamespace:
        asked.append((prompt, options))
        return SimpleNamespace(arrays=[BLACK + np.uint8(options["seed"])])

    engine: Any = SimpleNamespace(generate=generate)
    made = pictures(engine, 5, 128, sampler="ddim")
    assert [picture[0, 0, 0] for picture in made] == list(range(len(PROMPTS)))
    assert [prompt for prompt, _ in asked] == list(PROMPTS)
    common = {"steps": 5, "width": 128, "height": 128, "sampler": "ddim"}
    for seed, (_, options) in enumerate(asked):
        assert options == {**common, "guidance_scale": GUIDANCE_SCALE, "seed": seed}


def test_a_picture_too_few_is_no_match() -> None:
    assert distances(grey(1), grey(0)) == [48.1] * len(PROMPTS)
    with pytest.raises(ValueError, match="argument"):
        distances(grey(0)[1:], grey(0))


def test_each_column_has_its_own_requirement() -> None:
    table = {"ours": {"near": [50.0, 41.0], "far": [35.0, 39.0]}}
    required = {"near": 45.0, "far": 30.0}
    assert below_required(table, required.__getitem__) == ["ours near: 41.0 dB, below 45 dB"]


@pytest.mark.parametrize(("level", "status"), [(1, 0), (10, 1)])
def test_a_gpus_pictures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: int,
    status: int,
) -> None:
    def by_side(bundle: str, backend: str, precision: str, sides: Any, steps: int) -> Any:
        assert (bundle, precision) in (("demo", "fp32"), ("built", "auto"))
        return {side: grey(level if backend == "triton" else 0) for side in sides}

    monkeypatch.setattr(device_parity, "by_side", by_side)
    monkeypatch.setattr(device_parity, "require_backends", lambda *_: None)
    monkeypatch.setattr(device_parity, "describe", lambda: {"name": "none"})
    monkeypatch.setattr(device_parity, "bundle_of", lambda *_: SimpleNamespace(path="built"))
    assert device_parity.main(["--targets", "triton", "--output", str(tmp_path / "o")]) == status
    shown = capsys.readouterr()
    assert (tmp_path / "o/device-parity.md").read_text() == shown.out
    record = json.loads((tmp_path / "o/device-parity.json").read_text())
    assert record["psnr_db"]["triton"].keys() == {str(side) for side in GPU_SIDES["demo"]}
    assert record["prompts"] == list(PROMPTS)
    assert shown.err.count("dB, below 30 dB") == status * len(record["psnr_db"]["triton"])


@pytest.mark.parametrize(("level", "status"), [(1, 0), (10, 1)])
def test_pictures_of_a_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: int,
    status: int,
) -> None:
    def made(level: int) -> dict[str, Pictures]:
        return {sampler: grey(level) for sampler in pipeline_parity.SAMPLERS}

    def ours(bundle: str, precision: str, steps: int, side: int) -> dict[str, Pictures]:
        return made(level if precision == "bf16" else 0)

    monkeypatch.setattr(pipeline_parity, "theirs", lambda *_: made(0))
    monkeypatch.setattr(pipeline_parity, "ours", ours)
    assert pipeline_parity.main(["--output", str(tmp_path)]) == status
    shown = capsys.readouterr()
    for sampler, (schedule, _, _) in pipeline_parity.SAMPLERS.items():
        assert f"| {sampler}, {schedule} | 100.0 (100.0) | " in shown.out
        assert (f"{sampler} bf16: 28.1 dB, below 30 dB" in shown.err) == bool(status)
    record = json.loads((tmp_path / "pipeline-parity.json").read_text())
    assert record["psnr_db"].keys() == pipeline_parity.SAMPLERS.keys()


def test_many_steps_are_told_by_their_worst_schedule() -> None:
    rows = {"lms": {"normal": {"5": 60.0, "150": 55.0}, "karras": {"5": 61.0, "150": 21.8}}}
    shown = step_counts.as_markdown({"bf16": rows})
    assert "| lms | bf16 | 60.0 normal | 21.8 karras |" in shown
    assert step_counts.failures({"bf16": rows}) == [
        "lms karras 150 steps in bf16: 21.8 dB, below 30 dB"
    ]
