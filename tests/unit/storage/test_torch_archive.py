"""Archives of torch.save are read by NumPy as torch reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine.errors import CheckpointError
from sdengine.storage.pickle_reader import TensorRecord
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
