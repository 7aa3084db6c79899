"""The report: its pages are what the records say, and its rules pick the records they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks import report
from sdengine.benchmarks.accuracy_tables import kernel_resources, samplers, worst_sampler_errors
from sdengine.benchmarks.markdown import BEGIN, END, folded, put_between, table
from sdengine.benchmarks.report_sections import SECTIONS
from sdengine.errors import ConfigError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the pages are made from and written to."""
    shutil.copytree(RESULTS, tmp_path / "benchmarks" / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def network(time: str, sides: dict[str, float], **changes: Any) -> dict[str, Any]:
    """Return a record of SD 1.5's U-Net; medians in seconds by side, errors of 0.01 times them."""
    return {
        "time": time,
        "bundle": "sd15-native",
        "network": "unet",
        "size": 512,
        "threads": 2,
        "error_against": "torch fp32",
        "other_load_percent": 0.5,
        "machine": {"processor": "one"},
        "sides": {
            name: {
                "seconds": {"median": median, "p10": median, "p90": median, "n": 3},
                "load_seconds": 0.1,
                "relative_rms": median / 100,
            }
            for name, median in sides.items()
        },
        **changes,
    }


@pytest.mark.parametrize("page", report.pages(ROOT), ids=lambda path: path.name)
def test_pages_are_what_the_records_say(page: Path) -> None:
    expected = report.pages(ROOT)[page]
    assert page.read_text(encoding="utf-8") == expected, "run python benchmarks/report.py"


def test_the_page_is_of_these_records() -> None:
    sources = report.suite_sources(RESULTS)
    assert report.has_records(RESULTS / "bench.html", sources), "run python benchmarks/report.py"
    assert not report.has_records(RESULTS / "bench.html", sources[1:])
    assert not report.has_records(RESULTS / "none.html", sources)


def test_every_record_and_every_sheet_has_a_place() -> None:
    read = report.read(RESULTS)
    files = [path for path in RESULTS.glob("*.jsonl") if not path.name.startswith("profile-")]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    shown = (
        read.comparisons, read.growths, read.networks, read.operations, read.controls,
    )  # fmt: skip
    assert sum(map(len, shown)) == lines
    assert len(list(RESULTS.glob("*.json"))) == len(read.prompt_following) + 20
    page = report.report(read)
    for sheet in RESULTS.glob("[!b]*.png"):  # those of bench are in its own page
        assert f"]({sheet.name})" in page
    for section in SECTIONS:
        assert (f"\n## {section.title}\n" in page) == bool(section.body(read))


def test_steps_with_a_controlnet_appear_once_they_were_measured(checkout: Path) -> None:
    results = checkout / "benchmarks" / "results"
    before = report.report(report.read(results))
    assert ("## Steps with a ControlNet" in before) == (results / "controls.jsonl").exists()
    spread = {"median": 2.0, "p10": 2.0, "p90": 2.0, "n": 6}
    record: dict[str, Any] = {
        "schema": 1,
        "time": "2026-11-30T00:00:00+00:00",
        "arch": "sd15",
        "side": 512,
        "steps": 4,
        "threads": 2,
        "other_load_percent": 0.4,
        "machine": {"processor": "one", "cores": 2},
        "versions": {"diffusers": "9.8", "openvino": "7.6"},
        "seconds_a_step": {
            "diffusers fp32": {
                "plain": {**spread, "median": 8.0},
                "steered": spread,
                "off": spread,
            },
            "native bf16": {"plain": spread, "steered": {**spread, "median": 0.5}, "off": spread},
        },
        "psnr_db": {"diffusers fp32": {"steered": 100.0}, "native bf16": {"steered": 30.0}},
    }
    older = record | {"psnr_db": {name: {"steered": 1.0} for name in record["seconds_a_step"]}}
    text = "".join(json.dumps(one) + "\n" for one in (older, record))
    (results / "controls.jsonl").write_text(text)
    page = report.report(report.read(results))
    assert "(#steps-with-a-controlnet)" in page
    assert "**sd15**, 512x512, 2 threads, one, diffusers 9.8, OpenVINO 7.6" in page
    assert "| native bf16 | 2.000 | 0.500 | 2.000 | 4.00x | 0.25 | 1.000 | 30.0 |" in page
    assert "| 1.0 |" not in page.partition("## Steps with a ControlNet")[2].partition("\n## ")[0]


def test_a_page_that_differs_is_told_and_rewritten(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(checkout)]
    assert report.main([*root, "--check"]) == 0
    record = checkout / "benchmarks" / "results" / "emphasis.json"
    figures = json.loads(record.read_text())
    figures["colors"]["red"]["seeds_up"] = 49
    record.write_text(json.dumps(figures))
    page = checkout / "benchmarks" / "results" / "README.md"
    before = page.read_text()
    assert report.main([*root, "--check"]) == 1
    assert f"{page} differs from its records" in capsys.readouterr().err
    assert page.read_text() == before
    assert report.main(root) == 0
    assert page.read_text() == before.replace("7.82 | 50 / 0", "7.82 | 49 / 0")
    assert report.main([*root, "--check"]) == 0


def test_only_the_part_between_the_marks_is_rewritten() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put_between(text, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert put_between(put_between(text, "newer"), "new") == put_between(text, "new")


@pytest.mark.parametrize("text", ["", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", BEGIN])
def test_a_readme_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="benchmarks: begin"):
        put_between(text, "table")


def test_markdown_keeps_text_left_and_figures_right() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"
    assert table(["a", "b"], [], texts=2) == "| a | b |\n|---|---|"
    assert folded("more", "text") == "<details><summary>more</summary>\n\ntext\n\n</details>"


def test_the_newest_record_with_openvino_is_compared_with_its_faster_precision() -> None:
    records = [
        network("1", {"native bf16": 2.0, "openvino bf16": 3.0, "openvino fp32": 5.0}),
        network("2", {"native bf16": 1.0, "openvino bf16": 4.0, "openvino fp32": 3.0}),
        network("3", {"native bf16": 0.5}),
    ]
    shown = native.network_speed(records)
    # The newest error is record 3's, which does not have OpenVINO.
    assert "| SD 1.5 U-Net, 512 | 2 | 3.00 (fp32) | 1.00 | **3.00x** | 5.0e-03 |" in shown
    assert native.newest_speed(records, "sd15-native", "unet", 512) is records[1]
    assert native.newest_speed(records, "sd15-native", "unet", 768) is None


def test_times_of_a_busy_machine_are_not_shown_but_errors_are() -> None:
    sides = {"native bf16": 1.0, "openvino fp32": 3.0}
    busy = network("1", sides, other_load_percent=50.0)
    assert native.network_speed([busy]).count("\n") == 1
    assert "1.0e-02" in native.network_errors([busy])


def test_errors_against_another_side_than_torch_are_not_shown() -> None:
    records = [
        network("1", {"native bf16": 1.0, "native int8": 4.0}),
        network("2", {"native bf16": 0.0, "native int8": 5.0}, error_against="native bf16"),
    ]
    assert "| SD 1.5 U-Net, 512 | 1.0e-02 | 4.0e-02 |" in native.network_errors(records)


def test_threads_are_compared_between_records_of_the_same_sides() -> None:
    records = [
        network("1", {"native bf16": 4.0}, threads=1),
        network("2", {"native bf16": 2.0}),
        network("3", {"native bf16": 3.0, "openvino fp32": 9.0}),
    ]
    assert "| SD 1.5 U-Net, 512, native bf16 | 4.00 | 2.00 | 2 | 2.00x |" in native.threads(records)
    assert native.threads(records[1:]) == ""


def test_processors_are_apart_the_newest_first() -> None:
    other = network("1", {"native bf16": 1.0}, machine={"processor": "other"})
    records = [other, network("2", {"native bf16": 1.0})]
    assert list(native.by_processor(records)) == ["one", "other"]


def test_the_worst_sampler_is_named_by_package() -> None:
    errors = {
        "euler": {"normal": {"diffusers A": 1e-7, "k-diffusion b": 1e-15}},
        "heun": {"karras": {"diffusers C": 3e-6}},
    }
    assert worst_sampler_errors(errors) == {"diffusers": 3e-6, "k-diffusion": 1e-15}
    assert "| heun | diffusers C |  | 3e-06 |" in samplers(errors)


def test_a_kernel_that_spills_is_counted() -> None:
    row = {"op": "geglu", "kernel": "k", "case": "c", "dtype": "float16", "spill_bytes": 0}
    rows = [
        {**row, "cc": 75, "shared_bytes": 1024},
        {**row, "cc": 80, "shared_bytes": 4096, "spill_bytes": 8},
        {**row, "cc": 80, "op": "attention", "kernel": "a", "shared_bytes": 2048},
    ]
    shown = kernel_resources({"triton": "3.9.0", "resources": rows})
    assert "capabilities 7.5, 8.0 (attention not for 7.5): of 3 kernels 1 spill" in shown
    assert "at most 4 KiB" in shown
