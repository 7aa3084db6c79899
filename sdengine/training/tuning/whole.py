"""Whole networks: fine-tuning of a U-Net, and DreamBooth with its prior preserved.

Source: "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation" (Ruiz
et al. 2022), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.training.loop import Draw
from sdengine.training.tuning.dataset import Dataset
from sdengine.training.tuning.task import TuningTask

_TABLE = "text_model.embeddings.token_embedding"


def trainable(networks: Mapping[str, nn.Module]) -> nn.Module:
    """Return networks as one model to train; token tables stay as they are.

    A table's rows would move that no caption names, by the optimiser's decay alone.
    """
    for network in networks.values():
        network.requires_grad_(True)
        if isinstance(network, CLIPTextEncoder):
            network.get_submodule(_TABLE).requires_grad_(False)
    return nn.ModuleDict(dict(networks))


def networks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the networks of a model that `trainable` made."""
    assert isinstance(model, nn.ModuleDict)
    return dict(model.items())


class DreamBoothTask(TuningTask):
    """Train networks on a subject, and on what the untouched model makes of its class.

    Args:
        class_dataset: of the class's pictures.
        prior_weight: what their loss counts.
        options: of `TuningTask`.
    """

    def __init__(
        self,
        *inputs: Any,
        class_dataset: Dataset | None = None,
        prior_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(*inputs, **options)
        self.class_dataset, self.prior_weight = class_dataset, prior_weight

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the subject's pictures plus the weighted one of the class's.

        Each is the mean over its own pictures, so that the weight means what it says.
        """
        own, figures = super().loss(draw, progress)
        if self.class_dataset is None:
            return own, figures
        prior = self.batch_loss(self.class_dataset.batch(draw.number, draw), draw)
        figures = {"subject": own.item(), "prior": prior.item()}
        return own + self.prior_weight * prior, figures
