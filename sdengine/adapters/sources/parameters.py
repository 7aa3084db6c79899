"""Parameters of a file: what of its tensors may be a network's weights, and what all others are.

The one table of what is left out wherever it lies. What it names never decides about anything:
`Parameters` does not list it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sdengine.adapters.sources.usual_names import usual_names

# Found at the start of a name or behind a dot.
_RULES = {
    r"model_ema\.": "moving averages of training",
    r"position_ids$": "positions, counted from 0",
    r"(attn_mask|causal_attention_mask)$": "mask of the text encoder",
    r"(vision_model|visual|visual_projection)\.": "image encoder of CLIP",
    r"logit_(scale|bias)$": "temperature that CLIP was trained with",
    r"loss\.": "discriminator that the autoencoder was trained against",
    r"(optimizer|optimizers|optimizer_states|lr_schedulers|callbacks)\.": "state of training",
    r"(scaled_fp8|comfy_quant)$": "mark of weights in 8 bits",
    r"(scale_input|input_scale)$": "scale of a layer's input, for products in 8 bits",
    r"num_batches_tracked$": "counter of training",
}
# Buffers of the noise schedule, which is computed here, at the start of a name.
_SCHEDULE = (
    r"(betas|alphas_cumprod(_prev)?|sqrt_[a-z_]*alphas_cumprod|log_one_minus_alphas_cumprod|"
    r"sqrt_recipm1_alphas_cumprod|posterior_[a-z_0-9]+|lvlb_weights|logvar|denoiser\.sigmas)$"
)
_TABLE = [(re.compile(rf"(?:^|\.){rule}"), what) for rule, what in _RULES.items()]
_TABLE.append((re.compile(rf"^{_SCHEDULE}"), "buffer of the noise schedule"))


def what_it_is(name: str) -> str | None:
    """Say what a tensor is that is no parameter; None for one that may be."""
    return next((what for rule, what in _TABLE if rule.search(name)), None)


class Described(Protocol):
    """What every format of tensor files can say; names of data types are those of safetensors."""

    path: Path
    metadata: Mapping[str, str]

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        ...

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's data type."""
        ...


class Parameters:
    """A tensor file of which only what may be a parameter is listed, by its usual name.

    Args:
        file: opened.
        own: what names of parameters begin with that other networks' files have no use for.

    Attributes:
        others: what each of the other tensors is.

    Raises:
        CheckpointError: a tensor is there twice.
    """

    def __init__(self, file: Described, own: tuple[str, ...] = ()) -> None:
        self.path: Path = file.path
        self.metadata: Mapping[str, str] = file.metadata
        self._described = file
        told = {n: None if n.startswith(own) else what_it_is(n) for n in file.names()}
        self.others: dict[str, str] = {name: what for name, what in told.items() if what}
        parameters = [name for name, what in told.items() if what is None]
        self._stored = usual_names(file.path, parameters)

    def names(self) -> list[str]:
        """Return the names of all tensors but those that are no parameters."""
        return list(self._stored)

    def stored(self, name: str) -> str:
        """Return what a tensor is called in the file."""
        return self._stored[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._described.shape(self._stored[name])

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's data type."""
        return self._described.dtype(self._stored[name])


def said_prediction(file: Described) -> str | None:
    """Return what a file says that its U-Net predicts, by keys or metadata; None for nothing."""
    names = file.names()
    if "v_pred" in names or "ztsnr" in names:
        return "v_prediction"
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said.startswith("v"):
        return "v_prediction"
    if said.startswith("eps"):
        return "epsilon"
    if file.metadata.get("modelspec.architecture", "").lower().endswith("v2-512"):
        return "epsilon"
    return None
