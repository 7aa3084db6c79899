"""A bundle's own parameters, by the networks that checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sdengine.errors import BundleError, ConfigError
from sdengine.inputs.models import PARTS
from sdengine.storage.tensor_file import map_open_tensors

if TYPE_CHECKING:
    from sdengine.bundle.architecture import Architecture
    from sdengine.bundle.reader import Bundle

Array = NDArray[Any]
VAE_HALVES = ("vae_decoder", "vae_encoder")
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"
_TARGETS = ("native", "torch")


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
    if manifest.target not in _TARGETS:
        raise ConfigError.for_field(
            "model",
            manifest.target,
            f"a bundle of target {' or '.join(_TARGETS)}",
            "Other targets hold compiled weights, which cannot be exchanged when they are loaded: "
            "build a bundle of the other checkpoint.",
        )
    parts: dict[str, dict[str, Array]] = {}
    tables = {one.network: one for one in manifest.architecture.text_encoders}
    for network in manifest.networks:
        part = part_of(network)
        if part in PARTS:
            parts.setdefault(part, {}).update(_parameters(bundle, network))
        if network in tables:
            parts[part][TOKEN_TABLE] = bundle.token_table(tables[network])
    return Own(manifest.architecture, parts)


def _parameters(bundle: Bundle, network: str) -> dict[str, Array]:
    """Return a network's parameters; what else its file holds are constants of the graph."""
    files = [f for f in bundle.network(network).files if f.endswith(".safetensors")]
    if len(files) != 1:
        raise BundleError(f"{bundle.root}: {network} has {len(files)} files of weights, not 1.")
    with bundle.open(files[0]) as file:
        tensors = map_open_tensors(file, bundle.path(files[0]))
    return {n: t for n, t in tensors.items() if n.endswith((".weight", ".bias"))}
