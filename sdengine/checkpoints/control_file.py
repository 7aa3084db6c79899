"""Control networks in single files: original names or those of diffusers, whole or as difference.

A file of differences holds what training added to the U-Net that it began with; a network is that
and a U-Net's weights.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from sdengine.adapters.sources.renaming import Renamer
from sdengine.checkpoints.adapter_names import MARKS, adapter_config, adapter_names
from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.control_names import controlnet_config, original_names, union_names
from sdengine.checkpoints.controlnet import ControlCheckpoint
from sdengine.checkpoints.ldm_configs import Shapes
from sdengine.checkpoints.no_parameters import ParameterFile, open_parameters
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.contracts import CONTROLNET
from sdengine.models.controlnet_union import ControlNetUnionConfig

_ORIGINAL_MARK = "zero_convs.0.0.weight"
_DIFFUSERS_MARK = "controlnet_cond_embedding.conv_in.weight"
# What names begin with, by what follows; files of the original names often hold a whole model.
_LAYOUTS = (
    ("control_model.", _ORIGINAL_MARK),
    ("", _ORIGINAL_MARK),
    ("", _DIFFUSERS_MARK),
    ("controlnet.", _DIFFUSERS_MARK),
)
_DIFFERENCE = "difference"
# In the name of a network whose residuals count by their means, which nothing in its file says.
_POOLED = "shuffle"
# What else steers a U-Net, by how a name in its file begins.
_OTHERS = {
    "lora_controlnet": "a Control-LoRA, whose ranks are laid on the U-Net that runs",
    "lllite_": "a ControlNet-LLLite, which changes what attentions of the U-Net read",
    "image_proj": "an IP-Adapter, which adds to what attentions of the U-Net read",
    "ip_adapter": "an IP-Adapter, which adds to what attentions of the U-Net read",
}


def read_control_file(path: Path, base: Checkpoint | None = None) -> ControlCheckpoint:
    """Open the file of a ControlNet or a T2I-Adapter.

    Args:
        path: an existing file of any known format.
        base: the checkpoint that it is for: its U-Net completes a file of differences, and tells
            numbers of heads. None for a whole file of a published architecture.

    Raises:
        CheckpointError: it is damaged, holds no ControlNet, or one of a kind that is not supported.
    """
    file = open_parameters(path)
    names = set(file.names())
    _refuse_others(path, names)
    found = next(((p, mark) for p, mark in _LAYOUTS if f"{p}{mark}" in names), None)
    if found is None and names.intersection(MARKS):
        return _adapter(path, file)
    if found is None:
        first = ", ".join(repr(name[:80]) for name in sorted(names)[:3]) or "nothing"
        raise CheckpointError(
            f"{path}: neither a ControlNet nor a T2I-Adapter: there is no {_ORIGINAL_MARK}, with "
            f"or without control_model., no {_DIFFUSERS_MARK} and no {MARKS[0]}; it holds "
            f"{first}..."
        )
    if _DIFFERENCE in names and base is None:
        raise CheckpointError(
            f"{path}: it holds differences to a U-Net, as the key {_DIFFERENCE!r} says; build it "
            "together with a checkpoint of the model that it was made of."
        )
    prefix, mark = found
    shapes = _shapes(file, prefix)
    unet = None if base is None else base.unet_config
    rename: Renamer = str
    with _read_from(path):
        if mark == _ORIGINAL_MARK:
            rename = original_names(shapes)
            shapes = {str(rename(name)): shape for name, shape in shapes.items()}
        config = controlnet_config(shapes, unet)
        if isinstance(config, ControlNetUnionConfig):
            rename = union_names
        elif _POOLED in path.stem.lower():
            config = replace(config, global_pool_conditions=True)
    open_weights: Callable[[], Weights] = functools.partial(Weights, [path], rename, prefix)
    if _DIFFERENCE in names and base is not None:
        open_weights = _completed(path, open_weights, base)
    return ControlCheckpoint(
        root=path,
        name=path.stem[:200] or CONTROLNET,
        control_config=config,
        open_weights=lambda part: open_weights(),
    )


def _adapter(path: Path, file: ParameterFile) -> ControlCheckpoint:
    shapes = _shapes(file, "")
    rename = adapter_names(shapes)
    with _read_from(path):
        config = adapter_config({str(rename(name)): shape for name, shape in shapes.items()})
    return ControlCheckpoint(
        root=path,
        name=path.stem[:200] or CONTROLNET,
        control_config=config,
        open_weights=lambda part: Weights([path], rename),
    )


@contextlib.contextmanager
def _read_from(path: Path) -> Iterator[None]:
    """Name the file in what is said of its tensors."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}. The file is incomplete.") from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: its tensors are of no known shape: {error}") from None


def _refuse_others(path: Path, names: set[str]) -> None:
    for name in sorted(names):
        for start, what in _OTHERS.items():
            if name.startswith(start):
                raise CheckpointError(
                    f"{path}: {name[:80]!r} marks {what}. That is not supported; a ControlNet of "
                    "its own weights is."
                )


def _shapes(file: ParameterFile, prefix: str) -> Shapes:
    return {n.removeprefix(prefix): file.shape(n) for n in file.names() if n.startswith(prefix)}


def _completed(
    path: Path, open_weights: Callable[[], Weights], base: Checkpoint
) -> Callable[[], Weights]:
    """Return what opens the sums of a file of differences and a checkpoint's U-Net."""

    def opened() -> Weights:
        weights = open_weights()
        wanted = set(weights.names())
        known = base.open_weights("unet").tensors(base.shapes("unet"))
        before = {name: tensor for name, tensor in known if name in wanted}

        def sum_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if name not in before:
                return tensor
            if before[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{path}: {name!r} is {list(tensor.shape)}, a difference to a U-Net of other "
                    f"sizes than {base.name}'s, {list(before[name].shape)}."
                )
            return before[name].float() + tensor.float()

        weights.derive = sum_of
        return weights

    return opened
