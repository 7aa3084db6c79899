"""Cost growth: what is fitted, which points are measured in which order, and what is kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from sdengine.benchmarks.suite.growth import run as module
from sdengine.benchmarks.suite.growth import tables as growth_tables
from sdengine.benchmarks.suite.growth.fits import linear_fit, power_fit
from sdengine.benchmarks.suite.growth.point import Point, PointProcess, prompt_of, stages_of
from sdengine.benchmarks.suite.growth.run import AXES, Growth, measure
from sdengine.benchmarks.suite.setting import Setting
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.cli import main as cli
from sdengine.cli.bench_growth import growth
from sdengine.errors import ConfigError, DeviceError, OutOfMemoryError
from sdengine.images.timings import StageTime, Timings
from sdengine.prompt.tokenizer import ClipTokenizer

SIZES = [1.0, 2.0, 4.0, 8.0]


def noisy(costs: list[float], percent: float, seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [(cost * np.exp(rng.normal(0, percent / 100, 7))).tolist() for cost in costs]


def test_exponents_and_their_intervals() -> None:
    exact = power_fit(SIZES, [[3 * x**1.5] * 3 for x in SIZES], interleaved=True)
    assert exact is not None
    assert [exact[key] for key in ("exponent", "low", "high")] == pytest.approx([1.5] * 3)
    assert exact["misfit_percent"] == pytest.approx(0, abs=1e-9)
    found = power_fit(SIZES, noisy([3 * x**1.5 for x in SIZES], 3), interleaved=False)
    assert found is not None
    assert 1.4 < found["low"] < 1.5 < found["high"] < 1.6
    bent = power_fit(SIZES, [[5 + x] for x in SIZES], interleaved=True)
    assert bent is not None and bent["low"] is None
    assert bent["misfit_percent"] > 5  # which is no power


def test_a_drift_of_points_that_took_turns_leaves_the_exponent_certain() -> None:
    drift = np.linspace(1, 2, 7)
    values = [(x * drift).tolist() for x in SIZES]
    widths = []
    for interleaved in (True, False):
        fit = power_fit(SIZES, values, interleaved=interleaved)
        assert fit is not None
        widths.append(fit["high"] - fit["low"])
    assert widths[0] == pytest.approx(0, abs=1e-9) and widths[1] > 0.1


def test_nothing_of_something_has_no_logarithm_but_a_line() -> None:
    sizes, costs = [0.0, 1.0, 2.0, 3.0], [10.0, 15.0, 20.0, 25.0]
    line = linear_fit(sizes, [[cost] for cost in costs], interleaved=True)
    assert line == {
        "fixed": pytest.approx(10), "per_unit": pytest.approx(5), "low": None, "high": None,
        "per_unit_percent": pytest.approx(50),
    }  # fmt: skip
    power = power_fit(sizes, [[cost] for cost in costs], interleaved=True)
    assert power == power_fit(sizes[1:], [[cost] for cost in costs[1:]], interleaved=True)
    assert power_fit([0.0, 1.0], [[1.0], [2.0]], interleaved=True) is None
    assert linear_fit([1.0], [[1.0]], interleaved=True) is None


def test_stages_are_of_a_step_or_of_the_request() -> None:
    stages = {
        "load": StageTime(0.0, 0), "text_encoder": StageTime(6.0, 2), "unet": StageTime(80.0, 8),
        "control_a": StageTime(30.0, 4), "control_b": StageTime(10.0, 4),
        "vae_decoder": StageTime(20.0, 2),
    }  # fmt: skip
    assert stages_of(Timings(stages, 150.0), steps=4) == {
        "text_encoder": 6.0, "controls_step": 10.0, "unet_step": 20.0, "vae_decoder": 20.0,
        "outside": 4.0, "end_to_end": 150.0,
    }  # fmt: skip


def test_prompts_have_as_many_chunks_as_asked_for_and_none_twice() -> None:
    folder = demo_tokenizer_dir()
    tokenizer = ClipTokenizer(folder / "vocab.json", folder / "merges.txt")
    for chunks in (1, 2, 4):
        counts = Counter(tokenizer.encode(prompt_of(chunks)))
        assert sorted(counts.values()) == [75] * chunks


@pytest.mark.parametrize(
    "given",
    [
        {"arch": "sd9"},
        {"axes": ("pixels", "colours")},
        {"axes": ()},
        {"backend": "tensorrt"},
        {"precision": "fp8"},
        {"threads": 0},
        {"runs": 0},
        {"steps": 0},
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        Growth(**given)


def test_an_axis_that_the_disk_cannot_hold_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full:
        free = 1e9

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    with pytest.raises(OutOfMemoryError, match="axis controls of sd15 needs about 4 GB"):
        module.require_disk(Growth("sd15"), tmp_path / "not there yet")
    module.require_disk(Growth("sd15", ("steps",)), tmp_path)
    module.require_disk(Growth("tiny"), tmp_path)


class Fake:
    """Stands for a point's process; takes a millisecond for each step."""

    log: list[str] = []  # noqa: RUF012 - each test has a class of its own
    alive = 0
    most_alive = 0

    def __init__(self, point: Point) -> None:
        self.point = point
        self.steps = point.setting.steps
        if self.steps == 13:
            raise DeviceError("unlucky")
        self.started = {"first_seconds": 0.1, "peak_bytes": 1000 + self.steps, "precision": "fp32"}
        type(self).alive += 1
        type(self).most_alive = max(self.most_alive, self.alive)

    def serve(self) -> dict[str, float]:
        self.log.append(f"serve {self.steps}")
        steps = float(self.steps)
        return {"unet_step": 1.0, "outside": 0.1 * steps, "end_to_end": 1.1 * steps}

    def cpu_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        type(self).alive -= 1

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    made = type("Made", (Fake,), {"log": []})
    monkeypatch.setattr(module, "PointProcess", made)
    monkeypatch.setattr(module, "growth_bundle", lambda *_, **__: "demo")
    return made


def run(tmp_path: Path, values: tuple[int, ...] = (4, 2, 8), runs: int = 3) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    asked = Growth("tiny", ("steps",), threads=1, runs=runs, values={"steps": values})
    measure(asked, tmp_path, kept.append)
    return kept


def test_points_of_an_axis_take_turns(fake: type[Fake], tmp_path: Path) -> None:
    (record,) = run(tmp_path)
    assert fake.log == ["serve 2", "serve 4", "serve 8"] * 3
    assert (fake.alive, fake.most_alive) == (0, 3)
    assert (record["interleaved"], record["complete"], record["failed"]) == (True, True, {})
    assert [point["value"] for point in record["points"]] == [2, 4, 8]
    assert record["points"][1]["outside_ms_per_step"] == pytest.approx(0.1)
    assert record["points"][1]["outside_percent"] == pytest.approx(100 / 11)
    assert record["points"][1]["peak_bytes"] == 1004
    assert record["points"][1]["stages_ms"]["end_to_end"]["n"] == 3
    assert record["fits"]["end_to_end"]["exponent"] == pytest.approx(1)
    assert record["fits"]["end_to_end"]["linear"]["per_unit"] == pytest.approx(1.1)
    assert record["fits"]["unet_step"]["exponent"] == pytest.approx(0)
    json.dumps(record, allow_nan=False)


def test_points_that_do_not_fit_together_are_measured_one_at_a_time(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_has_room", lambda started: 4 not in started)
    (record,) = run(tmp_path)
    assert fake.log == ["serve 2"] * 3 + ["serve 4"] * 3 + ["serve 8"] * 3
    assert (fake.alive, fake.most_alive, record["interleaved"]) == (0, 2, False)
    assert record["complete"] and len(record["points"]) == 3


def test_a_point_that_fails_is_named_beside_the_others(fake: type[Fake], tmp_path: Path) -> None:
    (record,) = run(tmp_path, (2, 4, 13))
    assert record["failed"] == {"13": "unlucky"}
    assert [point["value"] for point in record["points"]] == [2, 4]
    with pytest.raises(DeviceError, match="axis steps: no point was measured; 13: unlucky"):
        run(tmp_path, (13,))


def test_what_was_measured_before_an_interruption_is_kept(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = fake.serve

    def serve(self: Fake) -> dict[str, float]:
        if len(self.log) == 4:
            raise KeyboardInterrupt
        return served(self)

    monkeypatch.setattr(fake, "serve", serve)
    kept: list[dict[str, Any]] = []
    asked = Growth("tiny", ("steps", "chunks"), threads=1, values={"steps": (2, 4, 8)})
    with pytest.raises(KeyboardInterrupt):
        measure(asked, tmp_path, kept.append)
    (record,) = kept
    assert not record["complete"] and fake.alive == 0
    assert [point["stages_ms"]["end_to_end"]["n"] for point in record["points"]] == [2, 1, 1]


def test_axes_ask_for_what_their_names_say(fake: type[Fake], tmp_path: Path) -> None:
    kept: dict[str, list[Point]] = {}
    for axis in AXES:
        asked = Growth("tiny", (axis,), values={"loras": (0, 1)})
        points = module._points(asked, axis, tmp_path, lambda _: None)
        kept[axis] = list(points.values())
    assert [p.setting.resolution for p in kept["pixels"]] == [64, 128, 192, 256]
    assert [p.setting.batch_size for p in kept["batch"]] == [1, 2, 4]
    assert [p.setting.steps for p in kept["steps"]] == [5, 10, 20, 40]
    assert [p.chunks for p in kept["chunks"]] == [1, 2, 3, 4]
    assert [len(p.controls) for p in kept["controls"]] == [0, 1, 2, 3]
    assert [len(p.loras) for p in kept["loras"]] == [0, 1]
    strengths = [next(requests).loras for requests in [kept["loras"][1].requests()] * 2]
    assert strengths[0] != strengths[1]  # so that they are merged anew


def test_a_process_that_ends_says_why() -> None:
    point = Point("demo", "native", "fp32", Setting("demo", steps=1), loras=("/not/there.sft",))
    with pytest.raises(DeviceError, match=r"not/there\.sft"):
        PointProcess(point)


def test_the_goal_is_said_and_whether_it_is_met() -> None:
    point = {"value": 1, "stages_ms": {}, "outside_percent": 0.4, "outside_ms_per_step": 0.2}
    record = {"arch": "sd15", "axis": "steps", "points": [point]}
    assert growth_tables.verdict(record).endswith("below 1 % at 512x512): met")
    assert growth_tables.verdict(
        {**record, "points": [{**point, "outside_percent": 1.1}]}
    ).endswith("missed")
    smaller = {**point, "value": 256 * 256, "outside_percent": 1.1}
    pixels = {**record, "axis": "pixels", "points": [smaller, {**point, "value": 512 * 512}]}
    assert growth_tables.verdict(pixels).endswith("met")
    slow = {**record, "arch": "demo", "points": [{**point, "outside_ms_per_step": 1.2}]}
    assert growth_tables.verdict(slow).endswith("below 1 ms): missed")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    app = typer.Typer(rich_markup_mode=None)
    app.command("growth")(growth)
    app.command("other")(lambda: None)
    monkeypatch.setattr(cli, "_make_app", lambda invoked: app)
    return lambda *words: cli.main(["growth", *map(str, words)])


def test_the_command_measures_the_demo_model(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BATCHES", (1, 2))
    path = tmp_path / "growth.jsonl"
    words = ("--axes", "batch", "--steps", 2, "--runs", 3, "--threads", 1, "--json", path)
    assert command(*words, "--cache", tmp_path / "cache") == 0
    shown = capsys.readouterr().out
    assert "how they grow with batch" in shown and "outside the networks: " in shown
    record = json.loads(path.read_text())
    assert (record["schema"], record["kind"], record["axis"]) == (3, "growth", "batch")
    assert "--axes batch" in record["command"] and "--steps 2" in record["command"]
    assert {"machine", "versions", "noise", "fits"} <= record.keys()
    one, two = record["points"]
    assert 10e6 < one["peak_bytes"] < 4e9
    for point in (one, two):
        stages = point["stages_ms"]
        assert {"text_encoder", "unet_step", "vae_decoder", "outside", "end_to_end"} == set(stages)
        assert all(len(stage["values"]) == 3 for stage in stages.values())


def test_the_command_refuses_before_it_works(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--axes", "pixels,colours") == 2
    assert "axes: 'colours' is not accepted" in capsys.readouterr().err
    assert command("--json", tmp_path / "absent" / "growth.jsonl") == 1
    assert "cannot be written" in capsys.readouterr().err
