"""Hostile checkpoints: only typed errors come out, nothing is run, memory stays bounded."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.single_files import modules_of, original_state
from support.tiny_architectures import TINY_SD15

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.formats.tensor_files import open_tensor_file
from sdengine.errors import CheckpointError, SdengineError

FAMILY = TINY_SD15
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class _Reduced:
    """Pickle as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "system": _Reduced(os.system, "touch attacked"),
    "eval": _Reduced(eval, "open('attacked', 'w')"),
    "exec": _Reduced(exec, "open('attacked', 'w')"),
    "getattr": _Reduced(getattr, "x", "upper"),
    "import": _Reduced(__import__, "antigravity"),
    "file": _Reduced(open, "attacked", "w"),
    "torch": _Reduced(torch.load, "attacked"),
    "memory": _Reduced(bytearray, 1 << 40),
    "numpy": _Reduced(torch.zeros, 1 << 40),
}
# Programs in the bytes of pickle: whatever they name, multiply or leave out.
PROGRAMS = {
    "empty": b"",
    "no end": b"\x80\x02]q\x00" * 50,
    "os.system": b"cos\nsystem\n(S'touch attacked'\ntR.",
    "instance": b"(S'touch attacked'\nios\nsystem\n.",
    "named, then called": b"\x80\x04}cos\nsystem\n\x94\x8c\x02ls\x85R.",
    "new object": b"\x80\x04cos\nsystem\n\x8c\x02ls\x85\x81.",
    "object": b"(cos\nsystem\nS'touch attacked'\no.",
    "extension": b"\x80\x02\x82\x01)R.",
    "not a dictionary": pickle.dumps([1, 2, 3]),
    "marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "nested tuples": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"](" * 50_000 + b"e" * 50_000 + b".",
    "deep name": b"\x80\x04" + b")" + b"\x85" * 100_000 + b"\x8c\x01x\x93.",
    "memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "text of terabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 41) + b"x.",
    "bytes of terabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 41) + b"x.",
    "frame of terabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 41) + b"}.",
    "a number of megabytes": b"\x80\x02\x8b"
    + struct.pack("<i", 1 << 20)
    + b"\x7f" * (1 << 20)
    + b".",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "buffers": b"\x80\x05\x97\x98.",
    "unknown memo": b"\x80\x02h\x05.",
    "state of a dictionary": b"\x80\x02}}(X\x01\x00\x00\x00aK\x01ub.",
    "storage": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N"
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftQ.",
}


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let an allocation of what a header merely claims fail at once."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def safetensors_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    state = original_state(FAMILY, modules_of(FAMILY))
    save_file({name: tensor.half() for name, tensor in state.items()}, path)
    return path.read_bytes()


@pytest.fixture(scope="module", params=["zip", "legacy"])
def pickled_bytes(request: pytest.FixtureRequest) -> bytes:
    state = {f"model.diffusion_model.{i}": torch.full((i,), float(i)) for i in range(1, 6)}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=request.param == "zip")
    return buffer.getvalue()


def open_everything(path: Path) -> None:
    opened = load_checkpoint(path, family=FAMILY)
    for part in opened.parts:
        opened.load(part)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_cannot_run_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    content = {"state_dict": {"a": torch.zeros(2)}, "x": ATTACKS[attack]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"its pickle calls .*nothing of it was run"):
        load_checkpoint(path)
    assert os.listdir(tmp_path) == ["model.ckpt"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", PROGRAMS[name])
    (tmp_path / "bare.pt").write_bytes(PROGRAMS[name])
    for file in ("model.ckpt", "bare.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(file)
    assert sorted(os.listdir(tmp_path)) == ["bare.pt", "model.ckpt"]


@SETTINGS
@given(data=st.data())
def test_damaged_pickled_files(tmp_path: Path, pickled_bytes: bytes, data: st.DataObject) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(_damaged(pickled_bytes, data))
    try:
        file = open_tensor_file(path)
        for name in file.names():
            assert file.read(name).numel() <= len(pickled_bytes)
    except SdengineError:
        pass


@SETTINGS
@given(program=st.binary(max_size=200))
@example(program=b"\x80\x02}.")
@example(program=b"i\\\x00\n")
def test_random_programs(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with contextlib.suppress(SdengineError):
        assert open_tensor_file(path).names() == []


@SETTINGS
@given(data=st.data())
def test_damaged_safetensors_files(
    tmp_path: Path, safetensors_bytes: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(safetensors_bytes[:8], "little")
    damaged = _damaged(safetensors_bytes[:header], data) + safetensors_bytes[header:]
    path.write_bytes(damaged)
    with contextlib.suppress(SdengineError):
        open_everything(path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_files(tmp_path: Path, safetensors_bytes: bytes, kept: int, suffix: str) -> None:
    data = safetensors_bytes
    if suffix == ".ckpt":
        buffer = io.BytesIO()
        torch.save({"model.diffusion_model.x": torch.zeros(5000)}, buffer)
        data = buffer.getvalue()
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match="model"):
        open_everything(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / name)


def test_names_of_absurd_numbers_are_unknown_tensors(tmp_path: Path) -> None:
    state = original_state(FAMILY, modules_of(FAMILY))
    place = "model.diffusion_model."
    state[f"{place}input_blocks.{'9' * 5000}.0.in_layers.0.weight"] = torch.zeros(1)
    state[f"{place}input_blocks.-1.0.in_layers.0.weight"] = torch.zeros(1)
    state["cond_stage_model.transformer.text_model.encoder.layers.9999.x"] = torch.zeros(1)
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    opened = load_checkpoint(path, family=FAMILY)
    for part in ("unet", "text_encoder"):
        with pytest.raises(CheckpointError, match="unknown to the network"):
            opened.load(part)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def _damaged(content: bytes, data: st.DataObject) -> bytes:
    """Change a few bytes, cut off the end, or repeat a piece."""
    changed = bytearray(content)
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        changed[place] = value
    end = data.draw(st.one_of(st.just(len(content)), places))
    return bytes(changed[:end])
