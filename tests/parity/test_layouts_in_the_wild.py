"""Layouts of popular models, small and random: read as what they are, or refused by name.

Each takes its facts from the page that it names. What is read is compared with the plain layout of
the same weights, U-Nets in the original names with diffusers' own converter, and folders with
diffusers' own loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file
from support.readable_architectures import READABLE
from support.single_files import part_state
from support.wild_layouts import (
    CLIP,
    UNET,
    VAE,
    Written,
    both_text_names,
    diffusers_unet,
    file,
    folder_of,
    gguf,
    in_8_bits,
    lightning_unet,
    modules,
    new_vae_names,
    node_editor_names,
    old_text_names,
    old_vae_names,
    partial_variant,
    playground,
    saved,
    sd1_ckpt,
    sd2,
    sdxl_with_leftovers,
    state,
    unet_one_deeper,
    vae_ckpt,
    vae_with_counters,
    with_base,
    with_vae,
    wrapped,
)

from sdengine.checkpoints import Checkpoint, load_checkpoint
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.errors import CheckpointError
from sdengine.models.unet import UNet2DConditionModel

TELLING_BIAS = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        source: where it is described.
        model: whose weights are in it.
        write: makes the file in a folder; returns its path and arguments of `load_checkpoint`.
        expected: of the opened checkpoint, by attribute; "predicts" is the prediction type.
        ignored: names that are left out.
        within: largest difference of a weight from the plain layout.
    """

    source: str
    model: str
    write: Callable[[Path], Written]
    expected: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    within: float = 0.0


READ = {
    "SD 1.5, full training state as .ckpt": Layout(
        f"{HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15", sd1_ckpt,
        {"family": "sd1", "predicts": "epsilon"}, ("betas",),
    ),
    "SD 1.x, text encoder under its old names": Layout(
        "https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/1118", "sd15",
        file(old_text_names),
    ),
    "SD 1.x merge, text encoder under both names": Layout(
        "https://github.com/CC-T/DefFiller/issues/2", "sd15", file(both_text_names), {},
        (f"{CLIP}embeddings.token_embedding.weight",
         f"{CLIP}text_model.embeddings.position_ids"),
    ),
    "SD 1.x, converted back with new names in the VAE": Layout(
        "https://github.com/huggingface/diffusers/blob/main/scripts/"
        "convert_diffusers_to_original_stable_diffusion.py", "sd15",
        file(new_vae_names),
    ),
    "SD 1.x, saved inside DataParallel": Layout(
        "https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html", "sd15",
        file(lambda: wrapped("sd15", "module.")),
    ),
    "SD 1.x, saved inside a training module of Lightning": Layout(
        "https://github.com/Lightning-AI/pytorch-lightning/issues/4443", "sd15",
        file(lambda: wrapped("sd15", "model.")),
    ),
    "SD 1.x, the U-Net alone one module deeper": Layout(
        "https://github.com/Lightning-AI/pytorch-lightning/issues/4443", "sd15",
        file(unet_one_deeper),
    ),
    "SDXL, the U-Net saved as torch.compile wraps it": Layout(
        "https://github.com/pytorch/pytorch/issues/101107", "sdxl",
        file(lambda: wrapped("sdxl", "module.", "_orig_mod.")),
    ),
    "SD 1.x, text encoder by ComfyUI's name in its usual place": Layout(
        "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/supported_models.py", "sd15",
        file(lambda: node_editor_names("sd15", "cond_stage_model.", "clip_l")),
    ),
    "SD 2.1, text encoder by ComfyUI's name": Layout(
        "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/supported_models.py", "sd21",
        file(lambda: node_editor_names("sd21", "", "clip_h")), {"family": "sd2"},
        ("cond_stage_model.model.text_model.encoder.layers.1.layer_norm1.bias",),
    ),
    "SDXL, text encoders by ComfyUI's names": Layout(
        "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/supported_models.py", "sdxl",
        file(lambda: node_editor_names("sdxl", "text_encoders.", "clip_l", "clip_g")),
        {"family": "sdxl"}, ("text_encoders.clip_g.logit_scale",),
    ),
    "SDXL refiner, text encoder by ComfyUI's name": Layout(
        "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/supported_models.py",
        "sdxl-refiner", file(lambda: node_editor_names("sdxl-refiner", "", "clip_g")),
        {"family": "sdxl-refiner"},
    ),
    "SD 2.0 base, 512 pixels, without metadata": Layout(
        f"{HUB}/stabilityai/stable-diffusion-2-base", "sd21", file(lambda: sd2(0.04)),
        {"family": "sd2", "predicts": "epsilon", "side": 64},
    ),
    "SD 2.1, 768 pixels, without metadata": Layout(
        f"{HUB}/stabilityai/stable-diffusion-2-1", "sd21", file(lambda: sd2(0.2)),
        {"predicts": "v_prediction", "side": 96},
    ),
    "SD 2 inpainting": Layout(
        f"{HUB}/stabilityai/stable-diffusion-2-inpainting", "sd21", file(lambda: sd2(0.2, 9)),
        {"predicts": "epsilon", "side": 64, "inputs": 9},
    ),
    "SDXL with leftovers of both encoders": Layout(
        "https://github.com/SeargeDP/SeargeSDXL/issues/36", "sdxl", file(sdxl_with_leftovers),
        {"family": "sdxl"},
        ("conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
         "denoiser.sigmas"),
    ),
    "SDXL refiner": Layout(
        f"{HUB}/stabilityai/stable-diffusion-xl-refiner-1.0", "sdxl-refiner",
        file(lambda: state("sdxl-refiner")), {"family": "sdxl-refiner"},
    ),
    "SDXL fine-tune that says its size": Layout(
        "https://github.com/Stability-AI/ModelSpec", "sdxl",
        file(lambda: state("sdxl"), **{"modelspec.resolution": "768x768"}), {"side": 96},
    ),
    "NoobAI v-prediction, told by two keys": Layout(
        f"{HUB}/nubby/noobaiXLNAIXL_vPredTestVersion_with_keys", "sdxl",
        file(lambda: state("sdxl") | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}),
        {"predicts": "v_prediction"},
    ),
    "SDXL in fp8 (e4m3)": Layout(
        f"{HUB}/Comfy-Org/stable-diffusion-3.5-fp8", "sdxl",
        file(lambda: in_8_bits(torch.float8_e4m3fn)), within=0.1,
    ),
    "SDXL in fp8 (e5m2)": Layout(
        f"{HUB}/Comfy-Org/stable-diffusion-3.5-fp8", "sdxl",
        file(lambda: in_8_bits(torch.float8_e5m2)), within=0.2,
    ),
    "SDXL in scaled fp8": Layout(
        f"{HUB}/Comfy-Org/stable-diffusion-3.5/discussions/4", "sdxl",
        file(lambda: in_8_bits(torch.float8_e4m3fn, "scale_weight")), {},
        (f"{UNET}scaled_fp8", f"{UNET}out.2.scale_input"), within=0.06,
    ),
    "SDXL in fp8 with newer names of the scales": Layout(
        "https://github.com/comfyanonymous/ComfyUI/blob/master/QUANTIZATION.md", "sdxl",
        file(lambda: in_8_bits(torch.float8_e4m3fn, "weight_scale")), {},
        (f"{UNET}out.2.comfy_quant",), within=0.06,
    ),
    "SDXL-Lightning, U-Net alone in diffusers' names": Layout(
        f"{HUB}/ByteDance/SDXL-Lightning", "sdxl", with_base("sdxl", lightning_unet),
    ),
    "LCM SDXL, folder of a U-Net with guidance as input": Layout(
        f"{HUB}/latent-consistency/lcm-sdxl", "sdxl",
        with_base("sdxl", lambda p: diffusers_unet("sdxl", p, time_cond_proj_dim=16)),
        {"defaults": {"sampler": "lcm", "schedule": "normal", "steps": 4, "guidance_scale": 8.0}},
    ),
    "U-Net alone in the original names": Layout(
        "https://docs.comfy.org/development/core-concepts/models", "sd15",
        with_base("sd15", lambda p: saved(part_state(state("sd15"), UNET), p / "u.safetensors")),
    ),
    "U-Net alone behind the prefix of a whole checkpoint": Layout(
        "https://docs.comfy.org/development/core-concepts/models", "sd15",
        with_base("sd15", lambda p: saved(
            {n: t for n, t in state("sd15").items() if n.startswith(UNET)}, p / "u.sft")),
    ),
    "vae-ft-mse with what its training left": Layout(
        f"{HUB}/stabilityai/sd-vae-ft-mse-original", "sd15", with_vae(vae_ckpt), {},
        ("loss.discriminator.main.0.weight", "model_ema.decay", "model_ema.num_updates"),
    ),
    "VAE baked in with counters of moving averages": Layout(
        f"{HUB}/hakurei/waifu-diffusion-v1-4", "sd15",
        file(vae_with_counters),
        {}, (f"{VAE}model_ema.decay", f"{VAE}model_ema.num_updates"),
    ),
    "SD 1 folder with the VAE's attention under old names": Layout(
        f"{HUB}/osanseviero/compvis_fix", "sd15", old_vae_names,
    ),
    "SSD-1B, single file": Layout(
        f"{HUB}/segmind/SSD-1B/tree/main", "ssd-1b", file(lambda: state("ssd-1b")),
        {"family": "sdxl", "unet": READABLE["ssd-1b"].unet},
    ),
    "SSD-1B, folder": Layout(
        f"{HUB}/segmind/SSD-1B/tree/main/unet", "ssd-1b",
        lambda place: (folder_of("ssd-1b", place), {}), {"unet": READABLE["ssd-1b"].unet},
    ),
    "KOALA-700M, single file": Layout(
        f"{HUB}/etri-vilab/koala-700m", "koala-700m", file(lambda: state("koala-700m")),
        {"unet": READABLE["koala-700m"].unet},
    ),
    "BK-SDM small, U-Net in fp16 alone": Layout(
        "https://github.com/Nota-NetsPresso/BK-SDM/blob/main/MODEL_CARD.md", "bk-sdm-small",
        partial_variant,
    ),
    "BK-SDM tiny, single file of three levels": Layout(
        f"{HUB}/nota-ai/bk-sdm-tiny", "bk-sdm-tiny", file(lambda: state("bk-sdm-tiny")),
        {"unet": READABLE["bk-sdm-tiny"].unet},
    ),
    "Playground v2.5's autoencoder, with statistics of its latents": Layout(
        f"{HUB}/playgroundai/playground-v2.5-1024px-aesthetic", "sdxl", playground,
    ),
}  # fmt: skip


REFUSED: dict[str, tuple[str, Callable[[Path], Written], str]] = {
    "CosXL, an EDM model": (
        f"{HUB}/stabilityai/cosxl",
        file(lambda: state("sdxl") | {"edm_vpred.sigma_max": torch.zeros(())}),
        r"edm_vpred\.sigma_max.*EDM",
    ),
    "Playground v2.5, single file": (
        f"{HUB}/playgroundai/playground-v2.5-1024px-aesthetic",
        file(lambda: state("sdxl") | {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)}),
        "edm_mean.*EDM",
    ),
    "SD 2.1 unCLIP": (
        f"{HUB}/stabilityai/stable-diffusion-2-1-unclip",
        file(lambda: state("sd21") | {f"{UNET}label_emb.0.0.weight": torch.zeros(256, 2048)}),
        "upscaler or unCLIP",
    ),
    "SD 3": (
        f"{HUB}/stabilityai/stable-diffusion-3-medium",
        file(lambda: {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(3, 1)}),
        "no text encoder",
    ),
    "A U-Net alone without a base": (
        f"{HUB}/ByteDance/SDXL-Lightning",
        lambda place: (lightning_unet(place), {}),
        "U-Net alone --base",
    ),
    "A LoRA": (
        f"{HUB}/latent-consistency/lcm-lora-sdv1-5",
        file(lambda: {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}),
        "A LoRA, an embedding or a single network",
    ),
    "TAESD as autoencoder": (
        "https://github.com/madebyollin/taesd",
        with_vae(lambda p: saved({"1.weight": torch.zeros(64, 4, 3, 3)}, p / "taesd.safetensors")),
        "not an autoencoder",
    ),
    "GGUF": (
        "https://github.com/city96/ComfyUI-GGUF",
        gguf,
        r"\.safetensors",
    ),
    "NF4": (
        "https://github.com/comfyanonymous/ComfyUI_bitsandbytes_NF4",
        file(lambda: state("sdxl") | {
            f"{UNET}out.2.weight": torch.zeros(99, 1, dtype=torch.uint8),
            f"{UNET}out.2.weight.absmax": torch.zeros(3)}),
        "unknown to the network|conv_out",
    ),
    "A U-Net twice, once inside a wrapper": (
        "https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html",
        file(lambda: state("sd15") | wrapped("sd15", "module.")),
        "are both.*not clear whose weights",
    ),
    "A U-Net of another family than its base": (
        f"{HUB}/ByteDance/SDXL-Lightning",
        with_base("sd15", lightning_unet),
        "missing|asks for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_it_holds_the_weights_of_the_plain_layout(name: str, tmp_path: Path) -> None:
    layout = READ[name]
    path, options = layout.write(tmp_path)
    opened = load_checkpoint(path, **options)
    for part, module in modules(layout.model).items():
        found, expected = opened.load(part, None).state_dict(), module.state_dict()
        if layout.model == "sd21" and part == "text_encoder":  # whose last layer is not used
            expected = {n: t for n, t in expected.items() if ".layers.1." not in n}
        assert found.keys() - {"time_embedding.cond_proj.weight"} == expected.keys()
        for tensor_name, wanted in expected.items():
            if tensor_name == TELLING_BIAS and layout.model == "sd21":
                continue  # which the layout sets
            got = found[tensor_name].float()
            if tensor_name == "conv_in.weight":
                got = got[:, : wanted.shape[1]]
            wanted = wanted.half().float()
            error = (got.reshape(wanted.shape) - wanted).abs().max() / wanted.abs().max()
            assert error <= layout.within, tensor_name
    assert {n for n in opened.ignored if n in layout.ignored} == set(layout.ignored)
    check(opened, layout.expected)
    compare_with_diffusers(opened, path, layout)


def check(opened: Checkpoint, expected: Mapping[str, Any]) -> None:
    unet = opened.unet_config
    found = {
        "family": opened.family,
        "predicts": opened.scheduler_config["prediction_type"],
        "side": unet.sample_size,
        "inputs": unet.in_channels,
        "defaults": opened.defaults,
        "unet": unet,
    }
    assert {key: found[key] for key in expected} == dict(expected)


def compare_with_diffusers(opened: Checkpoint, path: Path, layout: Layout) -> None:
    """Let diffusers' loader or converter read the same U-Net, where it can."""
    ours = opened.unet(None).state_dict()
    root = path if (path / "config.json").is_file() else path / "unet"
    if (root / "config.json").is_file():
        expected = diffusers.UNet2DConditionModel.from_pretrained(
            root, variant="fp16" if list(root.glob("*.fp16.*")) else None
        ).state_dict()
    elif path.suffix == ".safetensors" and f"{UNET}out.2.bias" in (stored := load_file(path)):
        if layout.within or layout.model in ("ssd-1b", "koala-700m", "bk-sdm-small", "bk-sdm-tiny"):
            return  # of which diffusers' converter knows nothing
        config = {**opened.unet_config.to_dict(), "class_embed_type": None}
        expected = theirs.convert_ldm_unet_checkpoint(stored, config)
    else:
        return
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[n].float(), t.float()) for n, t in expected.items())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_says_what_is_missing(name: str, tmp_path: Path) -> None:
    _, write, match = REFUSED[name]
    path, options = write(tmp_path)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(path, **options).unet()


def test_a_guess_is_told_and_an_option_takes_its_place(tmp_path: Path) -> None:
    path, _ = file(lambda: sd2(0.04))(tmp_path)
    told = {guess.what: (guess.value, guess.option) for guess in load_checkpoint(path).guesses}
    assert told == {
        "family": ("sd2", "--family"),
        "prediction type": ("epsilon", "--prediction-type"),
        "size": ("512", "--resolutions"),
    }
    given = load_checkpoint(path, family="sd2", prediction_type="v_prediction")
    assert [guess.what for guess in given.guesses] == ["size"]


def test_a_distilled_unet_predicts_what_diffusers_predicts() -> None:
    config = READABLE["ssd-1b"].unet
    network = UNet2DConditionModel(config).eval()
    seed_weights(network, 3)
    other = diffusers.UNet2DConditionModel.from_config(config.to_dict()).eval()
    other.load_state_dict(network.state_dict())
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 7, 128, generator=g)
    pooled, sizes = torch.randn(1, 64, generator=g), torch.ones(1, 6)
    with torch.no_grad():
        found = network(x, torch.tensor([7.0]), context, pooled, sizes)
        added = {"text_embeds": pooled, "time_ids": sizes}
        expected = other(x, torch.tensor([7.0]), context, added_cond_kwargs=added).sample
    assert torch.allclose(found, expected, atol=1e-4)
