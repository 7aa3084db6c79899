"""Write a checkpoint in the layout that diffusers reads, as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
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
    text_encoder: CLIPTextEncoder | None,
    tokenizer_dir: str | os.PathLike[str],
    scheduler_config: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    text_encoder_2: CLIPTextEncoder | None = None,
    pad_tokens: Mapping[str, str] | None = None,
    requires_aesthetic_score: bool = False,
    defaults: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a model's parts as a folder that diffusers' pipelines load.

    Args:
        folder: the new folder; its parent must exist.
        unet, vae, text_encoder, text_encoder_2: networks whose configuration is written beside the
            weights; SDXL has both text encoders, its refiner the second one.
        tokenizer_dir: folder with vocab.json and merges.txt.
        scheduler_config: content of scheduler_config.json, with the scheduler's `_class_name`.
        dtype: what the weights are converted to.
        pad_tokens: what prompts are padded with, by text encoder; what tokenizer_dir says for those
            not named.
        requires_aesthetic_score: the U-Net reads a score in place of the target size.
        defaults: values for requests that name none: steps, guidance_scale, sampler, schedule.
        progress: called before each network with its name, how many are written, and all.

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
        encoders = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        modules: dict[str, Any] = {"unet": unet, "vae": vae}
        modules |= {part: encoder for part, encoder in encoders.items() if encoder is not None}
        for done, (part, module) in enumerate(modules.items()):
            if progress is not None:
                progress(f"writing {part}", done, len(modules))
            stem = "model" if part in encoders else "diffusion_pytorch_model"
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", module.config.to_dict())
            state = _converted(part, module, dtype)
            save_tensors(state, temporary / part / f"{stem}.safetensors")
            if part in encoders:
                tokenizer = temporary / part.replace("text_encoder", "tokenizer")
                _copy_tokenizer(Path(tokenizer_dir), tokenizer, (pad_tokens or {}).get(part))
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", dict(scheduler_config))
        index = _model_index(modules, scheduler_config, requires_aesthetic_score)
        _write_json(temporary / "model_index.json", index)
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


def _model_index(
    modules: Mapping[str, nn.Module], scheduler: Mapping[str, Any], requires_aesthetic_score: bool
) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", scheduler.get("_class_name", "DDIMScheduler")],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part in ("text_encoder", "text_encoder_2"):
        module = modules.get(part)
        if isinstance(module, CLIPTextEncoder):
            kind = module.config.to_dict()["architectures"][0]
            index[part] = ["transformers", kind]
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        elif "text_encoder_2" in modules:
            index[part] = index[part.replace("text_encoder", "tokenizer")] = [None, None]
    if "text_encoder_2" not in modules:
        index["safety_checker"] = [None, None]
        return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **index}
    # diffusers has no text-to-image pipeline for a refiner.
    kind = "Img2ImgPipeline" if requires_aesthetic_score else "Pipeline"
    index |= {"_class_name": f"StableDiffusionXL{kind}", "image_encoder": [None, None]}
    index["force_zeros_for_empty_prompt"] = not requires_aesthetic_score
    if requires_aesthetic_score:
        index["requires_aesthetics_score"] = True
    return index


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
