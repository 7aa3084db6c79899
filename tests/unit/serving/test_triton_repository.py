from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.triton_server import read_config

from sdengine.bundle.manifest import MANIFEST_NAME, Manifest
from sdengine.bundle.reader import DEMO_BUNDLE, open_bundle
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError, OutputError
from sdengine.serving import triton_repository
from sdengine.serving.triton_repository import Export, config_text, export_triton
from sdengine.serving.triton_settings import read_settings
from sdengine.serving.triton_tensors import INPUTS, OUTPUTS


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return open_bundle("demo", verify="size").manifest


def config(manifest: Manifest, **options: Any) -> dict[str, Any]:
    return read_config(config_text(Export(**options), manifest))


def dims(found: dict[str, Any]) -> dict[str, list[int]]:
    return {one["name"]: one["dims"] for one in (*found["input"], *found["output"])}


def test_without_batches_a_request_has_lists(manifest: Manifest) -> None:
    found = config(manifest)
    assert (found["name"], found["backend"], found["max_batch_size"]) == (
        "stable_diffusion",
        "python",
        0,
    )
    assert "dynamic_batching" not in found
    assert found["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert [one["name"] for one in found["input"]] == [one.name for one in INPUTS]
    assert [one["name"] for one in found["output"]] == [one.name for one in OUTPUTS]
    needed = [one["name"] for one in found["input"] if not one.get("optional")]
    assert needed == ["PROMPT"]
    shapes = dims(found)
    assert shapes["PROMPT"] == shapes["SEED"] == shapes["SEEDS"] == [-1]
    assert shapes["STEPS"] == shapes["SAMPLES"] == [1]
    assert shapes["IMAGES"] == [-1, -1, -1, 3]
    assert shapes["IMAGE"] == [-1, -1, -1]
    largest = max(width * height for width, height in manifest.resolutions)
    assert found["parameters"]["max_pixels"]["string_value"] == str(4 * largest)
    settings = read_settings(json.dumps(found))
    assert (settings.spelling, settings.is_batched, settings.threads) == ("capitals", False, None)
    assert (settings.backend, settings.precision) == ("auto", "auto")
    assert (settings.limits.max_steps, settings.limits.max_images) == (150, 16)


def test_in_batches_each_tensor_is_of_one_picture(manifest: Manifest) -> None:
    found = config(manifest, max_batch=4, spelling="small", pixels="fp32", instances=3, threads=2)
    assert (found["max_batch_size"], "dynamic_batching" in found) == (4, True)
    assert found["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    shapes = dims(found)
    assert "samples" not in shapes
    assert shapes["prompt"] == shapes["seeds"] == [1]
    assert shapes["generated_image"] == [-1, -1, 3]
    assert found["output"][0]["data_type"] == "TYPE_FP32"
    settings = read_settings(json.dumps(found))
    assert (settings.spelling, settings.is_batched, settings.most_rows) == ("small", True, 4)
    assert (settings.threads, settings.cpu_instances, settings.pixel_type) == (2, 3, "TYPE_FP32")
    assert "dynamic_batching" not in config(manifest, max_batch=1)


@pytest.mark.parametrize(
    ("target", "backend", "kind"),
    [
        ("native", "auto", "KIND_CPU"),
        ("openvino", "openvino", "KIND_CPU"),
        ("torch", "auto", "KIND_CPU"),
        ("torch", "triton", "KIND_GPU"),
        ("tensorrt", "auto", "KIND_GPU"),
        ("tensorrt-rtx", "tensorrt-rtx", "KIND_GPU"),
    ],
)
def test_instances_are_where_the_backend_runs(
    manifest: Manifest, target: str, backend: str, kind: str
) -> None:
    built = manifest.model_copy(update={"target": target})
    found = config(built, backend=backend, instances=2)
    assert found["instance_group"] == [{"count": 2, "kind": kind}]
    assert found["parameters"]["backend"]["string_value"] == backend
    if kind == "KIND_GPU":
        with pytest.raises(ConfigError, match="threads: 2 is not accepted"):
            config_text(Export(backend=backend, threads=2), built)


def test_backends_of_other_targets_are_refused(manifest: Manifest) -> None:
    with pytest.raises(BackendUnavailableError, match="triton cannot run this bundle"):
        config_text(Export(backend="triton"), manifest)
    strange = manifest.model_copy(update={"target": "other"})
    with pytest.raises(BackendUnavailableError, match="other"):
        config_text(Export(), strange)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../up"),
        ("name", ""),
        ("name", ".hidden"),
        ("name", 'a"b'),
        ("name", "a" * 101),
        ("max_batch", -1),
        ("max_batch", 257),
        ("instances", 0),
        ("precision", "fp8"),
        ("backend", "cuda"),
        ("threads", 0),
        ("spelling", "mixed"),
        ("pixels", "fp64"),
    ],
)
def test_fields_are_checked(field: str, value: Any) -> None:
    shown = "tensors" if field == "spelling" else field
    with pytest.raises(ConfigError, match=f"^{shown}: "):
        Export(**{field: value})


def test_the_bundle_is_copied_whole(tmp_path: Path) -> None:
    bundle = shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")
    (bundle / "notes.txt").write_text("not listed")
    seen = []
    path = export_triton(
        bundle,
        tmp_path / "models",
        Export(name="sd"),
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert path == tmp_path / "models" / "sd"
    assert sorted(os.listdir(path)) == ["1", "config.pbtxt"]
    assert sorted(os.listdir(path / "1")) == ["bundle", "model.py"]
    copied = open_bundle(path / "1" / "bundle", verify="hash")
    assert copied.sha256 == open_bundle(bundle).sha256
    listed = {entry.path for entry in copied.manifest.files} | {MANIFEST_NAME}
    files = {str(p.relative_to(copied.root)) for p in copied.root.rglob("*") if p.is_file()}
    assert files == listed
    assert seen == [(number, len(listed)) for number in range(len(listed))]
    assert os.listdir(tmp_path / "models") == ["sd"]


def test_other_models_stay_and_only_exports_are_replaced(tmp_path: Path) -> None:
    other = tmp_path / "models" / "other"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_text("mine")
    export_triton("demo", tmp_path / "models")
    with pytest.raises(OutputError, match="exists"):
        export_triton("demo", tmp_path / "models")
    path = export_triton("demo", tmp_path / "models", Export(max_batch=2), force=True)
    assert "max_batch_size: 2" in (path / "config.pbtxt").read_text()
    with pytest.raises(OutputError, match="is not a model; it is left alone"):
        export_triton("demo", tmp_path / "models", Export(name="other"), force=True)
    assert (other / "config.pbtxt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path / "models")) == ["other", "stable_diffusion"]


@pytest.mark.parametrize("file", ["unet.safetensors", MANIFEST_NAME])
def test_an_altered_bundle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A file that changes after it was looked at, to another of its size."""
    bundle = shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")

    def change_after(*arguments: Any, **options: Any) -> Any:
        found = open_bundle(*arguments, **options)
        content = bytearray((bundle / file).read_bytes())
        content[-3] ^= 1
        (bundle / file).write_bytes(content)
        return found

    monkeypatch.setattr(triton_repository, "open_bundle", change_after)
    with pytest.raises(BundleError, match="not what the manifest says"):
        export_triton(bundle, tmp_path / "models")
    assert os.listdir(tmp_path) == ["bundle"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist; make it first"):
        export_triton("demo", tmp_path / "missing" / "models")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        export_triton("demo", tmp_path / "file")
    with pytest.raises(BundleError, match="does not exist"):
        export_triton(tmp_path / "none", tmp_path / "models")
    assert os.listdir(tmp_path) == ["file"]
