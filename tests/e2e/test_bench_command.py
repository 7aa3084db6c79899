"""`sdengine bench` as a user runs it; its figures are checked for sense, never for speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_measures_the_tiny_architecture_and_keeps_its_bundles(run: Run, tmp_path: Path) -> None:
    options = ["--arch", "tiny", "--precision", "fp32", "--steps", "2", "--runs", "2"]
    options += ["--threads", "1", "--cache", "cache", "--json", "results.jsonl"]
    done = run("bench", *options, timeout=500)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert not said or "measure again on an idle machine" in said[-1]
    assert "U-Net step, ms" in done.stdout
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert record["backends"] == {"ours": "native fp32", "baseline": "torch eager fp32"}
    assert max(v for k, v in record["errors"]["ours"].items() if k != "image_psnr_db") < 1e-3
    assert record["errors"]["ours"]["image_psnr_db"] > 40
    assert set(record["errors"]["baseline"].values()) == {0.0, 100.0}
    assert 0 <= record["others_percent"] <= 100
    for stage in record["stages_ms"].values():
        for side in ("ours", "baseline"):
            assert stage[side]["n"] == 2
            assert 0 < stage[side]["p10"] <= stage[side]["median"] <= stage[side]["p90"]
    for side in ("ours", "baseline"):
        assert 10e6 < record["alone"][side]["peak_bytes"] < 4e9
        assert record["alone"][side]["first_seconds"] >= record["alone"][side]["load_seconds"] > 0
        assert sum(record["build"][side]["seconds"].values()) > 0
    bundles = tmp_path / "cache" / "tiny-64-batch1"
    kept = (bundles / "native" / "manifest.json").stat().st_mtime_ns

    again = run("bench", *options, "--baseline-precision", "bf16", "--guidance", 1, timeout=500)
    assert again.returncode == 0, again.stderr
    assert (bundles / "native" / "manifest.json").stat().st_mtime_ns == kept
    second = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])
    assert second["backends"]["baseline"] == "torch eager bf16"
    assert 0 < second["errors"]["baseline"]["unet"] < 0.1  # bf16 is judged against fp32 too
    assert second["case"]["guidance_scale"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sd9"), "arch"),
        (("--steps", "0"), "steps"),
        (("--runs", "0"), "runs"),
        (("--precision", "fp16"), "precision"),
        (("--resolution", "100"), "multiple of 8"),
    ],
)
def test_a_bad_value_is_one_paragraph_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("bench", *arguments, "--cache", "cache")
    assert done.returncode == 2
    *progress, error = done.stderr.splitlines()  # a log says where it is when that takes long
    assert error.startswith("error: ") and message in error
    assert all(line.endswith(" ...") for line in progress)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_record_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    done = run("bench", "--json", "missing/results.jsonl", "--cache", "cache")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["triton", "tensorrt-rtx"])
def test_a_gpu_that_is_not_there_is_said_before_the_work(
    run: Run, tmp_path: Path, target: str
) -> None:
    done = run("bench", "--device", "cuda", "--target", target, "--cache", "cache")
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 1
    *_, error = re.split(r"^(?=error: )", done.stderr, flags=re.MULTILINE)  # behind its progress
    assert error.startswith(f"error: backend {target} is not available: ")
    assert done.stderr.rstrip().endswith("Nothing was built or measured.")
    assert os.listdir(tmp_path) == []
