"""`sdengine export` and `sdengine cache` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.commands import errors

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_checkpoints import make_tiny

    return make_tiny("shallow", tmp_path_factory.mktemp("checkpoints") / "shallow")


def test_files_with_symbolic_shapes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime

    done = run("export", checkpoint, "-o", "onnx", "--json")
    assert (done.returncode, errors(done)) == (0, [])
    report = json.loads(done.stdout)
    names = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert [graph["file"] for graph in report["graphs"]] == [f"{name}.onnx" for name in names]
    assert all(graph["max_error"] < 1e-5 for graph in report["graphs"])
    files = [f"{name}.onnx{ending}" for name in names for ending in ("", ".data")]
    assert sorted(os.listdir(tmp_path / "onnx")) == sorted([*files, "export.json"])
    told = json.loads((tmp_path / "onnx/export.json").read_text())
    assert [graph["network"] for graph in told["graphs"]] == names
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/vae_decoder.onnx"))
    (image,) = session.run(None, {"latents": np.zeros((3, 4, 8, 16), np.float32)})
    assert image.shape == (3, 3, 64, 128)


def test_files_of_fixed_shapes_share_their_weights(
    call: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "cache"))
    options = ("--networks", "unet", "--precision", "fp16", "--batch", 2)
    command = ("export", checkpoint, "-o", "onnx", *options, "--resolutions", "64,128x64")
    done = call(*command)
    assert done.returncode == 0, done.stderr
    assert "not compared" not in done.stdout
    assert "sample float16 [4,4,8,16] and 7 more" in done.stdout
    unets = ["unet.4x64x128.onnx", "unet.4x64x64.onnx", "unet.onnx.data"]
    assert sorted(os.listdir(tmp_path / "onnx")) == ["export.json", *unets]

    again = call(*command, "--force")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("kept") == 2
    single = call(*command, "--force", "--no-guidance", "--no-check")
    assert "unet.2x64x64.onnx" in single.stdout and "not compared" in single.stdout

    listed = call("cache")
    assert listed.returncode == 0
    assert "shallow  unet  fp16  5 graphs" in listed.stdout
    assert len(json.loads(call("cache", "--json").stdout)["entries"]) == 1
    cleared = call("cache", "--clear")
    assert "MB removed" in cleared.stdout
    assert os.listdir(tmp_path / "cache/onnx") == []


def test_builds_take_what_was_exported(
    call: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "cache"))
    build = ("build", checkpoint, "--resolutions", "64", "--json")
    for name, options in (("first", ()), ("second", ()), ("third", ("--no-cache",))):
        done = call(*build, "-o", name, *options)
        assert done.returncode == 0, done.stderr
    kept = json.loads(call("cache", "--json").stdout)["entries"]
    assert sorted(entry["network"] for entry in kept) == [
        "text_encoder",
        "unet",
        "vae_decoder",
        "vae_encoder",
    ]
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text())
        for name in ("first", "second", "third")
    ]
    assert manifests[0]["files"] == manifests[1]["files"] == manifests[2]["files"]
    assert sorted(os.listdir(tmp_path)) == ["cache", "first", "second", "third"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--precision", "int8"), 2, "precision: 'int8' is not accepted; expected fp32"),
        (("--networks", "unet,clip"), 2, "expected some of text_encoder, unet"),
        (("--resolutions", "100"), 2, "multiples of 16"),
        (("--resolutions", "big"), 2, "--resolutions"),
        (("--batch", "0"), 2, "batch"),
        (("--vae", "missing.safetensors"), 2, "does not exist"),
        (("-o", "missing/onnx"), 1, "does not exist"),
    ],
)
def test_bad_input(
    call: Run,
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    done = call("export", checkpoint, "-o", "onnx", *arguments)
    assert done.returncode == status
    (error,) = errors(done)
    assert error.startswith("error: ") and message in error
    assert os.listdir(tmp_path) == []


def test_other_folders_are_left_alone(call: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/mine").write_text("")
    for options, message in (((), "--force"), (("--force",), "is left alone")):
        done = call("export", checkpoint, "-o", "onnx", "--networks", "vae_decoder", *options)
        assert done.returncode == 1
        assert message in done.stderr
    assert os.listdir(tmp_path / "onnx") == ["mine"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"_class_name": "T5Model"}')
    done = call("export", "other", "-o", "new")
    assert (done.returncode, "not a ControlNetModel" in done.stderr) == (1, True)
