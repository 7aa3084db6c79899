"""A bundle's own parameters, by the networks that checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sdengine.adapters.own_weights import own_weights, require_named_weights
from sdengine.bundle.architecture import Architecture
from sdengine.bundle.reader import Bundle
from sdengine.inputs.models import PARTS

Array = NDArray[Any]
VAE_HALVES = ("vae_decoder", "vae_encoder")
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Own:
    """What another checkpoint's weights take the place of.

    Args:
        architecture: of the bundle.
        parts: its parameters by part and name, mapped; a text encoder's with its token table.
    """

    architecture: Architecture
    parts: Mapping[str, Mapping[str, Array]]


def part_of(network: str) -> str:
    """Return the part of a checkpoint that a network of a bundle is made from."""
    return "vae" if network in VAE_HALVES else network


def own_parameters(bundle: Bundle) -> Own:
    """Return a bundle's parameters, mapped.

    Raises:
        ConfigError: the bundle's weights are not held by their names.
        BundleError: a file is damaged.
    """
    manifest = bundle.manifest
    require_named_weights("model", bundle, ("native", "torch"))
    parts: dict[str, dict[str, Array]] = {}
    tables = {one.network: one for one in manifest.architecture.text_encoders}
    for network in manifest.networks:
        part = part_of(network)
        if part in PARTS:
            parts.setdefault(part, {}).update(own_weights(bundle, network))
        if network in tables:
            parts[part][TOKEN_TABLE] = bundle.token_table(tables[network])
    return Own(manifest.architecture, parts)
