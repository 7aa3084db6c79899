"""Control networks of every kind: configuration and module, by the class that a file names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sdengine.models import t2i_adapter
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.controlnet_union import UNION, ControlNetUnionConfig, ControlNetUnionModel
from sdengine.models.t2i_adapter import T2IAdapter, T2IAdapterConfig

ControlConfig = ControlNetConfig | T2IAdapterConfig
CONFIGS: Mapping[str, type[ControlNetConfig] | type[T2IAdapterConfig]] = {
    "ControlNetModel": ControlNetConfig,
    UNION: ControlNetUnionConfig,
    t2i_adapter.CLASS: T2IAdapterConfig,
}


def control_config(content: Mapping[str, Any]) -> ControlConfig:
    """Read the configuration of a network of any kind, as its `_class_name` says.

    Raises:
        ConfigError: it describes what is not implemented.
    """
    return CONFIGS.get(str(content.get("_class_name")), ControlNetConfig).from_dict(content)


def make_control(config: ControlConfig) -> nn.Module:
    """Make the network of a configuration."""
    if isinstance(config, T2IAdapterConfig):
        return T2IAdapter(config)
    if isinstance(config, ControlNetUnionConfig):
        return ControlNetUnionModel(config)
    return ControlNetModel(config)
