"""Variants of the demo model inside the package: its checkpoint with some tensors replaced."""

from __future__ import annotations

from dataclasses import replace

from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.diffusers_folder import read_folder
from sdengine.checkpoints.folder import DEMO_CHECKPOINT, DEMO_UNETS
from sdengine.checkpoints.no_parameters import open_parameters
from sdengine.checkpoints.weights import Weights

_FIRST = "conv_in.weight"


def demo_variant(name: str) -> Checkpoint:
    """Open one of DEMO_UNETS."""
    demo, changes = read_folder(DEMO_CHECKPOINT), DEMO_UNETS[name]
    in_channels = open_parameters(changes).shape(_FIRST)[1]
    own = demo.open_weights

    def open_weights(part: str) -> Weights:
        if part != "unet":
            return own(part)
        return own(part).with_changes(Weights([changes], lambda stored: stored))

    return replace(
        demo,
        root=changes,
        name=name,
        unet_config=replace(demo.unet_config, in_channels=in_channels),
        open_weights=open_weights,
    )
