"""Golden manifests: bundles as the first releases wrote them, of every target, still open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdengine.bundle.manifest import MANIFEST_NAME
from sdengine.bundle.reader import open_bundle
from sdengine.cli.main import main

GOLDEN = Path(__file__).parent / "golden"
TARGETS = ("native", "openvino", "torch", "tensorrt-rtx", "tensorrt")


def golden(target: str) -> Any:
    return json.loads((GOLDEN / f"{target}.json").read_text(encoding="utf-8"))


@pytest.fixture(params=TARGETS)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a golden manifest and files of the sizes that it lists, full of zeros."""
    content = golden(request.param)
    for entry in content["files"]:
        path = tmp_path / entry["path"]
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(entry["size_bytes"])
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_an_old_manifest_says_today_what_it_said_then(bundle: Path) -> None:
    manifest = open_bundle(bundle, verify="size").manifest
    wanted = golden(manifest.target)
    assert json.loads(manifest.model_dump_json()) == wanted


def test_an_old_bundle_is_inspected(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    target = open_bundle(bundle, verify="size").manifest.target
    assert f"target      {target}, weights fp16" in shown
    assert ("by the builder" in shown) == target.startswith("tensorrt")
    if target == "tensorrt":  # whose engines could be built without weights then
        assert "stripped" in shown
        assert "triton: 2 group_norm_silu float16" in shown
        assert "native 2.0000 ms, triton 1.0000 ms" in shown
    assert main(["plan", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == golden(target)["name"]
