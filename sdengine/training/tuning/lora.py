"""LoRA: low-rank additions to layers, linear ones and, as LoCon, convolutions.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al. 2021), section 4.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.training.tuning.networks import matched
from sdengine.training.tuning.options import TARGETS

_OF_TEXT = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\..*")
_CONVOLUTION = re.compile(r".*\b(resnets|downsamplers|upsamplers)\.\d+\.(conv\w*)")


class LoraLayer(nn.Module):
    """What is added to a layer: nothing at first.

    Args:
        layer: linear, or a convolution.
        rank: of the addition.
        alpha: which divided by the rank scales it.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Conv2d):
            shape: dict[str, Any] = {"kernel_size": layer.kernel_size}
            shape |= {"stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(layer.in_channels, rank, **shape, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the result of x."""
        product = self.up(self.down(matched(x, self.down.weight)))
        out: Tensor = product * (self.alpha / self.rank)
        return out


class Lora(nn.Module):
    """The additions to a checkpoint's networks, hooked to their layers.

    Args:
        networks: by name: "unet" and, where they are changed, the text encoders.
        rank, alpha: of linear layers, and of convolutions of one pixel.
        targets: which layers of the U-Net, one of TARGETS.
        conv_rank, conv_alpha: of the convolutions; with rank 0 they are left alone.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        rank: int,
        alpha: float,
        targets: str = "transformer",
        conv_rank: int = 0,
        conv_alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if targets not in TARGETS:
            raise ConfigError.for_field("targets", targets, ", ".join(TARGETS))
        self.places: list[tuple[str, str]] = []
        self.layers = nn.ModuleList()
        for name, network in networks.items():
            for path, layer in _layers(network):
                is_target = (TARGETS[targets] if name == "unet" else _OF_TEXT).fullmatch(path)
                size = (rank, alpha)
                if not is_target and name == "unet" and conv_rank and _CONVOLUTION.fullmatch(path):
                    size = (conv_rank, conv_alpha)
                elif not is_target:
                    continue
                made = LoraLayer(layer, *size).to(layer.weight.device)
                layer.register_forward_hook(_Add(made))
                self.places.append((name, path))
                self.layers.append(made)
        if not self.places:
            raise ConfigError.for_field(
                "targets", targets, "layers that this U-Net has; it has none of these"
            )

    def tensors(self) -> Iterator[tuple[str, str, LoraLayer]]:
        """Yield network, path of the layer, and what is added to it."""
        for (network, path), layer in zip(self.places, self.layers, strict=True):
            assert isinstance(layer, LoraLayer)
            yield network, path, layer


class _Add:
    """Add to a layer's result; a class, because what is trained must not become its part."""

    def __init__(self, layer: LoraLayer) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = self.layer(inputs[0])
        return output + added.to(output.dtype)


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            yield path, layer
