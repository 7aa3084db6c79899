"""Files of torch.save are read as torch itself reads them, and nothing of them is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import io
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.checkpoints.formats.tensor_files import TensorFile, open_tensor_file
from sdengine.errors import CheckpointError

STATE: dict[str, torch.Tensor] = {
    "matrix": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "half": torch.linspace(-1, 1, 7).half(),
    "bfloat": torch.linspace(-1, 1, 5).bfloat16(),
    "double": torch.tensor(1.5, dtype=torch.float64),
    "long": torch.arange(3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3.0),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "window": torch.arange(20.0)[4:10],
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def save(path: Path, content: Any, *, legacy: bool = False) -> TensorFile:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return open_tensor_file(path)


def assert_holds_state(file: TensorFile) -> None:
    assert set(file.names()) == STATE.keys()
    for name, tensor in STATE.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name
        assert file.shape(name) == tuple(tensor.shape)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_every_type_and_layout_is_read(tmp_path: Path, legacy: bool, nest: Any) -> None:
    assert_holds_state(save(tmp_path / "x.ckpt", nest(STATE), legacy=legacy))
    ordered = collections.OrderedDict(STATE)
    assert_holds_state(save(tmp_path / "y.pt", nest(ordered), legacy=legacy))
    # torch agrees about what the file holds.
    theirs = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert nest(STATE).keys() == theirs.keys()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    torch.save(STATE, tmp_path / "x.pth", pickle_protocol=protocol)
    assert_holds_state(open_tensor_file(tmp_path / "x.pth"))


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_leaves_behind_is_passed_over(tmp_path: Path, legacy: bool) -> None:
    optimizer = {"state": {0: {"step": 3, "average": torch.zeros(6)}}, "groups": [{"lr": 1e-4}]}
    content = {
        "state_dict": collections.OrderedDict(STATE),
        "epoch": 3,
        "global_step": 875000,
        "callbacks": {"seen": {1, 2}, "other": collections.defaultdict(list, a=[1])},
        "options": argparse.Namespace(rate=1.0),
        "loss": np.float64(0.5),
        "array": np.arange(3),
        "optimizer": [optimizer],
        "pair": (1, -(2**70), 2.5, None, b"bytes", "ünicode", slice(1, 2)),
    }
    file = save(tmp_path / "x.ckpt", content, legacy=legacy)
    assert_holds_state(file)
    assert file.metadata == {"global_step": "875000"}


NAMED = {
    "data types": [
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.float8_e4m3fn,
        torch.complex64,
    ],
    "classes": [dict, collections.deque, datetime.datetime, argparse.Namespace, os.PathLike],
    "functions": [os.system, eval, torch.load],
    "moments": [datetime.datetime(2023, 1, 2), datetime.timedelta(1), datetime.timezone.utc],
    "collections": [collections.deque([1, 2]), range(3), {1, 2}, frozenset({3}), 1j],
    "values": [decimal.Decimal("1.5"), fractions.Fraction(1, 2), uuid.UUID(int=5)],
    "paths": [PurePosixPath("a"), PureWindowsPath("b"), Path("c")],
    "torch's": [torch.Size([1, 2]), torch.device("cpu"), torch.get_rng_state()],
    "sparse": [torch.eye(2).to_sparse()],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", NAMED)
def test_what_is_only_named_is_inert(tmp_path: Path, kind: str, legacy: bool) -> None:
    content = {"state_dict": STATE, "hyper_parameters": {"x": NAMED[kind]}}
    assert_holds_state(save(tmp_path / "x.ckpt", content, legacy=legacy))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_of_eight_bits_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).to(dtype)
    file = save(tmp_path / "x.ckpt", {"a": tensor, "b": tensor[1:]})
    for name, expected in (("a", tensor), ("b", tensor[1:])):
        assert file.read(name).dtype == dtype
        assert torch.equal(file.read(name).float(), expected.float())


def test_a_class_of_a_training_framework_is_never_made(tmp_path: Path) -> None:
    # What the published files of Stable Diffusion 1 hold: a callback's class as a key.
    program = (
        b"\x80\x02}q\x00(X\x09\x00\x00\x00callbacksq\x01}q\x02"
        b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nq\x03}q\x04s"
        b"X\x05\x00\x00\x00stateq\x05cpytorch_lightning.x\nY\n)\x81}b"
        b"u."
    )
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    assert open_tensor_file(path).names() == []


def test_tensors_stay_in_the_file(tmp_path: Path) -> None:
    file = save(tmp_path / "x.ckpt", {"a": torch.zeros(1 << 20)})
    assert file.read("a").data_ptr() == file.read("a").data_ptr()
    file.read("a").add_(1)  # a private copy of the pages; the file does not change
    assert not open_tensor_file(tmp_path / "x.ckpt").read("a").any()


def edited(tmp_path: Path, content: Any, edit: Callable[[dict[str, bytes]], object]) -> Path:
    """Save content and edit the archive's entries."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(entries)
    path = tmp_path / "edited.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        (b"K\x04\x85", b"K\xff\x85", "reaches out of its storage"),  # a larger shape
        (b"K\x00K\x04\x85", b"K\x01K\x04\x85", "reaches out of its storage"),  # a later start
        (b"K\x04tq\x07Q", b"K\xfftq\x07Q", "storage of 255 numbers; the file holds 16 bytes"),
        (b"K\x04tq\x07Q", b"K\x02tq\x07Q", "storage of 2 numbers; the file holds 16 bytes"),
        (b"FloatStorage", b"EvilStorages", "a storage '0' of no known type"),
        (b"ctorch\nFloat", b"cxxxxx\nFloat", "a storage '0' of no known type"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00garbage", "what is not a storage"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    tmp_path: Path, before: bytes, after: bytes, match: str
) -> None:
    def edit(entries: dict[str, bytes]) -> None:
        assert entries["data.pkl"].count(before) == 1
        entries["data.pkl"] = entries["data.pkl"].replace(before, after)

    path = edited(tmp_path, {"a": torch.zeros(4)}, edit)
    with pytest.raises(CheckpointError, match=match):
        open_tensor_file(path)


def test_a_tensor_of_a_terabyte_in_one_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(CheckpointError, match="reaches out of its storage"):
        open_tensor_file(path)


def test_missing_and_foreign_entries_are_named(tmp_path: Path) -> None:
    state = {"a": torch.zeros(4)}
    with pytest.raises(CheckpointError, match="holds 0 bytes"):
        open_tensor_file(edited(tmp_path, state, lambda e: e.pop("data/0")))
    with pytest.raises(CheckpointError, match="not one of torch"):
        open_tensor_file(edited(tmp_path, state, lambda e: e.pop("data.pkl")))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_tensor_file(edited(tmp_path, state, lambda e: e.update(byteorder=b"big")))
    with pytest.raises(CheckpointError, match="holds a list"):
        save(tmp_path / "list.ckpt", [torch.zeros(2)])
    with pytest.raises(CheckpointError, match="not among"):
        open_tensor_file(tmp_path / "model.onnx")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * (64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="compressed"):
        open_tensor_file(path)


def test_an_entry_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    sizes = struct.pack("<II", 4000, 4000)  # of data/0, compressed and not, in the directory
    assert data.count(sizes) >= 1
    path.write_bytes(data.replace(sizes, struct.pack("<II", 1 << 30, 1 << 30)))
    with pytest.raises(CheckpointError):
        open_tensor_file(path)
