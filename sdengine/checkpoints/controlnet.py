"""Checkpoints of ControlNets and T2I-Adapters, which hold the one network alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdengine.adapters.sources.renaming import Renamer
from sdengine.checkpoints.control_names import union_names
from sdengine.checkpoints.diffusers_folder import open_folder_weights
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.contracts import CONTROLNET
from sdengine.models.controlnet_union import UNION
from sdengine.models.controls import CONFIGS, ControlConfig
from sdengine.models.t2i_adapter import CLASS as ADAPTER
from sdengine.storage.checkpoint_folder import CheckpointFolder

_CONFIG_FILE = "config.json"
_CHANNEL_ORDER = "controlnet_conditioning_channel_order"


@dataclass(frozen=True)
class ControlCheckpoint(PartSource):
    """Hold one control network: a checked configuration, weights that are read when asked for.

    Args:
        root: the folder.
        name: for people.
        control_config: of the network.
        open_weights: opens the files of the one part, whatever it is called.
    """

    root: Path
    name: str
    control_config: ControlConfig
    open_weights: Callable[[str], Weights] = field(repr=False)

    @property
    def configs(self) -> dict[str, PartConfig]:
        """The one network's configuration."""
        return {CONTROLNET: self.control_config}


def is_controlnet_folder(root: Path) -> bool:
    """Say whether a folder holds one network by itself instead of a whole model."""
    return (root / _CONFIG_FILE).is_file() and not (root / "model_index.json").exists()


def read_controlnet(root: Path, *, variant: str | None = None) -> ControlCheckpoint:
    """Open a folder as `save_pretrained` of diffusers' classes writes it.

    A network that reads BGR comes as the one that gives the same for RGB.

    Args:
        root: an existing folder.
        variant: which of several sets of weights, such as "fp16"; None for the plain one.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another kind of network.
    """
    folder = CheckpointFolder(root)
    content = dict(folder.json(_CONFIG_FILE))
    kind = content.get("_class_name")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise CheckpointError(
            f"{root / _CONFIG_FILE}: {str(kind)[:80]!r} is not a {' or '.join(CONFIGS)}, the only "
            "networks that are read by themselves."
        )
    rename: Renamer = union_names if kind == UNION else str
    order = "rgb" if kind == ADAPTER else content.pop(_CHANNEL_ORDER, "rgb")
    if order not in ("rgb", "bgr"):
        raise CheckpointError(
            f"{root / _CONFIG_FILE}: {_CHANNEL_ORDER} is {str(order)[:40]!r}; expected rgb or bgr."
        )
    try:
        config = CONFIGS[kind].from_dict(content)
    except ConfigError as error:
        raise CheckpointError(f"{root / _CONFIG_FILE}: {error}") from None

    def open_weights(part: str) -> Weights:
        weights = open_folder_weights(folder, part, ".", variant, rename)
        weights.derive = _in_rgb if order == "bgr" else None
        return weights

    return ControlCheckpoint(
        root=root,
        name=root.resolve().name[:200] or CONTROLNET,
        control_config=config,
        open_weights=open_weights,
    )


def _in_rgb(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Turn the layer that reads a picture's channels round, for a network that reads BGR."""
    return tensor.flip(1) if name == "controlnet_cond_embedding.conv_in.weight" else tensor
