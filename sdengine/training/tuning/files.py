"""Files of what was trained, in the forms that other programs read.

Source: the embeddings and hypernetworks of the Stable Diffusion web UI, the LoRAs of kohya's
sd-scripts, PEFT and diffusers, as their documents and readers describe them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.adapters.original_names import unet_paths
from sdengine.checkpoints import Checkpoint
from sdengine.checkpoints.converter import description_of, part_of
from sdengine.checkpoints.weights import bytes_of, save_tensors, shapes_of
from sdengine.checkpoints.writer import Part, write_checkpoint
from sdengine.errors import ConfigError
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.storage.whole_file import whole_file
from sdengine.training.tuning.hypernetwork import Hypernetworks
from sdengine.training.tuning.lora import Lora

_ENCODER_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_KOHYA_TEXT = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
}
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "embedding": (".safetensors", ".pt"),
    "lora": (".safetensors",),
    "hypernetwork": (".pt",),
}


def check_ending(kind: str, output: Path) -> None:
    """Refuse a name that does not end as such a file does; folders may be called anything.

    Raises:
        ConfigError: it does not.
    """
    endings = ENDINGS.get(kind, ())
    if endings and output.suffix not in endings:
        raise ConfigError.for_field("output", str(output), f"a name that ends in {endings[0]}"
                                    + "".join(f" or {one}" for one in endings[1:]))  # fmt: skip


def save_embedding(
    path: Path, vectors: Mapping[str, Tensor], name: str, step: int, checkpoint: Checkpoint
) -> None:
    """Write a textual inversion.

    Args:
        path: .pt is the web UI's own form, of one text encoder; .safetensors holds `emb_params`, or
            `clip_l` and `clip_g` of two.
        vectors: [n,D] by text encoder.
        name, step, checkpoint: for people.

    Raises:
        ConfigError: vectors of two text encoders shall become a .pt.
    """
    plain = {part: t.detach().float().cpu().contiguous().clone() for part, t in vectors.items()}
    if len(plain) > 1 and path.suffix == ".pt":
        hint = "The other form holds vectors of one text encoder."
        raise ConfigError.for_field("output", path.name, "a name that ends in .safetensors", hint)
    if path.suffix == ".pt":
        (only,) = plain.values()
        content = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": only},
            "name": name,
            "step": step,
            "sd_checkpoint": checkpoint.sha256[:10],
            "sd_checkpoint_name": checkpoint.name,
        }
        with whole_file(path) as file:
            torch.save(content, file)
        return
    names = dict(_ENCODER_KEYS) if len(plain) > 1 else dict.fromkeys(plain, "emb_params")
    tensors = {names[part]: tensor for part, tensor in plain.items()}
    told = {"name": name, "step": str(step), "sd_checkpoint_name": checkpoint.name}
    save_tensors(tensors, path, told)


def save_hypernetwork(
    path: Path, networks: Hypernetworks, name: str, step: int, checkpoint: Checkpoint
) -> None:
    """Write hypernetworks in the web UI's form: plain containers, as its safe reader wants them."""
    content: dict[Any, Any] = {
        **networks.states(),
        **networks.settings,
        "step": step,
        "name": name,
        "optional_info": None,
        "sd_checkpoint": checkpoint.sha256[:10],
        "sd_checkpoint_name": checkpoint.name,
    }
    with whole_file(path) as file:
        torch.save(content, file)


def save_lora(
    path: Path,
    lora: Lora,
    checkpoint: Checkpoint,
    names: str,
    about: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a LoRA.

    Args:
        path: of the file.
        lora: of the checkpoint's networks.
        checkpoint: that it was trained on.
        names: "kohya", with the alpha of each layer; or "diffusers", with PEFT's settings in the
            metadata.
        about: further metadata, such as steps.
        dtype: of the tensors.
    """
    write = _kohya if names == "kohya" else _diffusers
    tensors, told = write(lora, checkpoint, dtype)
    metadata = {**_metadata(path, lora, checkpoint), **about, **told}
    tensors = {name: tensors[name] for name in sorted(tensors)}
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(bytes_of(tensor))
    metadata["sshs_model_hash"] = digest.hexdigest()
    save_tensors(tensors, path, dict(sorted(metadata.items())))


def _kohya(lora: Lora, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return tensors under kohya's names; those of SDXL's U-Net are made of the original ones."""
    original: dict[str, str] = {}
    if checkpoint.family == "sdxl":
        # Blocks are counted through, so that all layers must be known.
        names = (name.rpartition(".")[0] for name in checkpoint.shapes("unet"))
        original = unet_paths(dict.fromkeys(names))
    several = len(checkpoint.text_encoder_configs) > 1
    tensors: dict[str, Tensor] = {}
    for network, path, layer in lora.tensors():
        if network == "unet":
            prefix, place = "lora_unet", original.get(path, path)
        else:
            prefix, place = _KOHYA_TEXT[network] if several else "lora_te", path
        stem = f"{prefix}_{place.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = _stored(layer.down, dtype)
        tensors[f"{stem}.lora_up.weight"] = _stored(layer.up, dtype)
        tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors, {}


def _diffusers(lora: Lora, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return tensors under PEFT's names, and its settings by network."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for network, path, layer in lora.tensors():
        tensors[f"{network}.{path}.lora_A.weight"] = _stored(layer.down, dtype)
        tensors[f"{network}.{path}.lora_B.weight"] = _stored(layer.up, dtype)
        rank = settings.setdefault(f"{network}.r", layer.rank)
        alpha = settings.setdefault(f"{network}.lora_alpha", layer.alpha)
        # Releases of transformers differ in what stands before the layers of a text encoder.
        target = path if network == "unet" else path.rpartition(".")[2]
        targets = settings.setdefault(f"{network}.target_modules", [])
        if target not in targets:
            targets.append(target)
        for key, value, usual in (("rank", layer.rank, rank), ("alpha", layer.alpha, alpha)):
            pattern = settings.setdefault(f"{network}.{key}_pattern", {})
            if value != usual:
                pattern[path] = value
    return tensors, {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)}


def _stored(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().to("cpu", dtype).contiguous().clone()


def _metadata(path: Path, lora: Lora, checkpoint: Checkpoint) -> dict[str, str]:
    first = next(layer for _, _, layer in lora.tensors())
    family = checkpoint.family
    is_v = checkpoint.scheduler_config.get("prediction_type") == "v_prediction"
    convolved = [one for _, _, one in lora.tensors() if one.rank != first.rank]
    conv = {"conv_dim": convolved[0].rank, "conv_alpha": convolved[0].alpha} if convolved else {}
    return {
        "modelspec.architecture": f"{_ARCHITECTURES[family]}/lora",
        "modelspec.title": path.stem,
        "modelspec.prediction_type": "v" if is_v else "epsilon",
        "ss_base_model_version": _VERSIONS[family],
        "ss_network_alpha": f"{first.alpha:g}",
        "ss_network_args": json.dumps({k: str(v) for k, v in conv.items()}),
        "ss_network_dim": str(first.rank),
        "ss_network_module": "networks.lora",
        "ss_output_name": path.stem,
        "ss_sd_model_name": checkpoint.name,
        "ss_v2": str(family == "sd2"),
    }


def save_whole(
    folder: Path, checkpoint: Checkpoint, trained: Mapping[str, nn.Module], precision: str
) -> None:
    """Write a checkpoint as a folder that diffusers reads, with trained networks in their places.

    Raises:
        CheckpointError: a weight is not finite in this precision.
        OutputError: the folder exists already or cannot be written.
    """
    parts = {}
    for name in checkpoint.parts:
        if name in trained:
            module: Any = trained[name]
            tensors = functools.partial(_tensors_of, module)
            parts[name] = Part(module.config.to_dict(), shapes_of(module), tensors)
        else:
            parts[name] = part_of(checkpoint, name)
    write_checkpoint(folder, parts, description_of(checkpoint), TORCH_DTYPES[precision])


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.state_dict().items()
