"""Permissions: every writer gives what it writes the modes that the umask allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sdengine.backends.cache_file import Key, Kind
from sdengine.backends.cache_file import save as save_cache_file
from sdengine.bundle.manifest import MANIFEST_NAME, Manifest
from sdengine.bundle.reader import DEMO_BUNDLE, open_bundle
from sdengine.bundle.writer import write_bundle
from sdengine.checkpoints.converter import convert
from sdengine.export.cache import OnnxCache, Record
from sdengine.export.folder import export_onnx
from sdengine.images.png import write_images
from sdengine.storage.checked_tensors import map_checked, write_checked
from sdengine.storage.whole_file import whole_file
from sdengine.storage.whole_folder import write_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")


def private(path: Path) -> None:
    """Write a file as some libraries do, for its user alone."""
    path.write_bytes(b"x")
    path.chmod(0o600)


def a_file(place: Path) -> None:
    with whole_file(place / "a") as file:
        file.write(b"x")


def a_folder(place: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir(0o700)
        private(folder / "inner" / "a")

    write_folder(place / "folder", fill, what="folder")


def a_bundle(place: Path) -> None:
    def fill(folder: Path) -> Manifest:
        for path in sorted(DEMO_BUNDLE.rglob("*")):
            target = folder / path.relative_to(DEMO_BUNDLE)
            if path.is_dir():
                target.mkdir()
            elif path.name != MANIFEST_NAME:
                target.write_bytes(path.read_bytes())
                target.chmod(0o600)
        return open_bundle("demo").manifest

    write_bundle(place / "bundle", fill)


def an_export(place: Path) -> None:
    def fill(folder: Path) -> Record:
        private(folder / "unet.onnx")
        private(folder / "unet.onnx.data")  # as onnx writes it
        return Record(checkpoint="a", network="unet", precision="fp32", max_error={})

    cache = OnnxCache(place / "onnx")
    entry = cache.add("0" * 64, fill, 2)
    cache.extend(entry, "unet.1.onnx", private)


def exported_files(place: Path) -> None:
    os.environ["SDENGINE_CACHE"] = str(place / "cache")
    export_onnx("demo", place / "exported", networks=["text_encoder"], check=False)


def pictures(place: Path) -> None:
    write_images(place / "a.png", [b"a", b"b"])


def packed_weights(place: Path) -> None:
    os.environ["SDENGINE_CACHE"] = str(place / "cache")
    tensors = [("a", np.zeros(3, np.float32))]
    write_checked(place / "a.weights", {"a": ("F32", (3,))}, tensors, "me")
    map_checked(place / "a.weights", {"a": ("F32", (3,))}, "me")  # which remembers that it is sound


def timings(place: Path) -> None:
    kind, key = Kind("timing cache", b"magic\n", "timing"), Key("1", "gpu", 89)
    save_cache_file(place / "tensorrt" / "a.cache", kind, key, b"x")


def a_checkpoint(place: Path) -> None:
    convert("demo", place / "checkpoint")


WRITERS = [a_file, a_folder, a_bundle, an_export, exported_files, pictures, packed_weights, timings,
           a_checkpoint]  # fmt: skip


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("SDENGINE_CACHE", os.environ["SDENGINE_CACHE"])  # restored afterwards
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS)
def test_modes_follow_the_umask(write: Callable[[Path], None], mask: int, tmp_path: Path) -> None:
    write(tmp_path)
    found = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert any(path.is_file() for path in found)
    wrong = {
        str(path.relative_to(tmp_path)): oct(mode)
        for path, mode in found.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert not wrong
