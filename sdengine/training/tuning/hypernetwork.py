"""Hypernetwork: small networks before the keys and values of every attention layer.

Source: the settings that the Stable Diffusion web UI documents for training hypernetworks, and the
files that it writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.inputs.hypernetworks import ACTIVATIONS
from sdengine.models.attention import Attention
from sdengine.training.tuning.networks import matched

_INITIAL_DEVIATION = 0.01
# By the names of web UIs: torch's in lower case, and those that are not torch's.
_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    name.lower(): made
    for name, made in inspect.getmembers(nn.modules.activation, inspect.isclass)
    if made.__module__ == "torch.nn.modules.activation" and issubclass(made, nn.Module)
} | {"leakyrelu": nn.LeakyReLU, "swish": nn.Hardswish}


class HyperNetwork(nn.Module):
    """Change a context of one width: x + network(x)."""

    def __init__(
        self,
        width: int,
        structure: Sequence[float],
        activation: str,
        *,
        layer_norm: bool,
        activate_output: bool,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        last = len(structure) - 2
        for i in range(last + 1):
            linear = nn.Linear(int(width * structure[i]), int(width * structure[i + 1]))
            nn.init.normal_(linear.weight, std=_INITIAL_DEVIATION)
            nn.init.zeros_(linear.bias)
            modules.append(linear)
            if activation != "linear" and (activate_output or i < last):
                modules.append(_MODULES[activation]())
            if layer_norm:
                modules.append(nn.LayerNorm(int(width * structure[i + 1])))
            if dropout[i + 1] > 0:
                modules.append(nn.Dropout(dropout[i + 1]))
        self.linear = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed context [..., width]."""
        changed: Tensor = self.linear(matched(x, next(self.linear.parameters())))
        return x + changed.to(x.dtype)


class Hypernetworks(nn.Module):
    """The networks of a file, hooked to a U-Net's attention layers.

    Args:
        unet: whose contexts are changed, in cross-attention and self-attention.
        structure: factors of the width, the first and last of them 1.
        activation: as files name it; "linear" is none.
        layer_norm: normalise behind every layer.
        activate_output: let the last layer have an activation too.
        dropout: of the layers between the first and the last, while training.
        widths: of contexts; none for all that the U-Net has.

    Raises:
        ConfigError: a setting is not one that web UIs take, or the U-Net has no such width.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        structure: Sequence[float] = (1, 2, 1),
        activation: str = "linear",
        layer_norm: bool = False,
        activate_output: bool = False,
        dropout: float = 0.0,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1 or min(structure) <= 0:
            raise ConfigError.for_field(
                "structure", list(structure), "factors of the width, the first and last of them 1"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError.for_field("activation", activation, ", ".join(ACTIVATIONS))
        attentions = [m for m in unet.modules() if isinstance(m, Attention)]
        present = sorted({a.to_k.in_features for a in attentions})
        absent = sorted(set(widths) - set(present))
        if absent:
            raise ConfigError.for_field("widths", absent, f"widths among {present}")
        between = [dropout] * (len(structure) - 2)
        if dropout and not between:
            raise ConfigError.for_field("dropout", dropout, f"0 with the structure {structure}")
        self.settings: dict[str, Any] = {
            "layer_structure": list(structure),
            "activation_func": activation,
            "is_layer_norm": layer_norm,
            "weight_initialization": "Normal",
            "use_dropout": dropout > 0,
            "activate_output": activate_output,
            "last_layer_dropout": False,
            "dropout_structure": [0.0, *between, 0.0],
        }
        self.networks = nn.ModuleDict()
        for width in widths or present:
            pair = [
                HyperNetwork(
                    width,
                    structure,
                    activation,
                    layer_norm=layer_norm,
                    activate_output=activate_output,
                    dropout=[0.0, *between, 0.0],
                )
                for _ in range(2)
            ]
            self.networks[str(width)] = nn.ModuleList(pair).to(next(unet.parameters()).device)
        for attention in attentions:
            name = str(attention.to_k.in_features)
            if name in self.networks:
                keys, values = self._pair(name)
                attention.to_k.register_forward_pre_hook(_Change(keys))
                attention.to_v.register_forward_pre_hook(_Change(values))

    def states(self) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Return the parameters by width: of the keys' network, and of the values'."""
        found = {}
        for width in self.networks:
            keys, values = map(_state, self._pair(width))
            found[int(width)] = keys, values
        return found

    def _pair(self, width: str) -> tuple[nn.Module, nn.Module]:
        keys, values = self.networks[width].children()
        return keys, values


def _state(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


class _Change:
    """Change what a layer reads; a class, because what is trained must not become its part."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.network(inputs[0]),)
