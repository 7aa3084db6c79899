"""ControlNet checkpoints, which hold the one network alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sdengine.checkpoints.diffusers_folder import open_folder_weights
from sdengine.checkpoints.folder import CheckpointFolder
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.contracts import CONTROLNET
from sdengine.models.controlnet import ControlNetConfig

_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ControlNetCheckpoint(PartSource):
    """Hold one ControlNet: a checked configuration, weights that are read when asked for.

    Args:
        root: the folder.
        name: for people.
        controlnet_config: of the network.
        open_weights: opens the files of the one part, whatever it is called.
    """

    root: Path
    name: str
    controlnet_config: ControlNetConfig
    open_weights: Callable[[str], Weights] = field(repr=False)

    @property
    def configs(self) -> dict[str, PartConfig]:
        """The one network's configuration."""
        return {CONTROLNET: self.controlnet_config}


def is_controlnet_folder(root: Path) -> bool:
    """Say whether a folder holds one network by itself instead of a whole model."""
    return (root / _CONFIG_FILE).is_file() and not (root / "model_index.json").exists()


def read_controlnet(root: Path, *, variant: str | None = None) -> ControlNetCheckpoint:
    """Open a folder as diffusers' ControlNetModel.save_pretrained writes it.

    Args:
        root: an existing folder.
        variant: which of several sets of weights, such as "fp16"; None for the plain one.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another kind of network.
    """
    folder = CheckpointFolder(root)
    content = folder.json(_CONFIG_FILE)
    kind = content.get("_class_name")
    if kind != "ControlNetModel":
        raise CheckpointError(
            f"{root / _CONFIG_FILE}: {str(kind)[:80]!r} is not a ControlNetModel, the only network "
            "that is read by itself."
        )
    try:
        config = ControlNetConfig.from_dict(content)
    except ConfigError as error:
        raise CheckpointError(f"{root / _CONFIG_FILE}: {error}") from None
    return ControlNetCheckpoint(
        root=root,
        name=root.resolve().name[:200] or CONTROLNET,
        controlnet_config=config,
        open_weights=lambda part: open_folder_weights(folder, part, ".", variant),
    )
