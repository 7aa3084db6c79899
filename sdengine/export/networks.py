"""What each network reads and writes when it is exported: names, shapes, example inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdengine.backends.base import TensorSpec, resolve_shapes
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")
_SEQUENCE = 77  # of example prompts; the U-Net takes any
_FLOAT, _INT = "float32", "int64"


@dataclass(frozen=True)
class NetworkContract:
    """Hold a network as a function of positional tensors, and the names and shapes of these.

    Args:
        name: the network's name in a bundle.
        module: takes the inputs in order and returns the outputs in order.
        inputs, outputs: shapes hold the symbols "batch", "sequence", "height/8", ...
        multiple: pixels that height and width must be multiples of.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiple: int

    def example(self, batch: int, height: int, width: int, *, seed: int) -> tuple[Tensor, ...]:
        """Make seeded inputs for an image size in pixels, multiples of `multiple`."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {"batch": batch, "height": height, "width": width, "sequence": _SEQUENCE}
        shapes = resolve_shapes(self.name, self.inputs, sizes)
        made = []
        for spec in self.inputs:
            shape = shapes[spec.name]
            if spec.dtype == _INT:
                length = int(self.inputs[0].shape[1])
                made.append(torch.randint(1, length, shape, generator=generator))
            elif spec.name == "timestep":
                made.append(torch.rand(shape, generator=generator) * 999)
            else:
                made.append(torch.randn(shape, generator=generator))
        return tuple(made)


def text_encoder_contract(module: CLIPTextEncoder, name: str = "text_encoder") -> NetworkContract:
    """inputs_embeds, eos_index -> hidden_states, normed_hidden_states, pooled."""
    config = module.config
    width, length = config.hidden_size, config.max_position_embeddings
    states = (config.num_hidden_layers + 1, "batch", length, width)
    pooled = config.projection_dim if config.with_projection else width
    return NetworkContract(
        name=name,
        module=module,
        inputs=(
            TensorSpec("inputs_embeds", ("batch", length, width), _FLOAT),
            TensorSpec("eos_index", ("batch",), _INT),
        ),
        outputs=(
            TensorSpec("hidden_states", states, _FLOAT),
            TensorSpec("normed_hidden_states", states, _FLOAT),
            TensorSpec("pooled", ("batch", pooled), _FLOAT),
        ),
        multiple=1,
    )


def unet_contract(
    module: UNet2DConditionModel,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    num_time_ids: int = 6,
) -> NetworkContract:
    """sample, timestep, encoder_hidden_states, [added], [residuals] -> noise_pred.

    Args:
        module: the U-Net.
        downscale: pixels along one side of a latent cell.
        controlnet: read residuals that are added on the way up; zeros leave them out.
        num_time_ids: of each image, where the U-Net reads them: 6, or 5 for a refiner.
    """
    config = module.config
    inputs = [
        TensorSpec("sample", _map(config.in_channels, downscale), _FLOAT),
        TensorSpec("timestep", ("batch",), _FLOAT),
        TensorSpec(
            "encoder_hidden_states", ("batch", "sequence", config.cross_attention_dim), _FLOAT
        ),
    ]
    added = _added_inputs(config, num_time_ids)
    inputs += added
    if controlnet:
        levels = zip(config.residual_channels, _residual_levels(config), strict=True)
        for index, (channels, level) in enumerate(levels):
            shape = _map(channels, downscale << level)
            inputs.append(TensorSpec(f"down_residual_{index}", shape, _FLOAT))
        last = len(config.block_out_channels) - 1
        mid = _map(config.block_out_channels[-1], downscale << last)
        inputs.append(TensorSpec("mid_residual", mid, _FLOAT))
    return NetworkContract(
        name="unet",
        module=_PositionalUNet(module, [spec.name for spec in added], controlnet),
        inputs=tuple(inputs),
        outputs=(TensorSpec("noise_pred", _map(config.out_channels, downscale), _FLOAT),),
        multiple=size_multiple(config, downscale),
    )


def vae_decoder_contract(module: AutoencoderKL) -> NetworkContract:
    """Unscaled latents -> images in [-1,1]."""
    config = module.config
    latents = TensorSpec("latents", _map(config.latent_channels, config.downscale), _FLOAT)
    return NetworkContract(
        name="vae_decoder",
        module=_Method(module, module.decode),
        inputs=(latents,),
        outputs=(TensorSpec("images", _map(config.out_channels, 1), _FLOAT),),
        multiple=config.downscale,
    )


def vae_encoder_contract(module: AutoencoderKL) -> NetworkContract:
    """Images in [-1,1] -> moments: the latents' mean, then their log-variance."""
    config = module.config
    moments = TensorSpec("moments", _map(2 * config.latent_channels, config.downscale), _FLOAT)
    return NetworkContract(
        name="vae_encoder",
        module=_Method(module, module.encode),
        inputs=(TensorSpec("images", _map(config.in_channels, 1), _FLOAT),),
        outputs=(moments,),
        multiple=config.downscale,
    )


def size_multiple(config: UNetConfig, downscale: int = 8) -> int:
    """Return what height and width in pixels must be multiples of, so that levels fit together."""
    return int(downscale << (len(config.block_out_channels) - 1))


class _PositionalUNet(nn.Module):
    """Sort the positional inputs of a contract into the U-Net's arguments."""

    def __init__(self, module: UNet2DConditionModel, added: list[str], controlnet: bool) -> None:
        super().__init__()
        self.module = module
        self.added = added
        self.controlnet = controlnet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *rest: Tensor
    ) -> Tensor:
        added = dict(zip(self.added, rest, strict=False))
        rest = rest[len(self.added) :]
        residuals = {}
        if self.controlnet:
            residuals = {"down_residuals": rest[:-1], "mid_residual": rest[-1]}
        out: Tensor = self.module(sample, timestep, encoder_hidden_states, **added, **residuals)
        return out


class _Method(nn.Module):
    """Make a method of a module a module."""

    def __init__(self, module: nn.Module, method: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


def _map(channels: int, divisor: int) -> tuple[int | str, ...]:
    suffix = f"/{divisor}" if divisor > 1 else ""
    return ("batch", channels, f"height{suffix}", f"width{suffix}")


def _residual_levels(config: UNetConfig) -> list[int]:
    levels = [0]
    for level in range(len(config.block_out_channels)):
        levels += [level] * config.layers_per_block
        if level < len(config.block_out_channels) - 1:
            levels.append(level + 1)
    return levels


def _added_inputs(config: UNetConfig, num_time_ids: int) -> list[TensorSpec]:
    added = []
    if config.addition_embed_type is not None:
        total = config.projection_class_embeddings_input_dim or 0
        pooled = total - num_time_ids * (config.addition_time_embed_dim or 0)
        added.append(TensorSpec("text_embeds", ("batch", pooled), _FLOAT))
        added.append(TensorSpec("time_ids", ("batch", num_time_ids), _FLOAT))
    if config.time_cond_proj_dim is not None:
        added.append(TensorSpec("timestep_cond", ("batch", config.time_cond_proj_dim), _FLOAT))
    return added
