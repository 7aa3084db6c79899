"""The suite: processes of sides, what becomes of those that fail, records, tables, options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdengine.benchmarks.measures import OtherLoad
from sdengine.benchmarks.suite import measuring, running, systems
from sdengine.benchmarks.suite.arithmetic import network_arithmetic, share_of_peak
from sdengine.benchmarks.suite.measuring import Measurement, Plan, noise
from sdengine.benchmarks.suite.options import Asked, suite_of
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import Place
from sdengine.benchmarks.suite.systems import OURS, PEERS, chosen, missing
from sdengine.benchmarks.suite.tables import as_markdown, as_rich, groups
from sdengine.benchmarks.suite.watching import Energy, GroupMemory, processor_state
from sdengine.benchmarks.suite.workers import Launch, SideError, Workers
from sdengine.errors import ConfigError

SETTING = Setting(arch="tiny", resolution=64, steps=4, threads=1)
TRUTH, OURS_LABEL = "eager fp32", "native bf16"
Make = Callable[..., Measurement]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SETTLE_SECONDS", 0.0)
    tests = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", tests, prepend=os.pathsep)


def launch(label: str, kind: str = "") -> Launch:
    place = Place(kind, None, "")
    return Launch(label, "support.fake_side", "FakeSide", label.split()[1], place, SETTING)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def make(limit: float = 60.0, **kinds: str) -> Workers:
        launches = {
            name.replace("_", " "): launch(name.replace("_", " "), kind)
            for name, kind in kinds.items()
        }
        made.append(Workers(launches, tmp_path, limit))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("kind", "state", "why"),
    [
        ("raises", "failed", "Exception from a file: the model is odd"),
        ("no memory", "out of memory", "MemoryError"),
        ("killed", "out of memory", "SIGKILL"),
        ("exits", "failed", "status 3: a system prints what it likes"),
        ("slow", "failed", "start took more than 3 s"),
    ],
)
def test_a_side_that_fails_says_how(
    workers: Callable[..., Workers], kind: str, state: str, why: str
) -> None:
    one = workers(limit=3.0 if kind == "slow" else 60.0, peer_bf16=kind)
    worker, is_new = one.get("peer bf16")
    assert is_new
    with pytest.raises(SideError, match=why) as caught:
        worker.ask("start")
    assert caught.value.state == state


def test_where_memory_is_short_the_side_that_waited_longest_goes(
    workers: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = workers(a_fp32="", b_fp32="", c_fp32="")
    for label in ("a fp32", "b fp32"):
        one.get(label)
    assert one.get("a fp32")[1] is False  # and so b is the one that waited
    one.note_peak("c fp32", 1000)
    free = iter([1100, 1200])
    monkeypatch.setattr("sdengine.benchmarks.suite.workers.free_memory_bytes", lambda: next(free))
    one.get("c fp32")
    assert one.alive("b fp32") is None
    assert one.alive("a fp32") is not None


@pytest.fixture
def measured(workers: Callable[..., Workers], tmp_path: Path) -> Make:
    def make(peer: str, kind: str, runs: int = 3, **plan: Any) -> Measurement:
        sides = {"eager_fp32": "", "native_bf16": "", peer.replace(" ", "_"): kind}
        made = Measurement(
            SETTING,
            Plan([OURS_LABEL], [peer], TRUTH, runs, **plan),
            workers(**sides),
            tmp_path,
            lambda _: None,
        )
        made.truth()
        for label in (OURS_LABEL, peer):
            made.side(label)
        return made

    return make


def test_ours_and_a_peer_alternate_and_every_figure_is_there(measured: Make) -> None:
    found = measured("peer bf16", "").pair("peer bf16")
    ours, peer = (found["sides"][label] for label in (OURS_LABEL, "peer bf16"))
    assert ours["state"] == peer["state"] == "measured"
    assert ours["start_seconds"]["import"] == 0.5
    assert ours["first_request_steps"] == 2
    assert ours["errors"] == {
        "text_encoder": 0.0, "unet": 0.0, "latents": 0.0, "image_psnr_db": 100.0,
    }  # fmt: skip
    assert ours["stages_ms"]["end_to_end"]["values"] == [45.0] * 3
    assert ours["stages_ms"]["unet_step"]["n"] == 3
    assert ours["memory"]["peak_bytes"] > 10e6
    assert ours["pictures_per_minute"] == pytest.approx(60_000 / 45, rel=1e-3)
    assert found["ratios"][OURS_LABEL]["end_to_end"] == {
        "ratio": 1.0, "low": 1.0, "high": 1.0, "n": 3,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_of_few_requests_the_steps_are_told(measured: Make) -> None:
    found = measured("peer bf16", "", runs=1).pair("peer bf16")
    assert found["sides"]["peer bf16"]["stages_ms"]["unet_step"]["n"] == 4
    ratio = found["ratios"][OURS_LABEL]["end_to_end"]
    assert (ratio["low"], ratio["high"], ratio["n"]) == (None, None, 1)


def test_fewer_steps_are_scaled_and_said(measured: Make) -> None:
    found = measured("peer bf16", "", fewer_steps={"peer bf16": 1}).pair("peer bf16")
    peer = found["sides"]["peer bf16"]
    assert peer["scaled_from_steps"] == 1
    assert peer["stages_ms"]["end_to_end"]["median"] == 15 + 3 * 10
    assert peer["joules_per_picture"] is None


def test_steps_that_are_not_told_apart_are_not_scaled(measured: Make) -> None:
    made = measured("peer bf16", "whole", fewer_steps={"peer bf16": 1})
    found = made.pair("peer bf16")["sides"]["peer bf16"]
    assert (found["state"], "stages_ms" in found) == ("failed", False)
    assert "does not tell its steps apart" in found["why"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("wrong network", "unet differs from eager torch in fp32 by 0.5 relative RMS"),
        ("other picture", "dB from that of eager torch"),
    ],
)
def test_what_computes_something_else_is_not_timed(measured: Make, kind: str, why: str) -> None:
    found = measured("peer bf16", kind).pair("peer bf16")
    peer = found["sides"]["peer bf16"]
    assert peer["state"] == "failed" and why in peer["why"] and "not timed" in peer["why"]
    assert "stages_ms" in found["sides"][OURS_LABEL]
    assert found["ratios"] == {}


def test_a_side_that_dies_while_it_is_timed_leaves_ours(measured: Make) -> None:
    found = measured("peer bf16", "killed later").pair("peer bf16")
    peer = found["sides"]["peer bf16"]
    assert peer["state"] == "out of memory"
    assert peer["errors"]["image_psnr_db"] == 100.0  # what was known stays
    assert found["sides"][OURS_LABEL]["stages_ms"]["end_to_end"]["n"] == 3


def side_with(*values: float) -> dict[str, Any]:
    return {"stages_ms": {"end_to_end": {"values": list(values)}}}


def test_noise_is_told_with_its_reason() -> None:
    assert noise({"a": side_with(100, 101, 100, 101)}, 1.0)["is_noisy"] is False
    busy = noise({"a": side_with(100, 101)}, 12.0)
    assert busy["why"] == ["other programs took 12 % of the processors"]
    wide = noise({"a": side_with(100, 130, 101, 100)}, 0.0)
    assert wide["why"] == ["requests of one side differ by 30 %"]
    drift = noise({"a": side_with(100, 100, 108, 108)}, 0.0)
    assert drift["why"] == ["the later half of the requests differs by 8 %"]
    assert noise({}, 0.0)["is_noisy"] is False


def test_what_is_watched_has_figures(tmp_path: Path) -> None:
    load = OtherLoad()
    with GroupMemory() as group:
        held = bytearray(64 << 20)
        held[::4096] = b"\1" * len(held[::4096])
    peak = group.peak_bytes()
    assert peak is None or peak >= 0
    with GroupMemory(tmp_path) as nowhere:
        pass
    assert nowhere.peak_bytes() is None
    assert 0 <= load.percent() <= 100
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("5000000")
    part = tmp_path / "intel-rapl:0:0"
    part.mkdir()
    (part / "energy_uj").write_text("1000000")  # is in its package's already
    energy = Energy("cpu", tmp_path)
    (zone / "energy_uj").write_text("7500000")
    assert energy.joules() == 2.5
    (zone / "energy_uj").write_text("100")  # the counter began again
    assert energy.joules() is None
    assert len(processor_state()["load_average"]) == 3


def test_arithmetic_of_a_step_and_its_share_of_the_peak() -> None:
    needed = network_arithmetic(Setting(arch="sd15", resolution=512))
    assert needed["unet_step_flops"] == pytest.approx(1.607e12, rel=1e-3)
    best = {**needed, "flops_per_second": {"fp32": 1e11, "bf16": 8e10, "int16": 2e11}, "threads": 2}
    share = share_of_peak({"median": 16_070.0}, "native bf16", best)
    assert share["unet_gflops"] == pytest.approx(100.0, rel=1e-3)
    assert share["unet_gflops_per_core"] == pytest.approx(50.0, rel=1e-3)
    # Without products of bf16 the native target multiplies 16-bit integers.
    assert share["percent_of_peak"] == {"dtype": "int16", "percent": 50.0}
    other = share_of_peak({"median": 16_070.0}, "openvino bf16", best)
    assert other["percent_of_peak"] == {"dtype": "fp32", "percent": 100.0}
    assert share_of_peak(None, "native bf16", best)["percent_of_peak"] is None


def test_every_system_has_its_class_and_says_what_installs_it() -> None:
    for system in {**OURS, **PEERS}.values():
        assert system.packages or system.name == "native"
        assert system.install or system.name == "native"
        assert (system.bundle is not None) or system.needs_checkpoint
    absent = systems.System(
        "x", "m", "C", ("fp32",), ("cpu",), ("surely_not_there",), "pip install x", "native"
    )
    assert missing(absent) == "pip install x"
    assert missing(OURS["native"]) == ""


def test_names_have_precisions() -> None:
    assert chosen("eager", PEERS, "cpu").label == "eager fp32"
    assert chosen("eager-bf16", PEERS, "cpu").label == "eager bf16"
    assert chosen("stable-diffusion.cpp-q8_0", PEERS, "cpu").precision == "q8_0"
    assert chosen("openvino-genai", PEERS, "cpu").label == "openvino-genai bf16"
    assert chosen("native-int8", OURS, "cpu").label == "native int8"
    assert chosen("native", OURS, "cpu").precision in ("bf16", "fp32")
    for name, among, message in (
        ("vulkan", PEERS, "against: 'vulkan' is not accepted; expected eager, compile"),
        ("eager-int4", PEERS, "eager: 'int4' is not accepted; expected a precision of fp32"),
        ("eager", OURS, "backends: 'eager'"),
    ):
        with pytest.raises(ConfigError, match=message):
            chosen(name, among, "cpu")


def test_options_make_every_combination() -> None:
    suite = suite_of(
        Asked(
            arch="sd15,tiny", task="text,image", resolutions="64,128", batch="1,2", threads="1,2",
            precision="bf16,int8", backends="native", against="eager,diffusers-bf16",
            fewer=("eager=2",),
        ),
        "again",
    )  # fmt: skip
    assert len(suite.settings) == 2**5
    assert suite.settings[0].label == "sd15 64x64, 20 steps, guidance 5"
    assert [one.label for one in suite.ours] == ["native bf16", "native int8"]
    assert [one.label for one in suite.peers] == ["eager fp32", "diffusers bf16"]
    assert suite.fewer_steps == {"eager": 2}
    alone = suite_of(Asked(against="none"), "again")
    assert alone.peers == [] and alone.settings[0].arch == "demo"
    every = [one.label for one in suite_of(Asked(against="all"), "again").peers]
    assert every[:2] == ["eager fp32", "eager bf16"]
    assert {label.split()[0] for label in every} == set(PEERS)


def test_mlperf_is_one_setting() -> None:
    (setting,) = suite_of(Asked(mlperf=True), "again").settings
    assert setting.label == "sdxl 1024x1024, 20 steps, guidance 8"
    with pytest.raises(ConfigError, match="steps: 30 is not accepted; expected 20 with --mlperf"):
        suite_of(Asked(mlperf=True, steps=30), "again")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arch": "sd9"}, "arch: 'sd9'"),
        ({"runs": 0}, "runs: 0"),
        ({"threads": "0"}, "threads: '0'"),
        ({"batch": "one"}, "batch: 'one'"),
        ({"resolutions": "100"}, "multiple of 8"),
        ({"steps": 0}, "steps"),
        ({"steps": 1, "task": "image"}, "steps: 1 is not accepted; expected at least 2 with task"),
        ({"guidance": float("nan")}, "guidance_scale"),
        ({"precision": "fp16"}, "native: 'fp16'"),
        ({"task": "video"}, "task: 'video'"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"fewer": ("eager",)}, "fewer-steps: 'eager'"),
        ({"fewer": ("cake=2",)}, "fewer-steps: 'cake=2'"),
        ({"checkpoint": Path("x"), "arch": "sd15"}, "arch: 'sd15' is not accepted; expected none"),
        ({"checkpoint": Path("x")}, "resolutions: None"),
        ({"backends": "openvino", "against": "openvino"}, "against: 'openvino "),
        ({"against": ","}, "against: ','"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        suite_of(Asked(**values), "again")


def test_records_are_written_after_every_side_and_make_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(self: Any, one: Any) -> Launch:
        return launch(one.label, "raises" if one.system.name == "onnxruntime" else "")

    monkeypatch.setattr(running._Setting, "_launch", launched)
    monkeypatch.setattr(running, "missing", lambda s: "pip x" if s.name == "diffusers" else "")
    roof = {"flops_per_second": {"fp32": 1e11, "bf16": 2e11}, "bytes_per_second": 1e10}
    monkeypatch.setattr(running, "measure_roofline", lambda threads: roof)
    asked = Asked(
        arch="tiny", steps=4, runs=3, threads="1", precision="bf16", backends="native",
        against="eager,diffusers,onnxruntime", pictures=tmp_path / "pictures",
    )  # fmt: skip
    suite = suite_of(asked, "sdengine bench --arch tiny")
    found: list[dict[str, Any]] = []
    path = tmp_path / "records.jsonl"
    running.run(suite, tmp_path / "cache", running.writer(path, found.append), lambda _: None)
    assert [json.loads(line)["peer"] for line in path.read_text().splitlines()] == [
        "eager fp32", "diffusers fp32", "onnxruntime fp32",
    ]  # fmt: skip
    first = found[0]
    assert first["command"] == "sdengine bench --arch tiny"
    assert {"commit", "torch", "python"} <= set(first["versions"])
    assert first["machine"]["processor"] and "load_average" in first["machine"]
    picture = tmp_path / "pictures" / first["sides"]["native bf16"]["picture"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found[1]["sides"]["diffusers fp32"] == {
        "state": "not run", "why": "it is not installed", "install": "pip x",
    }  # fmt: skip
    (group,) = groups([*found, found[0]])
    text = as_markdown(group)
    assert text.startswith("**tiny 64x64, 4 steps, guidance 5; ")
    assert "| native bf16 | 10.0 (10.0 to 10.0) |" in text
    assert "| eager fp32 |" in text and "1.00x (1.00 to 1.00)" in text
    assert "diffusers fp32: not run: it is not installed (`pip x`)" in text
    assert "onnxruntime fp32: failed: Exception from a file: the model is odd" in text
    shown = as_rich(first)
    assert [column.header for column in shown.columns] == ["", "native bf16", "eager fp32"]
    assert shown.row_count > 8
    assert np.isfinite(first["sides"]["eager fp32"]["unet_gflops"])


def test_a_gpus_table_names_it_its_memory_and_its_kernels(measured: Make) -> None:
    found = measured("peer bf16", "").pair("peer bf16")
    for side in found["sides"].values():
        side |= share_of_peak(None, "native bf16", {})
        side["memory"]["device_bytes"] = 2_500_000_000
    counts = {"replaced": {"geglu": 2}, "kept": {"attention, because of its width": 1}}
    found["sides"][OURS_LABEL]["kernels"] = {"unet": counts}
    record = {
        **found,
        "label": SETTING.label,
        "setting": {"threads": 1, "device": "cuda", "steps": 4},
        "machine": {"processor": "one", "cores": 2},
        "roofline": {},
        "versions": {"commit": "abc"},
        "gpu": {"name": "a made-up GPU", "compute_capability": "9.9"},
    }
    text = as_markdown([record])
    assert "guidance 5; a made-up GPU, compute capability 9.9**" in text
    assert "| GPU memory, GB |" in text and "| 2.50 |" in text
    assert "TF32 in the convolutions of fp32" in text
    assert "native bf16: shapes of unet in Triton: 2 geglu; torch: 1 attention, because" in text
    assert "of the peak" not in text  # nothing says it
    del record["gpu"]
    for side in record["sides"].values():
        del side["memory"]["device_bytes"]
    assert "GPU" not in as_markdown([record])
