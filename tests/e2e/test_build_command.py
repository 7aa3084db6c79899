"""`sdengine build` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import errors

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_checkpoints import make_tiny

    return make_tiny("shallow", tmp_path_factory.mktemp("checkpoints") / "shallow")


def test_builds_reports_and_refuses_to_overwrite(
    run: Run, call: Run, checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--target", "torch", "--resolutions", "64,128x64", "--batch", 2, "--json")
    done = run("build", checkpoint, "-o", "bundle", *options)
    assert (done.returncode, errors(done)) == (0, [])
    report = json.loads(done.stdout)
    assert report["path"] == "bundle"
    assert report["bundle_bytes"] > 1e6
    assert sum(report["seconds"].values()) > 0
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["resolutions"] == [[64, 64], [128, 64]]
    assert (manifest["max_batch"], manifest["precision"]) == (2, "fp16")
    assert call("verify", "bundle").returncode == 0

    again = call("build", checkpoint, "-o", "bundle", *options)
    assert again.returncode == 1
    assert "--force" in again.stderr
    forced = call("build", checkpoint, "-o", "bundle", *options, "--force", "--no-controlnet")
    assert forced.returncode == 0
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["networks"]["unet"]["options"] == {"controlnet": False}
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--target", "cuda"), 2, "target"),
        (("--precision", "int4"), 2, "precision"),
        (("--resolutions", "big"), 2, "--resolutions"),
        (("--resolutions", "500"), 2, "multiples of 16"),
        (("--batch", "0"), 2, "batch"),
        (("-o", "missing/bundle"), 1, "does not exist"),
    ],
)
def test_a_bad_value_is_one_paragraph_and_leaves_nothing(
    call: Run,
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    done = call("build", checkpoint, "-o", "bundle", *arguments)
    assert done.returncode == status
    (error,) = errors(done)
    assert error.startswith("error: ") and message in error
    assert os.listdir(tmp_path) == []


def test_a_missing_checkpoint_is_named(run: Run) -> None:
    done = run("build", "nowhere", "-o", "bundle")
    assert done.returncode == 2
    assert "'nowhere' does not exist" in done.stderr
