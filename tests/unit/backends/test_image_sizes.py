"""Image sizes that a native bundle was not built for: which run, and what they may take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine import machine
from sdengine.backends.native import memory_limit
from sdengine.bundle.reader import DEMO_BUNDLE, check_size, open_bundle
from sdengine.cli.main import main
from sdengine.errors import OutOfMemoryError, UnsupportedShapeError

MULTIPLE = 32  # of the demo model: three levels, latents of an eighth


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the demo bundle, as if it had been built for 128x128 alone."""
    folder = tmp_path_factory.mktemp("sizes") / "small"
    shutil.copytree(DEMO_BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["resolutions"] = [[128, 128]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_size_runs_as_if_the_bundle_had_been_built_for_it(small: Path) -> None:
    options: dict[str, Any] = {"width": 192, "height": 192, "steps": 2, "seed": 1}
    with sdengine.load("demo", threads=1) as demo, sdengine.load(small, threads=1) as engine:
        wanted = demo.generate("a red circle", **options).arrays[0]
        assert np.array_equal(engine.generate("a red circle", **options).arrays[0], wanted)
        engine.warm_up([(96, 160)])
        result = engine.generate("a red circle", width=96, height=160, steps=1)
        assert result.arrays[0].shape == (160, 96, 3) and result.timings.load_ms == 0


def test_other_sizes_are_refused_with_the_nearest(small: Path) -> None:
    manifest = open_bundle(small).manifest
    assert manifest.size_multiple == MULTIPLE
    for width, height, nearest in ((200, 128, "192x128"), (8, 1000, "32x992"), (0, 0, "32x32")):
        with pytest.raises(
            UnsupportedShapeError, match=f"multiples of 32 pixels.*nearest is {nearest}"
        ):
            check_size(width, height, manifest)


def test_bundles_of_other_targets_run_what_they_were_built_for(tmp_path: Path) -> None:
    manifest = open_bundle(make_tiny_bundle(tmp_path / "tiny")).manifest
    assert manifest.size_multiple is None
    check_size(128, 64, manifest)
    with pytest.raises(UnsupportedShapeError, match=r"128x64 .*target native take any"):
        check_size(192, 64, manifest)


@pytest.mark.parametrize("levels", [None, [], 3, [64] * 9])
def test_a_model_of_unknown_levels_runs_what_it_was_built_for(levels: Any) -> None:
    manifest = open_bundle("demo").manifest.model_copy(deep=True)
    manifest.architecture.unet.config["block_out_channels"] = levels
    assert manifest.size_multiple is None


def test_a_size_may_take_what_is_free(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 30_000_000
    monkeypatch.setattr(memory_limit, "free_memory_bytes", lambda: free)
    with sdengine.load(small, threads=1) as engine:
        request = engine.request("a", width=1024, height=1024, steps=1)
        with pytest.raises(OutOfMemoryError) as caught:
            engine.run(request)
        message = str(caught.value)
        assert message.startswith("memory: 1024x1024 takes ")
        assert "30 MB may be used (free on this machine)" in message
        assert "a smaller width and height" in message
        assert engine._networks._loaded == {}
        engine.generate("a", steps=1)  # what it was built for is not planned
        free = 10**12
        engine.session.budget.check(1024, 1024)
        free = 0  # as it is where the engine itself has taken it
        engine.session.budget.check(1024, 1024)


def test_a_size_may_take_what_the_limit_leaves(small: Path) -> None:
    with sdengine.load(small, threads=1, memory_bytes=100_000_000) as engine:
        engine.generate("a", width=160, height=128, steps=1)
        with pytest.raises(OutOfMemoryError, match=r"0.1 GB may be used \(memory_bytes\)"):
            engine.generate("a", width=1024, height=1024, steps=1)


def test_a_size_beyond_what_networks_take(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "free_memory_bytes", lambda: 10**15)
    with (
        sdengine.load(small, threads=1) as engine,
        pytest.raises(UnsupportedShapeError, match=r"width, height: 16384x16384: .*step"),
    ):
        engine.generate("a", width=16384, height=16384, steps=1)


def test_free_memory_is_known() -> None:
    assert machine.free_memory_bytes() > 1 << 20


def test_the_command_line_says_so(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(small)]) == 0
    assert "sizes       all multiples of 32; built for 128x128\n" in capsys.readouterr().out
    assert main(["inspect", str(small), "--plan", "unet", "--size", "96x64"]) == 0
    assert "unet at 96x64, 2 rows" in capsys.readouterr().out
    for size in ("100x64", "0x64", "4x4"):
        assert main(["inspect", str(small), "--plan", "unet", "--size", size]) == 2
        assert "multiples of 32 pixels" in capsys.readouterr().err
    out = str(tmp_path / "a.png")
    options = ("--bundle", str(small), "--steps", "1", "-o", out)
    assert main(["generate", "a", "--width", "96", "--height", "64", *options]) == 0
    assert main(["generate", "a", "--width", "104", "--height", "64", *options]) == 2
    assert "nearest is 96x64" in capsys.readouterr().err
