"""Sources of networks: configurations and weights, whichever file they lie in."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdengine.checkpoints.weights import Weights, shapes_of
from sdengine.errors import ConfigError
from sdengine.models.controlnet import ControlNetConfig
from sdengine.models.controlnet_union import ControlNetUnionConfig
from sdengine.models.controls import ControlConfig, make_control
from sdengine.models.image_encoder import CLIPImageEncoder, ImageEncoderConfig
from sdengine.models.t2i_adapter import T2IAdapterConfig
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.models.tiny_vae import TinyAutoencoder, TinyVAEConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

PartConfig = (
    UNetConfig | VAEConfig | TextEncoderConfig | ControlConfig | TinyVAEConfig | ImageEncoderConfig
)
_MODULES: Mapping[type[Any], Callable[[Any], nn.Module]] = {
    UNetConfig: UNet2DConditionModel,
    VAEConfig: AutoencoderKL,
    TextEncoderConfig: CLIPTextEncoder,
    ControlNetConfig: make_control,
    ControlNetUnionConfig: make_control,
    T2IAdapterConfig: make_control,
    TinyVAEConfig: TinyAutoencoder,
    ImageEncoderConfig: CLIPImageEncoder,
}


class PartSource(ABC):
    """Some networks by name; weights are read when asked for.

    Subclasses hold `root`, the folder or file; `name`, for people; and `open_weights`, which opens
    the files of a part.
    """

    root: Path
    name: str
    open_weights: Callable[[str], Weights]

    @property
    def num_time_ids(self) -> int:
        """How many sizes and scores a U-Net with size conditioning reads."""
        return 6

    @property
    @abstractmethod
    def configs(self) -> dict[str, PartConfig]:
        """The networks' configurations, by what a folder calls them."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks that there are, as a folder calls them."""
        return tuple(self.configs)

    def config(self, part: str) -> PartConfig:
        """Return a part's configuration.

        Raises:
            ConfigError: there is no such part.
        """
        configs = self.configs
        if part not in configs:
            raise ConfigError.for_field("part", part, ", ".join(configs))
        return configs[part]

    def load(self, part: str, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """Return one network with its weights, in evaluation mode and without gradients.

        Args:
            part: one of `parts`.
            dtype: of the weights; None is what the file holds. Where nothing is converted they
                stay mapped from the file, so that memory is taken only while they are read.

        Raises:
            CheckpointError: the file is damaged, or does not fit the configuration.
        """
        config = self.config(part)
        make = _MODULES[type(config)]
        return self.open_weights(part).load_into(lambda: make(config), dtype)

    def skeleton(self, part: str) -> nn.Module:
        """Return one network without weights: its tensors have shapes and no memory."""
        config = self.config(part)
        with torch.device("meta"):
            return _MODULES[type(config)](config)

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a part's tensors by their names, in the network's order."""
        return shapes_of(self.skeleton(part))

    def tensors(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a part's tensors one at a time, in the type that they are stored in.

        Raises:
            CheckpointError: the file is damaged, or does not fit the configuration.
        """
        return self.open_weights(part).tensors(self.shapes(part))

    @cached_property
    def ignored(self) -> dict[str, str]:
        """What the files hold beside the networks: tensors by name, and what each is.

        Raises:
            CheckpointError: a file is damaged or lacks a network.
        """
        opened = [self.open_weights(part) for part in self.parts]
        used = {place for weights in opened for place in weights.used}
        found = {place: "of no network that is read" for w in opened for place in w.elsewhere}
        for weights in opened:
            found |= weights.left_out
        return {
            name: what for (path, name), what in sorted(found.items()) if (path, name) not in used
        }

    def part_sha256(self, part: str) -> str:
        """Identify a part's content: its configuration, and its tensors by name, type and value.

        The same for the same tensors, in whichever file format and layout they come.
        """
        known = self._part_sha256
        if part not in known:
            config = json.dumps(self.config(part).to_dict(), sort_keys=True)
            known[part] = self.open_weights(part).sha256(self.shapes(part), config)
        return known[part]

    @cached_property
    def _part_sha256(self) -> dict[str, str]:
        return {}
