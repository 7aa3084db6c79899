"""Archives of torch.save are read by NumPy as torch reads them."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine.errors import CheckpointError
from sdengine.storage.pickle_reader import StorageRecord, TensorRecord, read_pickle
from sdengine.storage.tensor_file import to_float32
from sdengine.storage.torch_archive import TorchFile

TENSORS = {
    "matrix": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "half": torch.linspace(-1, 1, 7).half(),
    "double": torch.tensor(1.5, dtype=torch.float64),
    "long": torch.arange(3),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "window": torch.arange(20.0)[4:10],
}


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_those_of_torch_wherever_they_lie(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    bfloat = torch.linspace(-1, 1, 5).bfloat16()
    torch.save(
        {"a": [{"b": TENSORS}], "bits": bfloat}, path, _use_new_zipfile_serialization=not legacy
    )
    archive = TorchFile(path)
    found = archive.content["a"][0]["b"]
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        array = archive.array_of(name, found[name])
        assert array.dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(array, tensor.numpy())
    bits = archive.array_of("bits", archive.content["bits"])
    np.testing.assert_array_equal(to_float32(bits), bfloat.float().numpy())


def test_a_tensor_that_is_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([torch.zeros(1).expand(1 << 40)], path)
    archive = TorchFile(path)
    (record,) = archive.content
    assert isinstance(record, TensorRecord)
    with pytest.raises(CheckpointError, match=r"x\.pt: tensor 'big' reaches out of its storage"):
        archive.array_of("big", record)


class ParameterDict(torch.nn.Module):
    """As torch wrote it before it became a mapping by its attributes."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_parameter_dict_of_an_old_torch_is_a_dict(tmp_path: Path, legacy: bool) -> None:
    old = ParameterDict()
    ParameterDict.__module__ = "torch.nn.modules.container"
    old.register_parameter("key", torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)))
    for number, module in enumerate((torch.nn.ParameterDict({"key": torch.ones(2)}), old)):
        path = tmp_path / f"{number}.pt"
        with pytest.MonkeyPatch.context() as patch:
            if module is old:  # so that pickle finds the class where it is said to be
                patch.setattr(torch.nn.modules.container, "ParameterDict", ParameterDict)
            torch.save({"held": module}, path, _use_new_zipfile_serialization=not legacy)
        archive = TorchFile(path)
        array = archive.array_of("key", archive.content["held"]["key"])
        np.testing.assert_array_equal(array, dict(module.named_parameters())["key"].detach())


def counted(value: int) -> bytes:
    """Return an integer as the pickle opcode LONG1 has it."""
    bits = pickle.encode_long(value)
    return b"\x8a" + bytes([len(bits)]) + bits


SIZE, ORDERED = b"ctorch\nSize\nq\x00", b"ccollections\nOrderedDict\nq\x00"
NAME = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x01"
ONES = b"((" + b"K\x01" * 100_000 + b"lq\x02tq\x01"
PAIRS = b"((" + b"".join(b"(M" + struct.pack("<H", n) + b"K\x01l" for n in range(9999)) + b"ltq\x01"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (SIZE + ONES + b"h\x00h\x01R" * 100, "far more of its lists than it holds"),
        (ORDERED + PAIRS + b"h\x00h\x01R" * 1000, "far more of its lists than it holds"),
        (NAME + b"h\x01h\x01\x93" * 1000, "of 2003 characters"),
        (b"Np%d\n" % (1 << 61), "far too large numbers"),
    ],
)
def test_a_few_bytes_of_a_pickle_make_no_copies(body: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_pickle(io.BytesIO(b"\x80\x04" + body + b"."))


def test_integers_that_python_hashes_alike_are_no_keys() -> None:
    # Of the remainder 0 modulo 2**61 - 1 there are as many as a file has room for.
    keys = b"".join(counted(n * ((1 << 61) - 1)) + b"K\x01" for n in range(1, 50))
    assert read_pickle(io.BytesIO(b"\x80\x02}(" + keys + b"M\x00\x03K\x07u.")) == {768: 7}


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((0, 10**30), (1, 1)),
        ((0, 1 << 47, 1 << 47), (1, 1, 1)),
        ((1,), (10**30,)),
        ((1,), (1 << 62,)),
        ((1 << 62,) * 8, (0,) * 8),
    ],
)
def test_claims_that_no_array_can_have_are_refused(
    tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    torch.save(torch.zeros(4), tmp_path / "x.pt")
    archive = TorchFile(tmp_path / "x.pt")
    storage = archive.content.storage
    for one in (storage, StorageRecord(storage.key, storage.dtype, 0)):
        with pytest.raises(CheckpointError, match="tensor 'odd'"):
            archive.array_of("odd", TensorRecord(one, 0, shape, stride))
