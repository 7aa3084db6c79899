"""Make single-file checkpoints with the original names, out of the networks' own weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from support.original_names import Place, text_place, unet_place, vae_place
from torch import nn

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.configs import ModelArchitecture
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

PREFIXES = {
    "sd15": ("cond_stage_model.transformer.",),
    "sd21": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sdxl-refiner": ("conditioner.embedders.0.model.",),
    "lcm": ("cond_stage_model.transformer.",),
}
_BYTES = {"F16": 2, "F32": 4}


def prefixes_of(family: ModelArchitecture) -> tuple[str, ...]:
    """Return where a family's files hold its text encoders."""
    return PREFIXES[family.name.removeprefix("tiny-")]


def part_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def empty_modules_of(family: ModelArchitecture) -> dict[str, nn.Module]:
    """Build a family's networks on the meta device."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(family.unet),
            "vae": AutoencoderKL(family.vae),
        }
        for part, config in zip(family.text_parts, family.text_encoders, strict=True):
            modules[part] = CLIPTextEncoder(config)
    return modules


def modules_of(family: ModelArchitecture) -> dict[str, nn.Module]:
    """Build a family's networks with seeded weights."""
    modules = {part: m.to_empty(device="cpu") for part, m in empty_modules_of(family).items()}
    for seed, module in enumerate(modules.values()):
        seed_weights(module, seed)
    return modules


def original_state(
    family: ModelArchitecture, modules: Mapping[str, nn.Module]
) -> dict[str, torch.Tensor]:
    """Return what a published file of the family would hold."""
    state: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}

    def put(place: Place, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().clone()
        if place.third is not None:
            thirds.setdefault(place.name, {})[place.third] = tensor
            return
        is_vae_product = ".mid.attn_1." in place.name and tensor.ndim == 2
        if is_vae_product:  # convolutions of one pixel in the file
            tensor = tensor[:, :, None, None]
        state[place.name] = (tensor.T if place.transposed else tensor).contiguous()

    for name, tensor in modules["unet"].state_dict().items():
        put(unet_place(name, family.unet), tensor)
    for name, tensor in modules["vae"].state_dict().items():
        put(vae_place(name, family.vae), tensor)
    for part, config, prefix in zip(
        family.text_parts, family.text_encoders, prefixes_of(family), strict=True
    ):
        for name, tensor in modules[part].state_dict().items():
            put(text_place(name, config, prefix), tensor)
    for name, parts in thirds.items():
        state[name] = torch.cat([parts[i] for i in range(3)])
    state["model_ema.decay"] = torch.zeros(())
    return state


def full_size_shapes(family: ModelArchitecture) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a published file, with what it holds beside the networks."""
    state = original_state(family, empty_modules_of(family))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes |= {"alphas_cumprod": (1000,), "model_ema.num_updates": ()}
    for prefix in prefixes_of(family):
        if prefix.endswith("transformer."):
            shapes[f"{prefix}text_model.embeddings.position_ids"] = (1, 77)
            continue
        width = shapes[f"{prefix}positional_embedding"][1]
        shapes |= {f"{prefix}logit_scale": (), f"{prefix}text_projection": (width, width)}
        if family.text_encoders[-1].with_projection:
            continue
        last = f"{prefix}transformer.resblocks.22."  # the published file has one more
        after = {n.replace(".22.", ".23."): s for n, s in shapes.items() if n.startswith(last)}
        shapes |= after
    return shapes


def write_sparse(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a safetensors file of any size whose zeros take no place on disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    place = 0
    for name, shape in shapes.items():
        end = place + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return path
