"""Variants of the demo model: networks made from its own weights, trained and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sdengine.checkpoints import demo_tokenizer_dir, save_checkpoint, save_network
from sdengine.checkpoints.weights import save_tensors
from sdengine.errors import ConfigError
from sdengine.models.attention import set_attention_impl
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.tiny_vae import TinyAutoencoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.training.conditioned import DepthTask, EdgesTask, InpaintingTask
from sdengine.training.demo_parts import DemoParts, laid_out
from sdengine.training.loop import Task
from sdengine.training.tiny_decoder import TinyDecoderTask
from sdengine.training.tuning.control import controlnet_of

# The hint encoder's widths: the demo's latents need less than the published 16, 32, 96, 256.
_HINT_WIDTHS = (16, 32, 64, 96)
# What of the inpainting U-Net is trained: where the further channels enter, and the way out.
_NEAR_PICTURE = (
    "conv_in.",
    "down_blocks.0.",
    "down_blocks.1.",
    "up_blocks.2.",
    "conv_norm_out.",
    "conv_out.",
)
# What of the depth U-Net is trained: the way down, and all from the finest attention on the way up.
_DOWN_AND_OUT = (
    "conv_in.",
    "down_blocks.",
    "up_blocks.1.",
    "up_blocks.2.",
    "conv_norm_out.",
    "conv_out.",
)


def widened(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Return a copy that reads further channels behind the latents, which say nothing yet.

    Source: the model cards of Stable Diffusion's inpainting and depth models, which were begun with
    zeros for the channels that they have more than their base.
    """
    wide = UNet2DConditionModel(replace(unet.config, in_channels=in_channels))
    state = dict(unet.state_dict())
    further = in_channels - unet.config.in_channels
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, further))
    wide.load_state_dict(state)
    set_attention_impl(wide, "plain")
    return wide


Save = Callable[[nn.Module, DemoParts, Path], None]


@dataclass(frozen=True)
class Variant:
    """Describe how a variant is made.

    Attributes:
        task: returns what to train, given the demo model's parts and a batch size.
        steps, batch, learning_rate: of its training, if none are named.
        save: writes what was trained as a new folder that diffusers reads.
    """

    task: Callable[[DemoParts, int], Task]
    steps: int
    batch: int
    learning_rate: float
    save: Save

    def writer(self, *, changes_only: bool) -> Save:
        """Return what writes the trained network: as a folder, or as a file of changed tensors.

        Raises:
            ConfigError: it shares no tensors with the base, which could be left out.
        """
        if changes_only and self.save is not _save_unet:
            raise ConfigError.for_field(
                "changes_only", True, "a U-Net, inpainting or depth: others share no tensors"
            )
        return _save_changes if changes_only else self.save


def find_variant(kind: str) -> Variant:
    """Return a variant by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    if kind not in VARIANTS:
        raise ConfigError.for_field("kind", kind, ", ".join(VARIANTS))
    return VARIANTS[kind]


def _channels_task(
    make: Callable[[nn.Module, DemoParts, int], Task],
    in_channels: int,
    trained: tuple[str, ...] = ("",),
) -> Callable[[DemoParts, int], Task]:
    def task(parts: DemoParts, batch: int) -> Task:
        unet = laid_out(widened(parts.unet, in_channels))
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        return make(unet, parts, batch)

    return task


def _edges_task(parts: DemoParts, batch: int) -> Task:
    net = controlnet_of(parts.unet, _HINT_WIDTHS)
    set_attention_impl(net, "plain")
    return EdgesTask(laid_out(net), parts, batch)


def _save_unet(model: nn.Module, parts: DemoParts, output: Path) -> None:
    """Write a whole checkpoint: the variant's U-Net among the demo model's other parts."""
    assert isinstance(model, UNet2DConditionModel)
    checkpoint = parts.checkpoint
    save_checkpoint(
        output,
        unet=model,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer_dir=demo_tokenizer_dir(),
        scheduler_config=checkpoint.scheduler_config,
        defaults=checkpoint.defaults,
        resolutions=checkpoint.resolutions,
        batch=checkpoint.batch,
    )


def _save_network(model: nn.Module, parts: DemoParts, output: Path) -> None:
    assert isinstance(model, (ControlNetModel, TinyAutoencoder))
    save_network(output, model)


def _save_changes(model: nn.Module, parts: DemoParts, path: Path) -> None:
    """Write only the tensors of a U-Net that are not the demo model's, in fp16, as one file."""
    before = parts.unet.state_dict()
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    changed = {
        name: tensor
        for name, tensor in state.items()
        if tensor.shape != before[name].shape or not torch.equal(tensor, before[name].half())
    }
    save_tensors(changed, path)


VARIANTS = {
    "inpainting": Variant(
        _channels_task(InpaintingTask, 9, _NEAR_PICTURE), 500, 16, 3e-4, _save_unet
    ),
    "depth": Variant(_channels_task(DepthTask, 5, _DOWN_AND_OUT), 2400, 16, 1e-3, _save_unet),
    "controlnet": Variant(_edges_task, 2400, 16, 5e-4, _save_network),
    "tiny": Variant(TinyDecoderTask, 3600, 16, 3e-3, _save_network),
}
