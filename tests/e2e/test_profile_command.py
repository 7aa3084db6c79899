"""`sdengine profile` as a user runs it; its figures are checked for sense, never for speed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_profiles_the_demo_model(run: Run, tmp_path: Path) -> None:
    options = ["--size", "64x64", "--threads", 1, "--calls", 2, "--limit", 3]
    options += ["--json", "profile.jsonl", "--trace", "trace.json"]
    done = run("profile", "demo", *options)
    assert done.returncode == 0, done.stderr
    for text in ("by kind", "by level", "slowest", "winograd", "up 0", "could save", "GB/s"):
        assert text in done.stdout
    record = json.loads((tmp_path / "profile.jsonl").read_text())
    assert (record["network"], record["size"], record["rows"]) == ("unet", [64, 64], 2)
    assert record["roofline"]["bytes_per_second"] > 0
    assert set(record["roofline"]["flops_per_second"]) == {"fp32", "bf16", "int16", "int8"}
    trace = json.loads((tmp_path / "trace.json").read_text())
    complete = [one for one in trace["traceEvents"] if one["ph"] == "X" and one["args"]]
    assert len(complete) == len(record["steps"])
    assert sorted(os.listdir(tmp_path)) == ["profile.jsonl", "trace.json"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("demo", "--network", "unett"), 2, "network: 'unett'"),
        (("demo", "--size", "100x100"), 2, "multiples of 32"),
        (("demo", "--size", "64"), 2, "--size"),
        (("demo", "--backend", "tensorrt"), 2, "not profiled"),
        (("demo", "--limit", "-1"), 2, "--limit"),
        (("nowhere",), 2, "does not exist"),
        (("demo", "--trace", "missing/trace.json"), 1, "cannot be written"),
        (("demo", "--json", "missing/profile.jsonl"), 1, "cannot be written"),
    ],
)
def test_a_bad_value_is_one_line_and_leaves_nothing(
    call: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = call("profile", *arguments)
    assert done.returncode == status
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert os.listdir(tmp_path) == []
