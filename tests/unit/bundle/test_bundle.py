from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdengine.bundle.manifest import Manifest, parse_manifest
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.writer import write_bundle
from sdengine.errors import BundleError, ConfigError, OutputError


def example_manifest(**changes: object) -> Manifest:
    tensor = {"name": "sample", "shape": ["batch", 4, "height/8", "width/8"], "dtype": "float32"}
    content: dict[str, object] = {
        "sdengine_version": "0.1.0",
        "name": "example",
        "target": "openvino",
        "precision": "fp16",
        "resolutions": [(64, 64)],
        "architecture": {
            "family": "tiny",
            "text_encoders": [{"hidden_size": 8, "num_layers": 2}],
            "unet": {"in_channels": 4, "cross_attention_dim": 8},
            "vae": {"scaling_factor": 0.18215, "latent_channels": 4},
            "scheduler": {"num_train_timesteps": 1000},
        },
        "defaults": {"width": 64, "height": 64},
        "networks": {"unet": {"files": ["unet.bin"], "inputs": [tensor], "outputs": [tensor]}},
        "source": {"name": "none", "sha256": "0" * 64},
    }
    content.update(changes)
    return Manifest.model_validate(content)


def fill_example(folder: Path) -> Manifest:
    from safetensors.numpy import save_file

    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text("{}")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (folder / "unet.bin").write_bytes(b"weights")
    table = np.arange(32, dtype=np.float32).reshape(4, 8)
    save_file({"token_embedding": table}, folder / "token_table.safetensors")
    return example_manifest()


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "example", fill_example)


def test_written_bundle_opens(bundle_dir: Path) -> None:
    bundle = open_bundle(bundle_dir, verify="hash")
    assert bundle.manifest.name == "example"
    assert bundle.path("unet.bin").read_bytes() == b"weights"
    assert bundle.token_table(bundle.manifest.architecture.text_encoders[0]).shape == (4, 8)
    assert bundle.network("unet").inputs[0].shape == ["batch", 4, "height/8", "width/8"]


def test_only_listed_files_are_reachable(bundle_dir: Path) -> None:
    (bundle_dir / "extra").write_text("not listed")
    bundle = open_bundle(bundle_dir)
    with pytest.raises(BundleError, match="lists no file"):
        bundle.path("extra")
    with pytest.raises(BundleError, match="no network 'controlnet'"):
        bundle.network("controlnet")


def test_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Manifest:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "example", fail)
    assert list(tmp_path.iterdir()) == []


def test_existing_place_is_kept_unless_forced(bundle_dir: Path) -> None:
    with pytest.raises(OutputError, match="--force"):
        write_bundle(bundle_dir, fill_example)
    (bundle_dir / "old").write_text("from the first build")
    write_bundle(bundle_dir, fill_example, force=True)
    assert not (bundle_dir / "old").exists()
    assert [path.name for path in bundle_dir.parent.iterdir()] == ["example"]


def test_force_spares_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="not a bundle"):
        write_bundle(tmp_path / "photos", fill_example, force=True)


def test_missing_parent(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_bundle(tmp_path / "nowhere" / "example", fill_example)


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_bundle_argument_of_wrong_type(value: object) -> None:
    with pytest.raises(ConfigError, match="bundle"):
        open_bundle(value)  # type: ignore[arg-type]


def test_verify_argument(bundle_dir: Path) -> None:
    with pytest.raises(ConfigError, match="auto, size or hash"):
        open_bundle(bundle_dir, verify="sometimes")


def test_manifest_round_trip(bundle_dir: Path) -> None:
    data = (bundle_dir / "manifest.json").read_bytes()
    manifest = parse_manifest(data)
    assert manifest.resolutions == [(64, 64)]
    assert json.loads(manifest.model_dump_json()) == json.loads(data)
