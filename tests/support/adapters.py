"""Adapters made by tests: what modules of tiny networks are called, and files of small tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from support.tiny_architectures import TINY

from sdengine.adapters.adapter import Adapter, read_adapter
from sdengine.adapters.changes import merged
from sdengine.adapters.modules import Module, Shapes, known_modules
from sdengine.bundle.reader import open_bundle
from sdengine.checkpoints.weights import shapes_of
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.storage.tensor_file import map_tensors

Array = NDArray[Any]
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
ATTENTION_1 = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
POINTWISE = "down_blocks.0.attentions.0.proj_in"
NORM = "down_blocks.0.resnets.0.norm1"


@functools.cache
def tiny_shapes(name: str) -> Mapping[str, Shapes]:
    """Return the shapes of a tiny architecture's networks."""
    architecture = TINY[name]
    with torch.device("meta"):
        networks = {"unet": shapes_of(UNet2DConditionModel(architecture.unet))}
        encoders = architecture.text_encoders
        names = ("text_encoder", "text_encoder_2") if len(encoders) > 1 else ("text_encoder",)
        for network, config in zip(names, encoders, strict=True):
            networks[network] = shapes_of(CLIPTextEncoder(config))
    return networks


@functools.cache
def tiny_modules(name: str) -> tuple[Module, ...]:
    """Return the modules of a tiny architecture."""
    return tuple(known_modules(tiny_shapes(name), {}))


def shape_of(path: str, name: str = "tiny", network: str = "unet") -> tuple[int, ...]:
    """Return the shape of a module's weight."""
    return tiny_shapes(name)[network][f"{path}.weight"]


def flat(path: str) -> str:
    """Return kohya's stem of a U-Net's module."""
    return "lora_unet_" + path.replace(".", "_")


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return normal numbers."""
    made: Array = (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(dtype)
    return made


def write(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file of safetensors."""
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, dict(metadata or {}))
    return path


def read(
    folder: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    name: str = "tiny",
    strict: bool = True,
    file: str = "adapter.safetensors",
) -> Adapter:
    """Write a file and read it against a tiny architecture."""
    return read_adapter(write(folder / file, tensors, metadata), tiny_modules(name), strict=strict)


def difference(adapter: Adapter, parameter: str, weight: Array, network: str = "unet") -> Array:
    """Return what the only change of a parameter adds to its weight."""
    (change,) = [c for c in adapter.changes[network] if c.parameter == parameter]
    return change.difference.of(weight)


def merge_all(weight: Array, adapters: Sequence[tuple[Adapter, float]], parameter: str) -> Array:
    """Return a U-Net's weight with adapters merged into it."""
    return merged(
        weight,
        [
            (change, strength)
            for adapter, strength in adapters
            for change in adapter.changes["unet"]
            if change.parameter == parameter
        ],
    )


@functools.cache
def demo_weights(network: str) -> Mapping[str, Array]:
    """Return the tensors of a network of the demo bundle, mapped."""
    return map_tensors(open_bundle("demo").path(f"{network}.safetensors"))


def make_demo_lora(path: Path, seed: int, size: float = 1.0) -> Path:
    """Write a LoRA of every kind of layer of the demo bundle's text encoder and U-Net."""
    tensors: dict[str, Array] = {}
    for network, prefix, endings in (
        ("unet", "lora_unet_", (".to_q", ".to_v", ".proj_in", ".conv1", ".ff.net.0.proj")),
        ("text_encoder", "lora_te_", ("_proj", ".fc1")),
    ):
        for number, (name, weight) in enumerate(demo_weights(network).items()):
            stem = name.removesuffix(".weight")
            if stem != name and stem.endswith(endings):
                flat = prefix + stem.replace(".", "_")
                out, inner, *kernel = weight.shape
                ones = [1] * len(kernel)
                draws = seed + 2 * number
                tensors[f"{flat}.lora_down.weight"] = size * draw(4, inner, *kernel, seed=draws)
                tensors[f"{flat}.lora_up.weight"] = draw(out, 4, *ones, seed=draws + 1)
    tensors["lora_unet_conv_in.diff_b"] = size * draw(64, seed=seed)
    return write(path, tensors)
