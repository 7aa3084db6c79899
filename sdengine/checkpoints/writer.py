"""Checkpoint writer: the layout that diffusers reads, as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sdengine.adapters.sources.layouts import END_OF_TEXT
from sdengine.adapters.sources.placement import Shapes
from sdengine.checkpoints.added_tokens import ADDED
from sdengine.checkpoints.diffusers_folder import EXTRAS_FILE, TOKENIZERS
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.checkpoints.weights import save_stream, shapes_of
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.tiny_vae import TinyAutoencoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.storage.checkpoint_folder import CheckpointFolder, weight_stems
from sdengine.storage.whole_folder import write_folder

# Called with the part's name, the tensors written and how many there are.
Progress = Callable[[str, int, int], None]

PAD_TOKENS = MappingProxyType({"text_encoder": END_OF_TEXT, "text_encoder_2": "!"})
START_OF_TEXT = "<|startoftext|>"
# What diffusers runs a checkpoint with, by family and by the U-Net's input channels.
_PIPELINES = {
    "sd": {4: "", 9: "Inpaint", 5: "Depth2Img", 8: "InstructPix2Pix"},
    "sdxl": {4: "", 9: "Inpaint"},
}


def _special(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": token, **flags}


_SPECIAL_TOKENS = {
    "bos_token": _special(START_OF_TEXT),
    "eos_token": _special(END_OF_TEXT),
    "unk_token": _special(END_OF_TEXT),
}


@dataclass(frozen=True)
class Part:
    """A network to write: its configuration, and its tensors one at a time.

    Args:
        config: content of config.json.
        shapes: of all tensors, in the order in which they come.
        tensors: starts over at every call.
    """

    config: dict[str, Any]
    shapes: Shapes
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class Description:
    """What a checkpoint says besides its networks.

    Args:
        scheduler_config: content of scheduler_config.json, with the scheduler's `_class_name`.
        tokenizer_files: what `read_tokenizer` returns.
        pad_tokens: what prompts are padded with, by text encoder.
        defaults: values for requests that name none: steps, guidance_scale, sampler, schedule.
        zero_empty_negative: an empty negative prompt is conditioned by zeros.
        requires_aesthetic_score: the U-Net's time ids hold a score.
        prompt_lengths: tokens of a prompt, by text encoder, where not all that it could read.
        resolutions, batch: what bundles are built for if nothing is named.
    """

    scheduler_config: Mapping[str, Any]
    tokenizer_files: Mapping[str, bytes]
    pad_tokens: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    zero_empty_negative: bool = False
    requires_aesthetic_score: bool = False
    prompt_lengths: Mapping[str, int] = field(default_factory=dict)
    resolutions: Sequence[Any] = ()
    batch: int = 1


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextEncoder | None,
    text_encoder_2: CLIPTextEncoder | None = None,
    tokenizer_dir: str | os.PathLike[str],
    scheduler_config: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    pad_tokens: Mapping[str, str] | None = None,
    requires_aesthetic_score: bool = False,
    defaults: Mapping[str, Any] | None = None,
    resolutions: Sequence[Any] = (),
    batch: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Write networks that are in memory as a folder that diffusers' pipelines load.

    Args:
        folder: the new folder; its parent must exist.
        unet, vae, text_encoder, text_encoder_2: networks whose configuration is written beside the
            weights; SDXL has both text encoders, its refiner the second.
        tokenizer_dir: folder with vocab.json and merges.txt.
        scheduler_config: content of scheduler_config.json, with the scheduler's `_class_name`.
        dtype: what the weights are converted to: float16, bfloat16 or float32.
        pad_tokens: what prompts are padded with, by text encoder, where not as in PAD_TOKENS.
        requires_aesthetic_score: the U-Net reads a score in place of the target size.
        defaults: values for requests that name none: steps, guidance_scale, sampler, schedule.
        resolutions, batch: what bundles are built for if nothing is named.
        progress: called with a network's name, the tensors written and how many there are.

    Returns:
        The folder.

    Raises:
        CheckpointError: a weight is not finite in this dtype, or a tokenizer's file is missing.
        OutputError: the folder exists already or cannot be written.
    """
    encoders = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    modules: dict[str, Any] = {n: module for n, module in encoders.items() if module is not None}
    description = Description(
        scheduler_config=scheduler_config,
        tokenizer_files=read_tokenizer(CheckpointFolder(Path(tokenizer_dir)), "."),
        pad_tokens={part: {**PAD_TOKENS, **(pad_tokens or {})}[part] for part in modules},
        defaults=defaults or {},
        zero_empty_negative=len(modules) > 1,
        requires_aesthetic_score=requires_aesthetic_score,
        resolutions=resolutions,
        batch=batch,
    )
    modules |= {"unet": unet, "vae": vae}
    parts = {
        name: Part(module.config.to_dict(), shapes_of(module), _tensors_of(module))
        for name, module in modules.items()
    }
    return write_checkpoint(folder, parts, description, dtype, progress)


def save_network(
    folder: str | os.PathLike[str],
    network: ControlNetModel | TinyAutoencoder,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write one network by itself, as diffusers' ``save_pretrained`` does.

    Args:
        folder: the new folder; its parent must exist.
        network: whose configuration is written beside the weights.
        dtype: what the weights are converted to.

    Returns:
        The folder.

    Raises:
        CheckpointError: a weight is not finite in this dtype.
        OutputError: the folder exists already or cannot be written.
    """
    config = network.config if isinstance(network, TinyAutoencoder) else network.controlnet_config
    part = Part(config.to_dict(), shapes_of(network), _tensors_of(network))
    return write_folder(
        Path(folder), lambda new: _write_part(new, part, dtype, None), what="checkpoint"
    )


def write_checkpoint(
    folder: str | os.PathLike[str],
    parts: Mapping[str, Part],
    description: Description,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint one tensor at a time; memory is taken by the largest of them.

    Args:
        folder: the new folder; its parent must exist.
        parts: by "text_encoder", "text_encoder_2", "unet" and "vae".
        description: everything else.
        dtype: what the weights are converted to: float16, bfloat16 or float32.
        progress: called before every tensor, and behind a part's last.

    Returns:
        The folder.

    Raises:
        CheckpointError: a weight is not finite in this dtype.
        ConfigError: dtype is another.
        OutputError: the folder exists already or cannot be written; nothing is left behind.
    """
    if dtype not in TORCH_DTYPES.values():
        accepted = ", ".join(str(known) for known in TORCH_DTYPES.values())
        raise ConfigError.for_field("dtype", dtype, accepted)

    def fill(new: Path) -> None:
        for name, part in parts.items():
            (new / name).mkdir()
            _write_part(new / name, part, dtype, progress)
        _write_description(new, parts, description)

    return write_folder(Path(folder), fill, what="checkpoint")


def _tensors_of(module: torch.nn.Module) -> Callable[[], Iterator[tuple[str, torch.Tensor]]]:
    return lambda: iter(module.state_dict().items())


def _write_part(folder: Path, part: Part, dtype: torch.dtype, progress: Progress | None) -> None:
    _write_json(folder / "config.json", part.config)
    stem = weight_stems(folder.name)[0]
    total = len(part.shapes)

    def converted() -> Iterator[tuple[str, torch.Tensor]]:
        for done, (name, tensor) in enumerate(part.tensors()):
            if progress is not None:
                progress(folder.name, done, total)
            yield name, _converted(folder.name, name, tensor, dtype)
        if progress is not None:
            progress(folder.name, total, total)

    kinds = {name: (dtype, shape) for name, shape in part.shapes.items()}
    save_stream(folder / f"{stem}.safetensors", kinds, converted())


def _converted(part: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    converted = tensor.detach().to(device="cpu", dtype=dtype)
    if not torch.isfinite(converted).all():
        raise CheckpointError(
            f"{part}: tensor {name!r} is not finite in {dtype}; its largest absolute value is "
            f"{tensor.abs().max().item():.3g}. Save in torch.bfloat16 or torch.float32."
        )
    return converted


def _write_description(folder: Path, parts: Mapping[str, Part], description: Description) -> None:
    added = json.loads(description.tokenizer_files.get(ADDED, "[]"))
    for part, pad_token in description.pad_tokens.items():
        place = folder / TOKENIZERS[part]
        place.mkdir()
        for name, content in description.tokenizer_files.items():
            if name != ADDED:  # whose form here is not transformers'
                (place / name).write_bytes(content)
        tokens = {**_SPECIAL_TOKENS, "pad_token": pad_token}
        _write_json(place / "special_tokens_map.json", tokens)
        length = parts[part].config["max_position_embeddings"]
        settings = {
            "add_prefix_space": False,
            "do_lower_case": True,
            "model_max_length": description.prompt_lengths.get(part, length),
            "tokenizer_class": "CLIPTokenizer",
        }
        if added:
            settings["added_tokens_decoder"] = {
                token.pop("id"): token for token in map(dict, added)
            }
        _write_json(place / "tokenizer_config.json", {**settings, **tokens})
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", description.scheduler_config)
    _write_json(folder / "model_index.json", _model_index(parts, description))
    extras: dict[str, Any] = {}
    if description.defaults:
        extras["defaults"] = dict(description.defaults)
    if description.resolutions:
        extras |= {"resolutions": [*description.resolutions], "batch": description.batch}
    if extras:
        _write_json(folder / EXTRAS_FILE, extras)


def _model_index(parts: Mapping[str, Part], description: Description) -> dict[str, Any]:
    unet = parts["unet"].config
    index: dict[str, Any] = {
        "_class_name": _pipeline(unet, description),
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", description.scheduler_config.get("_class_name")],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if unet.get("addition_embed_type") is None:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
        encoders: tuple[str, ...] = ("text_encoder",)
    else:
        index["force_zeros_for_empty_prompt"] = description.zero_empty_negative
        if description.requires_aesthetic_score:
            index["requires_aesthetics_score"] = True
        encoders = tuple(TOKENIZERS)
    for part in encoders:
        here = part in parts
        kind = parts[part].config["architectures"][0] if here else None
        index[part] = ["transformers" if here else None, kind]
        index[TOKENIZERS[part]] = [
            "transformers" if here else None,
            "CLIPTokenizer" if here else None,
        ]
    return dict(sorted(index.items()))


def _pipeline(unet: Mapping[str, Any], description: Description) -> str:
    if unet.get("addition_embed_type") is None:
        return f"StableDiffusion{_PIPELINES['sd'].get(unet['in_channels'], '')}Pipeline"
    if description.requires_aesthetic_score:
        return "StableDiffusionXLImg2ImgPipeline"
    return f"StableDiffusionXL{_PIPELINES['sdxl'].get(unet['in_channels'], '')}Pipeline"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2) + "\n", encoding="utf-8")
