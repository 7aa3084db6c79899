"""Writers of layouts in which popular models are published, with small random weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from support.readable_architectures import READABLE
from support.single_files import modules_of, original_state, part_state
from torch import nn

from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.schedules import noise_schedule_config
from sdengine.checkpoints.writer import save_checkpoint

State = dict[str, torch.Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer."
# A path, and the arguments of `load_checkpoint` that belong to it.
Written = tuple[Path, dict[str, Any]]


@functools.cache
def modules(name: str) -> dict[str, nn.Module]:
    return modules_of(READABLE[name])


def state(name: str) -> State:
    found = original_state(READABLE[name], modules(name))
    return {n: t.half() for n, t in found.items() if not n.startswith("model_ema.")}


@functools.cache
def folder_of(name: str, place: Path) -> Path:
    parts: dict[str, Any] = {**modules(name)}
    return save_checkpoint(
        place / name,
        **parts,
        tokenizer_dir=demo_tokenizer_dir(),
        scheduler_config=noise_schedule_config(READABLE[name].prediction_type),
    )


def file(tensors: Callable[[], State], **metadata: str) -> Callable[[Path], Written]:
    def write(place: Path) -> Written:
        save_file(tensors(), place / "model.safetensors", metadata or None)
        return place / "model.safetensors", {}

    return write


def with_vae(make: Callable[[Path], Path]) -> Callable[[Path], Written]:
    def write(place: Path) -> Written:
        path, _ = file(lambda: state("sd15"))(place)
        return path, {"vae": make(place)}

    return write


def with_base(base: str, make: Callable[[Path], Path]) -> Callable[[Path], Written]:
    return lambda place: (make(place), {"base": folder_of(base, place)})


def saved(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    return path


def sd1_ckpt(place: Path) -> Written:
    ema = {
        f"model_ema.{n.replace('.', '')}": t + 1
        for n, t in part_state(state("sd15"), "model.").items()
    }
    content = {
        "state_dict": state("sd15") | ema | {"betas": torch.zeros(1000)},
        "global_step": 840000,
        "callbacks": {"dtype": torch.bfloat16, "window": range(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    }
    torch.save(content, place / "v1-5-pruned.ckpt")
    return place / "v1-5-pruned.ckpt", {}


def old_text_names() -> State:
    return {n.replace(f"{CLIP}text_model.", CLIP): t for n, t in state("sd15").items()}


def both_text_names() -> State:
    older = {n: t.clone() + 1 for n, t in old_text_names().items() if n.startswith(CLIP)}
    return state("sd15") | older | {f"{CLIP}text_model.embeddings.position_ids": torch.zeros(1, 77)}


def wrapped(name: str, before: str, inside: str = "") -> State:
    """Return a model's state as a wrapper around the whole of it, or the U-Net, saves it."""
    return {
        before + (n.replace(UNET, f"{UNET}{inside}") if inside else n): t
        for n, t in state(name).items()
    }


def unet_one_deeper() -> State:
    return {n.replace(UNET, f"model.{UNET}"): t for n, t in state("sd15").items()}


def node_editor_names(name: str, lead: str, *kinds: str) -> State:
    """Return a model's state with the text encoders as ComfyUI calls them, by their kinds."""
    texts = ("cond_stage_model.", "conditioner.")
    found = {n: t for n, t in state(name).items() if not n.startswith(texts)}
    parts = [m for part, m in modules(name).items() if part.startswith("text_encoder")]
    for kind, module in zip(kinds, parts, strict=True):
        before = f"{lead}{kind}.transformer."
        found |= {f"{before}{n}": t.half() for n, t in module.state_dict().items()}
        found[f"{lead}{kind}.logit_scale"] = torch.zeros(())
    return found


def new_vae_names() -> State:
    new = {".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}
    found = {}
    for name, tensor in state("sd15").items():
        if ".mid.attn_1." in name:
            for before, after in new.items():
                name = name.replace(before, after)
            tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor
        found[name] = tensor.contiguous()
    return found


def vae_with_counters() -> State:
    counters = ("model_ema.decay", "model_ema.num_updates")
    return state("sd15") | {f"{VAE}{name}": torch.zeros(()) for name in counters}


def sd2(spread: float, inputs: int = 4) -> State:
    found = state("sd21")
    bias = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    found[bias] = (torch.randn(64, generator=torch.Generator().manual_seed(1)) * spread).half()
    first = found[f"{UNET}input_blocks.0.0.weight"]
    found[f"{UNET}input_blocks.0.0.weight"] = first.repeat(1, 3, 1, 1)[:, :inputs].contiguous()
    return found


def sdxl_with_leftovers() -> State:
    second = "conditioner.embedders.1.model."
    return state("sdxl") | {
        f"{second}transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        f"{second}logit_scale": torch.zeros(()),
        "conditioner.embedders.0.transformer.vision_model.x.weight": torch.zeros(3),
        "denoiser.sigmas": torch.zeros(1000),
    }


def in_8_bits(dtype: torch.dtype, scale_name: str | None = None) -> State:
    found = {}
    for name, tensor in state("sdxl").items():
        is_layer = name.startswith(UNET) and name.endswith(".weight") and tensor.ndim >= 2
        if not is_layer:
            found[name] = tensor
            continue
        scale = tensor.abs().max().float() / 448 if scale_name else torch.tensor(1.0)
        found[name] = (tensor.float() / scale).to(dtype)
        if scale_name:
            found[name.replace("weight", scale_name)] = scale
    if scale_name == "scale_weight":
        found[f"{UNET}scaled_fp8"] = torch.zeros(2, dtype=dtype)
        found[f"{UNET}out.2.scale_input"] = torch.ones(())
    if scale_name == "weight_scale":
        found[f"{UNET}out.2.comfy_quant"] = torch.zeros(9, dtype=torch.uint8)
    return found


def vae_ckpt(place: Path) -> Path:
    inside = part_state(state("sd15"), VAE)
    extra = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    content = {"state_dict": inside | extra | {"loss.discriminator.main.0.weight": torch.ones(3)}}
    torch.save(content, place / "vae-ft-mse-840000-ema-pruned.ckpt")
    return place / "vae-ft-mse-840000-ema-pruned.ckpt"


def diffusers_unet(name: str, place: Path, **changes: Any) -> Path:
    network = diffusers.UNet2DConditionModel.from_config(
        {**READABLE[name].unet.to_dict(), **changes}
    )
    network.load_state_dict(modules(name)["unet"].state_dict(), strict=not changes)
    network.half().save_pretrained(place / "unet-alone")
    return place / "unet-alone"


def lightning_unet(place: Path) -> Path:
    path = diffusers_unet("sdxl", place) / "diffusion_pytorch_model.safetensors"
    return path.rename(place / "sdxl_lightning_4step_unet.safetensors")


def partial_variant(place: Path) -> Written:
    root = folder_of("bk-sdm-small", place)
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))
    return root, {"variant": "fp16"}


def old_vae_names(place: Path) -> Written:
    root = folder_of("sd15", place)
    path = root / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.") if ".attentions." in name else name
        renamed[name] = tensor
    path.unlink()
    save_file(renamed, path)
    return root, {}


def playground(place: Path) -> Written:
    root = folder_of("sdxl", place)
    config = json.loads((root / "vae" / "config.json").read_text())
    config |= {
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4, 5.9, 6.1, 4.1],
    }
    (root / "vae" / "config.json").write_text(json.dumps(config))
    return root, {}


def gguf(place: Path) -> Written:
    path = place / "model.gguf"
    path.write_bytes(b"GGUF")
    return path, {}
