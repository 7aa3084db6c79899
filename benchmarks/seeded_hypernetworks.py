"""Hypernetworks with seeded weights: torch's own modules, put together and saved as web UIs do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH = 16
NAMES: dict[str, Any] = {
    name.lower(): one
    for name, one in inspect.getmembers(nn.modules.activation, inspect.isclass)
    if one.__module__ == "torch.nn.modules.activation"
}
# What web UIs mean by the names that they themselves offer.
NAMES |= {"linear": nn.Identity, "leakyrelu": nn.LeakyReLU, "swish": nn.Hardswish}


def network(
    width: int = WIDTH,
    structure: tuple[float, ...] = (1, 2, 1),
    activation: str = "linear",
    norm: bool = False,
    activate_output: bool = True,
    dropout: tuple[float, ...] = (),
    std: float = 0.4,
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i in range(len(structure) - 1):
        size = int(width * structure[i + 1])
        modules.append(nn.Linear(int(width * structure[i]), size))
        is_last = i == len(structure) - 2
        if activation != "linear" and (activate_output or not is_last):
            modules.append(NAMES[activation]())
        if norm:
            modules.append(nn.LayerNorm(size))
        if dropout and dropout[i + 1] > 0:
            modules.append(nn.Dropout(dropout[i + 1]))
    made = nn.Sequential(*modules).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    return made


def state(module: nn.Sequential) -> dict[str, Any]:
    return nn.ModuleDict({"linear": module}).state_dict()


def save(path: Path, pairs: dict[int, Any], **settings: Any) -> Path:
    saved: dict[Any, Any] = {width: tuple(map(state, pair)) for width, pair in pairs.items()}
    torch.save(saved | settings | {"name": "inner", "step": 7, "sd_checkpoint": None}, path)
    return path


def write(
    path: Path, widths: Sequence[int], *, seed: int = 0, std: float = 0.1, **options: Any
) -> tuple[Path, dict[int, list[nn.Sequential]]]:
    """Draw and save networks of some widths; return them too. Options are those of `network`."""
    torch.manual_seed(seed)
    pairs = {width: [network(width, std=std, **options) for _ in "kv"] for width in widths}
    settings = {
        "layer_structure": list(options.get("structure", (1, 2, 1))),
        "activation_func": options.get("activation", "linear"),
        "is_layer_norm": options.get("norm", False),
        "activate_output": options.get("activate_output", True),
        "dropout_structure": list(options.get("dropout", ())) or None,
    }
    return save(path, pairs, **settings), pairs


class Hooked:
    """Attention of diffusers with hypernetworks, as the web UI hooks it.

    Args:
        nets: networks by width, with their strengths.
    """

    def __init__(self, nets: Sequence[tuple[Mapping[int, Sequence[nn.Module]], float]]) -> None:
        self.nets = nets

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        **_: Any,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        keys = values = context
        for pairs, strength in self.nets:
            if (pair := pairs.get(context.shape[-1])) is not None:
                keys = keys + strength * pair[0](keys)
                values = values + strength * pair[1](values)
        read = attn.to_q(hidden_states), attn.to_k(keys), attn.to_v(values)
        q, k, v = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in read)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = attn.to_out[0](found.transpose(1, 2).flatten(2))
        return out
