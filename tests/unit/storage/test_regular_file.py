"""Regular files: whatever else has a file's name is refused at once, by every reader."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sdengine.backends.cache_file import Key, Kind
from sdengine.backends.cache_file import load as load_cache_file
from sdengine.backends.native.graph import read_graph
from sdengine.bundle.manifest import MANIFEST_NAME
from sdengine.bundle.reader import DEMO_BUNDLE, open_bundle
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.checkpoints.formats.tensor_files import open_tensor_file
from sdengine.checkpoints.reader import load_checkpoint
from sdengine.errors import SdengineError
from sdengine.export.cache import RECORD_FILE, OnnxCache
from sdengine.images.picture_text import read_text
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.storage.content_hash import sha256_of
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_tensors


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def outcome_of(read: Callable[[], object]) -> BaseException | None:
    """Run a reader beside the test, which goes on where the reader hangs."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            read()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the reader waits"
    return raised[0] if raised else None


READERS: dict[str, Callable[[Path], object]] = {
    "x.safetensors": map_tensors,
    "y.safetensors": open_tensor_file,
    "x.ckpt": open_tensor_file,
    "checkpoint.safetensors": load_checkpoint,
    "checkpoint.ckpt": load_checkpoint,
    "x.graph.json": read_graph,
    "x.bin": sha256_of,
    "x.png": lambda path: read_text(path, ["parameters"]),
    **{f"embedding.{ending}": read_embeddings for ending in ("pt", "safetensors", "png")},
}


@pytest.mark.parametrize("make", [pipe, device, folder])
@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_what_is_no_file(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    assert isinstance(outcome_of(lambda: READERS[name](path)), SdengineError)


@pytest.mark.parametrize("make", [pipe, device, folder])
@pytest.mark.parametrize("name", [MANIFEST_NAME, "tokenizer/vocab.json", "unet.safetensors"])
def test_a_bundle_of_other_things_is_refused(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")
    make(tmp_path / "bundle" / name)
    found = outcome_of(lambda: open_bundle(tmp_path / "bundle"))
    assert isinstance(found, SdengineError) and name in str(found)


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"],
)
def test_a_checkpoint_of_pipes_is_refused(name: str, tmp_path: Path) -> None:
    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "checkpoint")
    pipe(tmp_path / "checkpoint" / name)

    def read() -> None:
        checkpoint = load_checkpoint(tmp_path / "checkpoint")
        checkpoint.tokenizer_files()
        checkpoint.load("unet", None)

    assert isinstance(outcome_of(read), SdengineError)


def test_pipes_in_the_cache_are_passed_over(tmp_path: Path) -> None:
    pipe(tmp_path / "a.cache")
    kind, key = Kind("timing cache", b"magic\n", "timing"), Key("1", "gpu", 89)
    assert outcome_of(lambda: load_cache_file(tmp_path / "a.cache", kind, key)) is None
    found = load_cache_file(tmp_path / "a.cache", kind, key)
    assert "no regular file" in found.reason and not found.replaceable
    (tmp_path / ("0" * 64)).mkdir()
    pipe(tmp_path / ("0" * 64) / RECORD_FILE)
    assert outcome_of(lambda: OnnxCache(tmp_path).find("0" * 64)) is None


def test_a_file_that_is_replaced_by_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    looked_at = path.stat()
    pipe(path)
    monkeypatch.setattr(os, "stat", lambda *_: looked_at)
    assert isinstance(outcome_of(lambda: open_regular(path)), OSError)
