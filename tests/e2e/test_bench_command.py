"""`sdengine bench` as a user runs it; its figures are checked for sense, never for speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import errors

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_measures_the_tiny_architecture_and_keeps_its_bundles(run: Run, tmp_path: Path) -> None:
    options = ["--arch", "tiny", "--precision", "fp32", "--steps", "2", "--runs", "2"]
    options += ["--threads", "1", "--cache", "cache", "--json", "results.jsonl"]
    done = run("bench", *options, timeout=500)
    assert done.returncode == 0, done.stderr
    assert all("measure again on an idle machine" in line for line in errors(done))
    assert "U-Net step, ms" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (first,) = records
    assert first["peer"] == "eager fp32"
    ours, eager = (first["sides"][name] for name in ("native fp32", "eager fp32"))
    assert max(v for k, v in ours["errors"].items() if k != "image_psnr_db") < 1e-3
    assert ours["errors"]["image_psnr_db"] > 40
    assert set(eager["errors"].values()) == {0.0, 100.0}
    assert 0 <= first["noise"]["others_percent"] <= 100
    for side in (ours, eager):
        for name in ("text_encoder", "vae_decoder", "outside", "end_to_end"):
            stage = side["stages_ms"][name]
            assert stage["n"] == 2
            assert 0 < stage["p10"] <= stage["median"] <= stage["p90"]
        assert 10e6 < side["memory"]["peak_bytes"] < 4e9
        assert all(side["start_seconds"][part] >= 0 for part in ("import", "load", "pack"))
    assert first["ratios"]["native fp32"]["end_to_end"]["ratio"] > 0
    assert first["roofline"]["unet_step_flops"] > 1e6
    assert (tmp_path / "cache" / "tiny-64-batch1" / "native" / "manifest.json").exists()
    same = run("bench", "compare", "results.jsonl", "results.jsonl", "--any-machine")
    assert same.returncode == 0, same.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sd9"), "arch"),
        (("--steps", "0"), "steps"),
        (("--runs", "0"), "runs"),
        (("--precision", "fp16"), "precision"),
        (("--resolutions", "100"), "multiple of 8"),
        (("--checkpoint", "no-model", "--resolutions", "64"), "error: checkpoint 'no-model'"),
    ],
)
def test_a_bad_value_is_one_paragraph_and_leaves_nothing(
    call: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = call("bench", *arguments, "--cache", "cache")
    assert done.returncode == 2
    (error,) = errors(done)
    assert error.startswith("error: ") and message in error
    assert os.listdir(tmp_path) == []


def test_an_unwritable_record_is_refused_before_the_work(call: Run, tmp_path: Path) -> None:
    done = call("bench", "--json", "missing/results.jsonl", "--cache", "cache")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["triton", "tensorrt-rtx"])
def test_a_gpu_that_is_not_there_is_said_before_the_work(
    call: Run, tmp_path: Path, target: str
) -> None:
    done = call("bench", "--device", "cuda", "--backends", target, "--cache", "cache")
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 1
    *_, error = re.split(r"^(?=error: )", done.stderr, flags=re.MULTILINE)  # behind its progress
    assert error.startswith("error: backend torch-cuda is not available: ")
    assert done.stderr.rstrip().endswith("Nothing was built or measured.")
    assert os.listdir(tmp_path) == []
