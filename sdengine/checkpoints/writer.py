"""Write a checkpoint in the layout that diffusers reads, as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdengine.checkpoints.weights import save_tensors
from sdengine.errors import CheckpointError, OutputError
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextEncoder,
    tokenizer_dir: str | os.PathLike[str],
    scheduler_config: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    pad_token: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's parts as a folder that diffusers' StableDiffusionPipeline loads.

    Args:
        folder: the new folder; its parent must exist.
        unet, vae, text_encoder: networks whose configuration is written beside the weights.
        tokenizer_dir: folder with vocab.json and merges.txt.
        scheduler_config: content of scheduler_config.json, with the scheduler's `_class_name`.
        dtype: what the weights are converted to.
        pad_token: what prompts are padded with, or None for what tokenizer_dir says.
        defaults: values for requests that name none: steps, guidance_scale, sampler, schedule.

    Returns:
        The folder.

    Raises:
        CheckpointError: a weight is not finite in this dtype.
        OutputError: the folder exists already or cannot be written.
    """
    target = Path(folder)
    if target.exists():
        raise OutputError(f"{str(target)!r} exists; choose another place for the checkpoint.")
    if not target.parent.is_dir():
        raise OutputError(f"folder {str(target.parent)!r} does not exist; make it first.")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}.") from None
    try:
        for part, module, stem in (
            ("unet", unet, "diffusion_pytorch_model"),
            ("vae", vae, "diffusion_pytorch_model"),
            ("text_encoder", text_encoder, "model"),
        ):
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", module.config.to_dict())
            state = _converted(part, module, dtype)
            save_tensors(state, temporary / part / f"{stem}.safetensors")
        _copy_tokenizer(Path(tokenizer_dir), temporary / "tokenizer", pad_token)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", dict(scheduler_config))
        _write_json(temporary / "model_index.json", _model_index(text_encoder, scheduler_config))
        if defaults:
            _write_json(temporary / "sdengine.json", {"defaults": dict(defaults)})
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(target)
    except OSError as error:
        raise OutputError(f"checkpoint {str(target)!r} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _converted(part: str, module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in module.state_dict().items():
        converted = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if not torch.isfinite(converted).all():
            raise CheckpointError(
                f"{part}: tensor {name!r} is not finite in {dtype}; its largest absolute value is "
                f"{tensor.abs().max().item():.3g}. Save in torch.bfloat16 or torch.float32."
            )
        state[name] = converted
    return state


def _copy_tokenizer(source: Path, target: Path, pad_token: str | None) -> None:
    target.mkdir()
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
        elif name in _TOKENIZER_FILES[:2]:
            raise CheckpointError(f"{source / name} is missing; a checkpoint needs it.")
    if pad_token is not None:
        for name in _TOKENIZER_FILES[2:]:
            path = target / name
            content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            _write_json(path, {**content, "pad_token": pad_token})


def _model_index(text_encoder: CLIPTextEncoder, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler.get("_class_name", "DDIMScheduler")],
        "text_encoder": ["transformers", text_encoder.config.to_dict()["architectures"][0]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
