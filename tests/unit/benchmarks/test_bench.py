"""The benchmark's arithmetic, records and tables, on fixed figures; nothing here is timed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from sdengine.benchmarks import bundles, measures
from sdengine.benchmarks.bundles import Model
from sdengine.benchmarks.cases import NATIVE_SIDES
from sdengine.benchmarks.measures import (
    OtherLoad,
    Spread,
    median_ratio,
    peak_bytes,
    psnr,
    relative_rms,
)
from sdengine.benchmarks.pictures import compare
from sdengine.benchmarks.pipeline_parity import as_markdown as parity_markdown
from sdengine.benchmarks.pipeline_parity import failures
from sdengine.benchmarks.records import (
    SCHEMA,
    append_record,
    check_writable,
    commit,
    read_records,
    stamped,
)
from sdengine.benchmarks.verification import errors_of
from sdengine.errors import ConfigError, OutOfMemoryError, OutputError


@pytest.fixture
def record() -> dict[str, Any]:
    return stamped({"figure": 1.5})


def test_spread_is_median_and_tenths() -> None:
    figures = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (figures.median, figures.n) == (3.0, 5)
    assert (figures.p10, figures.p90) == pytest.approx((1.4, 4.6))
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine slows down threefold in the middle; both sides of a pair feel it.
    assert median_ratio([2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 3.0, 3.0]) == 2.0
    assert np.isfinite(median_ratio([1.0], [0.0]))


def test_error_measures() -> None:
    expected = np.full((2, 2), 2.0)
    assert relative_rms(expected + 0.2, expected) == pytest.approx(0.1)
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == 100.0
    assert psnr(black + np.uint8(255), black) == pytest.approx(0.0)
    assert psnr(black + np.uint8(1), black) == pytest.approx(20 * np.log10(255))


def test_memory_of_a_child_does_not_start_at_its_parents_peak() -> None:
    held = bytearray(300 << 20)
    held[::4096] = b"\1" * len(held[::4096])
    code = "from sdengine.benchmarks.measures import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert 1 << 20 < int(done.stdout) < 200 << 20
    assert peak_bytes() > len(held)


def test_other_programs_are_told_apart_from_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # One second on two cores: all programs took 1.5 s of the two, this one 0.9 s of them.
    seconds = iter([(100.0, 10.0), (101.5, 10.9)])
    clock = iter([5.0, 6.0])
    monkeypatch.setattr(measures, "_busy_and_own_seconds", lambda: next(seconds))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert OtherLoad().percent() == pytest.approx(30.0)


def test_children_are_no_others() -> None:
    before = measures._busy_and_own_seconds()[1]
    spin = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    with subprocess.Popen([sys.executable, "-I", "-c", spin + "\ninput()"], stdin=-1) as child:
        taken = psutil.Process(child.pid)
        while sum(taken.cpu_times()[:2]) < 0.5:
            time.sleep(0.01)
        while_it_lives = measures._busy_and_own_seconds()[1]
        child.communicate(b"\n")
    assert while_it_lives - before >= 0.45
    assert measures._busy_and_own_seconds()[1] - before >= 0.45


def test_errors_are_named() -> None:
    latents, images = np.ones((1, 4)), np.zeros((1, 2, 2, 3), np.uint8)
    exact: dict[str, NDArray[Any]] = {"latents": latents, "images": images}
    found = errors_of({"latents": latents * 1.1, "images": images}, exact)
    assert found == {"latents": pytest.approx(0.1), "image_psnr_db": 100.0}


def test_records_survive_the_file(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_record(record, path)
    append_record(record, path)
    assert read_records(path) == [json.loads(json.dumps(record))] * 2
    assert record["schema"] == SCHEMA
    assert {"commit", "numpy", "torch", "python"} <= set(record["versions"])
    assert record["machine"]["processor"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with one commit, and beside it the package as it is installed."""
    root = tmp_path / "a checkout"
    for folder in ("sdengine", "benchmarks"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text(f"# {folder}\n")
    site = tmp_path / "site"
    shutil.copytree(root / "sdengine", site / "sdengine")
    shutil.copytree(root / "benchmarks", site / "sdengine" / "benchmarks")
    notes = site / "sdengine-0.1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: sdengine\nVersion: 0.1.0\n")
    (notes / "direct_url.json").write_text(json.dumps({"url": root.as_uri(), "dir_info": {}}))
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "one")):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    return root


def commit_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setattr("sdengine.__file__", str(package / "__init__.py"))
    return commit()


def test_an_installed_package_knows_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "site" / "sdengine"
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert commit_of(checkout / "sdengine", monkeypatch) == head
    assert commit_of(installed, monkeypatch) == head
    (installed / "benchmarks" / "__init__.py").write_text("# changed after it was installed\n")
    assert commit_of(installed, monkeypatch) == f"{head}-modified"
    assert commit_of(checkout / "sdengine", monkeypatch) == head


def test_a_changed_checkout_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "benchmarks" / "__init__.py").write_text("# changed\n")
    assert str(commit_of(checkout / "sdengine", monkeypatch)).endswith("-modified")


def test_a_package_from_elsewhere_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "site" / "sdengine"
    shutil.rmtree(checkout)
    assert commit_of(installed, monkeypatch) is None


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 99}'])
def test_foreign_lines_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl:1 is not a benchmark record"):
        read_records(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(tmp_path / "absent.jsonl")


def test_a_place_is_checked_without_leaving_a_file(record: dict[str, Any], tmp_path: Path) -> None:
    check_writable(tmp_path / "results.jsonl")
    assert list(tmp_path.iterdir()) == []
    for write in (check_writable, lambda path: append_record(record, path)):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / "absent" / "results.jsonl")


@pytest.mark.parametrize("arch", NATIVE_SIDES)
def test_too_little_memory_is_named(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Full:
        available = 500e6

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(OutOfMemoryError, match=rf"arch {arch} needs .* found 0\.5 GB"):
        bundles.check_memory(arch)


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--cache"):
        bundles.bundle_of(Model("tiny", (64,)), "torch", tmp_path / "file" / "cache", print)


def test_parity_judges_the_worst_picture_of_each_sampler() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    near, far = black + np.uint8(1), black + np.uint8(10)  # 48.1 and 28.1 dB
    found = {"fp32": {"ddim": [black, near]}, "bf16": {"ddim": [near, far]}}
    distances = compare(found, {"ddim": [black, black]})
    assert distances == {"fp32": {"ddim": [100.0, 48.1]}, "bf16": {"ddim": [48.1, 28.1]}}
    table = {"ddim": {precision: distances[precision]["ddim"] for precision in found}}
    assert failures(table) == ["ddim bf16: 28.1 dB, below 30 dB"]
    assert "| ddim, normal | 48.1 (74.0) | 28.1 (38.1) |" in parity_markdown(table)
