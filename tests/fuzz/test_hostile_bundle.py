"""Bundles made to mislead the reader: nothing but an SdengineError may come out."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sdengine.bundle.manifest import Manifest, parse_manifest
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.schema_fields import checked_relative_path
from sdengine.bundle.writer import write_bundle
from sdengine.errors import BundleError, SdengineError

TENSOR = {"name": "sample", "shape": ["batch", 4, "height/8"], "dtype": "float32"}
CONTENT: dict[str, Any] = {
    "sdengine_version": "0.1.0",
    "name": "example",
    "target": "openvino",
    "precision": "fp16",
    "resolutions": [[64, 64], [128, 64]],
    "architecture": {
        "family": "tiny",
        "text_encoders": [{"hidden_size": 8, "num_layers": 2, "hidden_state": {"index": -2}}],
        "unet": {"in_channels": 4, "cross_attention_dim": 8},
        "vae": {"scaling_factor": 0.18215, "latent_channels": 4},
        "scheduler": {"num_train_timesteps": 1000},
    },
    "defaults": {"width": 64, "height": 64},
    "networks": {"unet": {"files": ["unet.bin"], "inputs": [TENSOR], "outputs": [TENSOR]}},
    "source": {"name": "none", "sha256": "0" * 64},
}


def fill(folder: Path) -> Manifest:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text("{}")
    (folder / "tokenizer/merges.txt").write_text("")
    (folder / "unet.bin").write_bytes(bytes(100))
    save_file({"token_embedding": np.zeros((4, 8), np.float32)}, folder / "token_table.safetensors")
    return Manifest.model_validate(CONTENT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(100))
    return write_bundle(tmp_path / "bundle", fill)


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def entry_of(content: dict[str, Any], path: str) -> dict[str, Any]:
    return next(entry for entry in content["files"] if entry["path"] == path)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "tokenizer/../../secret",
        "./unet.bin",
        "a//b",
        "",
        ".",
        "C:\\windows",
        "c:x",
        "a\x00b",
        "a\nb",
        "x" * 600,
        "\ud800",
        "dir/",
    ],
)
def test_path_traversal(root: Path, path: str) -> None:
    edit(root, lambda content: entry_of(content, "unet.bin").update(path=path))
    with pytest.raises(BundleError):
        open_bundle(root)

    def in_network(content: dict[str, Any]) -> None:
        entry_of(content, path).update(path="unet.bin")
        content["networks"]["unet"]["files"] = [path]

    edit(root, in_network)
    with pytest.raises(BundleError):
        open_bundle(root)

    def in_text_encoder(content: dict[str, Any]) -> None:
        content["networks"]["unet"]["files"] = ["unet.bin"]
        content["architecture"]["text_encoders"][0]["token_table"] = path

    edit(root, in_text_encoder)
    with pytest.raises(BundleError):
        open_bundle(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_encoders": []},
        {"text_encoders": [{"hidden_size": 8, "num_layers": 2}] * 2},
        {"pooled_from": "text_encoder_2"},
        {"pooled_from": "unet"},
        {"zero_empty_negative": 3},
    ],
)
def test_text_encoders_that_do_not_fit(root: Path, changes: dict[str, Any]) -> None:
    edit(root, lambda content: content["architecture"].update(changes))
    with pytest.raises(BundleError, match=next(iter(changes))):
        open_bundle(root)


def test_link_out_of_the_bundle(root: Path) -> None:
    (root / "unet.bin").unlink()
    (root / "unet.bin").symlink_to(root.parent / "secret")
    with pytest.raises(BundleError, match="leads out"):
        open_bundle(root)


def test_linked_folder_out_of_the_bundle(root: Path) -> None:
    (root / "tokenizer").rename(root.parent / "elsewhere")
    (root / "tokenizer").symlink_to(root.parent / "elsewhere")
    with pytest.raises(BundleError, match="leads out"):
        open_bundle(root)


def test_link_loop(root: Path) -> None:
    (root / "unet.bin").unlink()
    (root / "unet.bin").symlink_to("unet.bin")
    with pytest.raises(BundleError):
        open_bundle(root)


def test_named_pipe_does_not_block(root: Path) -> None:
    (root / "unet.bin").unlink()
    os.mkfifo(root / "unet.bin")
    with pytest.raises(BundleError, match="regular"):
        open_bundle(root)


def test_bundle_behind_a_link_is_fine(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert open_bundle(link).manifest.name == "example"


@pytest.mark.parametrize("size", [0, 99, 101, 1 << 43, 1 << 70, -1, 1e300, "100", True, None])
def test_claimed_size(root: Path, size: object) -> None:
    edit(root, lambda content: entry_of(content, "unet.bin").update(size_bytes=size))
    with pytest.raises(BundleError):
        open_bundle(root)


def test_wrong_hash(root: Path) -> None:
    (root / "unet.bin").write_bytes(b"\x01" + bytes(99))
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(root)
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(root, verify="hash")


def test_large_bundles_have_their_small_files_hashed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdengine.bundle.reader.HASH_BY_DEFAULT_BYTES", 10)
    (root / "unet.bin").write_bytes(b"\x01" + bytes(99))
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(root)
    monkeypatch.setattr("sdengine.bundle.reader.HASH_ANYWAY_BYTES", 99)
    assert open_bundle(root).manifest.name == "example"
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(root, verify="hash")


def test_truncated_and_missing_files(root: Path) -> None:
    (root / "unet.bin").write_bytes(bytes(50))
    with pytest.raises(BundleError, match="50 bytes"):
        open_bundle(root)
    (root / "unet.bin").unlink()
    with pytest.raises(BundleError, match=r"unet\.bin"):
        open_bundle(root)


def test_unlisted_required_file(root: Path) -> None:
    edit(root, lambda c: c["files"].remove(entry_of(c, "tokenizer/merges.txt")))
    with pytest.raises(BundleError, match=r"merges\.txt"):
        open_bundle(root)


@pytest.mark.parametrize("version", [0, 1, 99, "2", None, True, 1.5, [1], 10**400])
def test_foreign_schema_version(root: Path, version: object) -> None:
    edit(root, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleError, match="schema_version"):
        open_bundle(root)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"null",
        b"[]",
        b'"text"',
        b"9" * 10_000,
        b'{"schema_version": 2}',
        b'{"schema_version": 2, "name": "' + b"\xc3\x28" + b'"}',
        b" " * (9 << 20),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_malformed_json(root: Path, data: bytes) -> None:
    (root / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError):
        open_bundle(root)


@pytest.mark.parametrize("name", ["missing", "secret", "secret/below", "a\x00b", "x" * 5000])
def test_not_a_bundle(root: Path, name: str) -> None:
    with pytest.raises(BundleError):
        open_bundle(str(root.parent / name))
    with pytest.raises(BundleError):
        open_bundle(root / "tokenizer")


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, (1 << 62).to_bytes(8, "little") + b"{}"])
def test_hostile_token_table(tmp_path: Path, data: bytes) -> None:
    def fill_hostile(folder: Path) -> Manifest:
        manifest = fill(folder)
        (folder / "token_table.safetensors").write_bytes(data)
        return manifest

    bundle = open_bundle(write_bundle(tmp_path / "bundle", fill_hostile))
    with pytest.raises(BundleError):
        bundle.token_table(bundle.manifest.architecture.text_encoders[0])


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": np.zeros((4, 8), np.float32)},
        {"token_embedding": np.zeros((4, 9), np.float32)},
        {"token_embedding": np.zeros(8, np.float32)},
        {"token_embedding": np.zeros((4, 8), np.int32)},
    ],
)
def test_foreign_token_table(tmp_path: Path, tensors: dict[str, Any]) -> None:
    def fill_foreign(folder: Path) -> Manifest:
        manifest = fill(folder)
        save_file(tensors, folder / "token_table.safetensors")
        return manifest

    bundle = open_bundle(write_bundle(tmp_path / "bundle", fill_foreign))
    with pytest.raises(BundleError):
        bundle.token_table(bundle.manifest.architecture.text_encoders[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += places(value[key], (*at, key))
    return found


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_manifest(root: Path, data: st.DataObject) -> None:
    content = json.loads((root / "manifest.json").read_text())
    mutated = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(mutated)))
        owner = mutated
        for key in place[:-1]:
            owner = owner[key]
        if data.draw(st.booleans()) and isinstance(owner, dict):
            del owner[place[-1]]
        else:
            owner[place[-1]] = data.draw(JSON)
    try:
        manifest = parse_manifest(json.dumps(mutated).encode())
    except SdengineError:
        return
    for entry in manifest.files:
        assert ".." not in entry.path and not entry.path.startswith("/")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes(root: Path, data: st.DataObject) -> None:
    raw = bytearray((root / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SdengineError):
        parse_manifest(bytes(raw))


@given(st.text())
def test_accepted_paths_stay_inside(path: str) -> None:
    try:
        checked_relative_path(path)
    except ValueError:
        return
    assert Path("/root", path).resolve().is_relative_to("/root")
