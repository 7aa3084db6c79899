"""Architectures without weights, as sources of networks: for estimates and tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdengine.bundle.architecture import Architecture
from sdengine.bundle.controls import control_network
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import ARCHITECTURES, ModelArchitecture
from sdengine.models.controls import control_config
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig


@dataclass(frozen=True)
class ArchitectureSource(PartSource):
    """Hold configurations only; asking for weights is an error.

    Args:
        name: for people.
        part_configs: by what a folder calls the networks.
    """

    name: str
    part_configs: dict[str, PartConfig]
    root: Path = Path()

    @property
    def configs(self) -> dict[str, PartConfig]:
        """The networks' configurations."""
        return self.part_configs

    def open_weights(self, part: str) -> Weights:
        """Refuse; there are none."""
        raise CheckpointError(f"{self.name}: an architecture has no weights of {part}.")


def published_architecture(name: str) -> ArchitectureSource:
    """Return the networks of a published architecture, such as "sd15".

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ConfigError.for_field("arch", name, ", ".join(ARCHITECTURES))
    return source_of(ARCHITECTURES[name])


def source_of(architecture: ModelArchitecture) -> ArchitectureSource:
    """Return the networks of an architecture."""
    encoders = zip(architecture.text_parts, architecture.text_encoders, strict=True)
    configs: dict[str, PartConfig] = dict(encoders)
    configs |= {"unet": architecture.unet, "vae": architecture.vae}
    return ArchitectureSource(architecture.name, configs)


def architecture_of_bundle(name: str, architecture: Architecture) -> ArchitectureSource:
    """Return the networks that a bundle's manifest describes.

    Raises:
        ConfigError: a configuration is invalid.
    """
    encoders: dict[str, PartConfig] = {
        encoder.network: TextEncoderConfig.from_dict(encoder.config)
        for encoder in architecture.text_encoders
    }
    unet, vae = architecture.unet.config, architecture.vae.config
    controls: dict[str, PartConfig] = {
        control_network(name): control_config(control.config)
        for name, control in architecture.controls.items()
    }
    own: dict[str, PartConfig] = {
        "unet": UNetConfig.from_dict(unet),
        "vae": VAEConfig.from_dict(vae),
    }
    return ArchitectureSource(name, {**encoders, **own, **controls})
