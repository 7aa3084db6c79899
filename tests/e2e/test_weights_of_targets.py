"""LoRAs and other checkpoints on targets torch and openvino, against merged checkpoints.

The oracle is a bundle that is built of the merged checkpoint, and PSNR between pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import Array
from support.checkpoint_folders import TEXT, UNET, edit_weights
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.errors import AdapterError, ConfigError

REQUEST: Any = {"prompt": "a red circle", "seed": 3, "steps": 3}
STRENGTH = 0.75
_CHANGED = {
    UNET: (
        ("lora_unet_", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
        ("lora_unet_", "down_blocks.0.resnets.0.conv1"),
        ("lora_unet_", "up_blocks.1.attentions.0.proj_in"),
    ),
    TEXT: (("lora_te_", "text_model.encoder.layers.0.mlp.fc1"),),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, a LoRA, the checkpoint with it merged in fp64, and bundles of them."""
    root = tmp_path_factory.mktemp("targets")
    plain = make_tiny("shallow", root / "plain", dtype=torch.float32)
    merged = make_tiny("shallow", root / "merged", dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for file, layers in _CHANGED.items():
        state = load_file(plain / file)
        deltas = {}
        for prefix, layer in layers:
            out, inner, *kernel = state[f"{layer}.weight"].shape
            down = torch.randn(2, inner, *kernel, generator=generator)
            up = torch.randn(out, 2, *[1] * len(kernel), generator=generator)
            stem = prefix + layer.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            delta = up.reshape(out, 2).double() @ down.reshape(2, -1).double()
            deltas[f"{layer}.weight"] = STRENGTH * delta.reshape(out, inner, *kernel)

        def add(state: dict[str, Any], deltas: dict[str, Any] = deltas) -> None:
            state.update({n: (state[n].double() + d).float() for n, d in deltas.items()})

        edit_weights(merged / file, add)
    lora = root / "lora.safetensors"
    save_file(tensors, lora)
    bias = {"lora_unet_conv_in.diff_b": torch.randn(16, generator=generator)}
    save_file(bias, root / "bias.safetensors")
    paths = {"plain": plain, "merged": merged, "lora": lora, "bias": root / "bias.safetensors"}
    for checkpoint, target in (("plain", "torch"), ("merged", "torch"), ("plain", "openvino")):
        name = f"{checkpoint} {target}"
        paths[name] = root / name
        options: Any = {"target": target, "precision": "fp32", "resolutions": [64]}
        sdengine.build(paths[checkpoint], paths[name], **options)
    return paths


def picture(bundle: Path, **options: Any) -> Array:
    with sdengine.load(bundle, precision="fp32") as engine:
        return engine.generate(**REQUEST, **options).arrays[0]


def psnr(one: Array, other: Array) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def test_loras_are_as_if_they_were_merged_before_the_build(made: dict[str, Path]) -> None:
    wanted = picture(made["merged torch"])
    for target in ("torch", "openvino"):
        bundle = made[f"plain {target}"]
        with sdengine.load(bundle, precision="fp32") as engine:
            before = engine.generate(**REQUEST).arrays[0]
            found = engine.generate(**REQUEST, loras={made["lora"]: STRENGTH}).arrays[0]
            after = engine.generate(**REQUEST).arrays[0]
        assert psnr(before, wanted) < 30 and psnr(found, wanted) >= 40, target
        assert np.array_equal(before, after)


def test_another_checkpoint_on_target_torch(made: dict[str, Path]) -> None:
    bundle = made["plain torch"]
    assert np.array_equal(picture(bundle, model=made["merged"]), picture(made["merged torch"]))


def test_what_a_target_does_not_hold_by_name_is_refused(made: dict[str, Path]) -> None:
    with sdengine.load(made["plain openvino"], precision="fp32") as engine:
        before = engine.generate(**REQUEST).arrays[0]
        with pytest.raises(AdapterError, match=r"conv_in.diff_b"):
            engine.set_weights(loras={made["bias"]: 1.0})
        with pytest.raises(
            ConfigError, match=r"model: 'openvino' is not accepted.*native or torch"
        ):
            engine.set_weights(model=made["merged"])
        assert np.array_equal(engine.generate(**REQUEST).arrays[0], before)
