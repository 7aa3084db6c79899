"""Positional modules: networks as functions of tensors in the order of their contracts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sdengine.models.controlnet import ControlNetModel
from sdengine.models.unet import UNet2DConditionModel


class PositionalUNet(nn.Module):
    """Sort the positional inputs of a contract into the U-Net's arguments."""

    def __init__(
        self, module: UNet2DConditionModel, added: list[str], controlnet: bool, features: int
    ) -> None:
        super().__init__()
        self.features = features
        self.module = module
        self.added = added
        self.controlnet = controlnet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *rest: Tensor
    ) -> Tensor:
        added = dict(zip(self.added, rest, strict=False))
        rest = rest[len(self.added) :]
        rest, features = rest[: len(rest) - self.features], rest[len(rest) - self.features :]
        residuals = {}
        if self.controlnet:
            residuals = {"down_residuals": rest[:-1], "mid_residual": rest[-1]}
        out: Tensor = self.module(
            sample,
            timestep,
            encoder_hidden_states,
            **added,
            **residuals,
            adapter_features=features,
        )
        return out


class PositionalControlNet(nn.Module):
    """Sort the inputs of a contract into the ControlNet's arguments, and join its results."""

    def __init__(self, module: ControlNetModel, added: list[str]) -> None:
        super().__init__()
        self.module = module
        self.added = added

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        added = dict(zip(self.added, rest, strict=False))
        hint = rest[len(self.added) :]
        down, mid = self.module(sample, timestep, encoder_hidden_states, *hint, **added)
        return (*down, mid)


class Joined(nn.Module):
    """Return a module's list of tensors as a tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(x))


class Method(nn.Module):
    """Make a method of a module a module."""

    def __init__(self, module: nn.Module, method: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)
