"""Checkpoint of a finished run: its parts put together so that diffusers can load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sdengine.checkpoints import demo_tokenizer_dir, save_checkpoint
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.loop import load_average
from sdengine.training.run_folder import RunFolder
from sdengine.training.text import CaptionEncoder, TextTask
from sdengine.training.unet import DEMO_BATCH, DEMO_SCHEDULER, DEMO_SIDES, DEMO_UNET
from sdengine.training.vae import new_demo_vae


def new_caption_encoder() -> CaptionEncoder:
    """Return an untrained caption encoder over the CLIP tokenizer."""
    folder = demo_tokenizer_dir()
    tokenizer = ClipTokenizer(folder / "vocab.json", folder / "merges.txt")
    torch.manual_seed(0)
    return CaptionEncoder(tokenizer.encode)


def load_vae(run: Path) -> AutoencoderKL:
    """Return the run's autoencoder, with the longer trained decoder if there is one."""
    vae = new_demo_vae()
    load_average(run / ("decoder" if RunFolder(run / "decoder").checkpoints() else "vae"), vae)
    return vae


def save_run(run: Path, output: Path, guidance_scale: float) -> None:
    """Write a run's text encoder, U-Net and autoencoder as a diffusers folder in fp16.

    Args:
        run: folder with the trained parts ``vae``, optionally ``decoder``, ``text``, ``unet`` and
            the cached ``latents``, whose standard deviation gives the scaling factor.
        output: the new folder.
        guidance_scale: what requests take that name none.

    Raises:
        CheckpointError: a part is missing.
    """
    vae = load_vae(run)
    latents = torch.load(run / "latents" / "128.pt", weights_only=True)
    scaling_factor = round(1 / latents.float().std().item(), 5)
    vae.config = replace(vae.config, scaling_factor=scaling_factor)
    task = TextTask(new_caption_encoder())
    load_average(run / "text", task.model)
    unet = UNet2DConditionModel(DEMO_UNET)
    load_average(run / "unet", unet)
    save_checkpoint(
        output,
        unet=unet,
        vae=vae,
        text_encoder=task.encoder.finish(),
        tokenizer_dir=demo_tokenizer_dir(),
        scheduler_config=DEMO_SCHEDULER,
        dtype=torch.float16,
        defaults={
            "steps": 25,
            "guidance_scale": guidance_scale,
            "sampler": "dpmpp_2m",
            "schedule": "karras",
        },
        resolutions=DEMO_SIDES,
        batch=DEMO_BATCH,
    )
