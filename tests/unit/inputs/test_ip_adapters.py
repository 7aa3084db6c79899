"""IP-Adapter files: every form that they have, and what is refused, by name and shape."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.ip_adapters import Tensors, make_ip_adapter, save_ip_adapter

from sdengine.errors import AdapterError, ConfigError
from sdengine.inputs.ip_adapters import IPAdapterFile, read_ip_adapter

FIRST = "ip_adapter.1.to_k_ip.weight"


def read(path: Path) -> IPAdapterFile:
    found = read_ip_adapter("ip_adapter.file", path)
    assert isinstance(found, IPAdapterFile)
    return found


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_both_layouts_in_every_type(ending: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: one.to(dtype) for name, one in make_ip_adapter("tiny").items()}
    found = read(save_ip_adapter(tmp_path / f"a{ending}", tensors))
    projection = found.projection
    assert (projection.kind, projection.reads, projection.tokens) == ("plain", "vector", 4)
    assert len(found.channels) == 16
    tokens = np.ones((2, 4, projection.out_width), np.float32)
    keys, values = found.keys_and_values(3, tokens)
    wanted = tokens @ tensors["ip_adapter.7.to_k_ip.weight"].float().numpy().T
    np.testing.assert_allclose(keys, wanted, rtol=1e-5, atol=1e-5)
    assert values.shape == keys.shape == (2, 4, found.channels[3])


def test_a_pickle_of_whole_names(tmp_path: Path) -> None:
    tensors = make_ip_adapter("tiny", "plus")
    torch.save(tensors, tmp_path / "a.bin")
    save_file(tensors, tmp_path / "b.safetensors")
    one, two = read(tmp_path / "a.bin"), read(tmp_path / "b.safetensors")
    assert one.projection.kind == "plus" and one != two  # each known by its own bytes
    states = np.ones((1, 17, one.projection.in_width), np.float32)
    np.testing.assert_array_equal(one.projection(states), two.projection(states))


def test_a_file_is_looked_at_once(tmp_path: Path) -> None:
    path = save_ip_adapter(tmp_path / "a.safetensors", make_ip_adapter("tiny"))
    first = read(path)
    assert read(path) is first
    save_ip_adapter(path, make_ip_adapter("tiny", seed=62))
    second = read(path)
    assert second is not first and second.sha256 != first.sha256
    first.require_unchanged()  # another file in its place


def test_an_overwritten_file_is_refused(tmp_path: Path) -> None:
    path = save_ip_adapter(tmp_path / "a.safetensors", make_ip_adapter("tiny"))
    found = read(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(AdapterError, match="was overwritten after it was checked"):
        found.require_unchanged()


def changed(tensors: Tensors, **changes: Any) -> Tensors:
    found: dict[str, Any] = {**tensors, **changes}
    return {name: one for name, one in found.items() if one is not None}


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": ("plain", {"image_proj.proj.weight": None}, r"image_proj.proj.weight is missing"),
    "shape": ("plain", {"image_proj.proj.bias": torch.zeros(3)}, r"proj.bias is \[3\]; expected"),
    "unknown": ("plain", {"image_proj.more": torch.zeros(3)}, r"image_proj.more is unknown"),
    "elsewhere": ("plain", {"lora.up": torch.zeros(3)}, r"lora.up is unknown"),
    "numbers": ("plain", {FIRST: None, FIRST.replace("_k_", "_v_"): None}, "numbered .*1, 3, 5"),
    "half": ("plain", {FIRST: None}, r"ip_adapter.1.to_k_ip.weight is missing"),
    "width": ("plain", {FIRST: torch.zeros(16, 7)}, r"to_k_ip.weight is \[16, 7\]; .* rows of 32"),
    "nan": ("plain", {"image_proj.norm.weight": torch.full((32,), torch.nan)}, r"\[32\] holds NaN"),
    "integers": ("plain", {"image_proj.norm.bias": torch.zeros(32).int()}, r"int32|I32"),
    "heads": (
        "plus", {"image_proj.layers.0.0.to_q.weight": torch.zeros(96, 48)}, "96 numbers, not heads"
    ),
    "block": ("plus", {"image_proj.layers.1.1.3.weight": None}, r"layers.1.1.3.weight \[.*missing"),
    "gap": ("plus", {"image_proj.layers.70.1.3.weight": torch.zeros(2, 2)}, "has 71 layers"),
    "plus face": (
        "plain", {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(2, 2)},
        "FaceID Plus adapter, .* not applied",
    ),
    "lora": (
        "face_id", {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 16)},
        r"0.to_q_lora.down.weight is of a LoRA that FaceID",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_what_does_not_fit_is_named(case: str, ending: str, tmp_path: Path) -> None:
    kind, changes, told = CASES[case]
    tensors = changed(make_ip_adapter("tiny", kind), **changes)
    path = save_ip_adapter(tmp_path / f"a{ending}", tensors)
    with pytest.raises(AdapterError, match=told):
        read(path)


class _Command:
    def __reduce__(self) -> Any:
        return __import__("os").system, ("touch ran",)


def test_hostile_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = save_ip_adapter(tmp_path / "good.safetensors", make_ip_adapter("tiny")).read_bytes()
    pickled = save_ip_adapter(tmp_path / "good.bin", make_ip_adapter("tiny")).read_bytes()
    contents = {
        "run.bin": pickle.dumps({"image_proj": _Command(), "ip_adapter": {}}),
        "cut.bin": pickled[: len(pickled) // 2],
        "cut.safetensors": good[:-8],
        "claims.safetensors": (10 << 30).to_bytes(8, "little") + good[8:],
        "empty.safetensors": b"",
        "lists.bin": pickle.dumps([1, 2]),
        "text.txt": good,
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
        with pytest.raises(AdapterError, match=f"IP-Adapter '{name}'"):
            read(Path(name))
    assert not Path("ran").exists()
    for path in (tmp_path / "none.bin", tmp_path, Path("/dev/zero")):
        with pytest.raises(AdapterError, match="cannot be read"):
            read(path)
    with pytest.raises(ConfigError, match=r"ip_adapter\.file: 3"):
        read_ip_adapter("ip_adapter.file", 3)


def test_a_lora_is_told_where_it_belongs(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"no IP-Adapter; .*LoRAs and the like are"):
        read(tmp_path / "a.safetensors")
