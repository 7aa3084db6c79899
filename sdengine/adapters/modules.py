"""Modules of a bundle's networks: what an adapter can change, under the networks' own names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdengine.adapters.own_weights import own_weights, require_named_weights

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
NETWORKS = (*TEXT_ENCODERS, "unet")
_TEXT_LAYER = re.compile(r"(text_model\.encoder\.layers\.)(\d{1,4})(\..+)")


@dataclass(frozen=True)
class Module:
    """A layer of a network.

    Args:
        network: one of NETWORKS.
        path: what its parameters' names begin with: "mid_block.attentions.0.proj_in".
        weight, bias: shapes of these parameters; None where there is none.
        idle: the bundle leaves the layer out, because nothing reads its result.
    """

    network: str
    path: str
    weight: Shape | None
    bias: Shape | None
    idle: bool = False


def bundle_shapes(bundle: Bundle) -> dict[str, Shapes]:
    """Return the shapes of all parameters by network, of the networks that adapters change.

    Raises:
        ConfigError: the bundle's weights are not held by their names.
        BundleError: a file is damaged.
    """
    require_named_weights("loras", bundle)
    return {
        network: {name: tensor.shape for name, tensor in own_weights(bundle, network).items()}
        for network in NETWORKS
        if network in bundle.manifest.networks
    }


def bundle_modules(bundle: Bundle) -> list[Module]:
    """Return the modules of a bundle's networks; see `known_modules`.

    Raises:
        ConfigError, BundleError: as for `bundle_shapes`.
    """
    encoders = bundle.manifest.architecture.text_encoders
    layers: dict[str, int] = {encoder.network: encoder.num_layers for encoder in encoders}
    return known_modules(bundle_shapes(bundle), layers)


def known_modules(networks: Mapping[str, Shapes], layers: Mapping[str, int]) -> list[Module]:
    """Return the modules that the parameters belong to.

    Text encoders are conditioned by their last layer but one, or are trained with more layers than
    they keep: adapters have something for those too, which is known though it changes nothing.

    Args:
        networks: shapes of the parameters by network and name.
        layers: of each text encoder, as its configuration counts them.
    """
    found: list[Module] = []
    for network, shapes in networks.items():
        own = [Module(network, *module) for module in _modules(shapes)]
        found += own
        if network in TEXT_ENCODERS:
            found += _idle_layers(own, layers.get(network, 0))
    return found


def _modules(shapes: Shapes) -> Iterable[tuple[str, Shape | None, Shape | None]]:
    """Yield path, weight and bias; what else a file holds are constants of the graph."""
    names = [name.rpartition(".") for name in shapes]
    for path in dict.fromkeys(path for path, _, kind in names if kind in ("weight", "bias")):
        yield path, shapes.get(f"{path}.weight"), shapes.get(f"{path}.bias")


def _idle_layers(modules: list[Module], configured: int) -> list[Module]:
    matches = [(module, _TEXT_LAYER.fullmatch(module.path)) for module in modules]
    numbers = {int(match[2]) for _, match in matches if match}
    present = len(numbers)
    first = [(module, match) for module, match in matches if match and int(match[2]) == 0]
    return [
        Module(module.network, f"{match[1]}{layer}{match[3]}", module.weight, module.bias, True)
        for layer in range(present, max(configured, present + 1))
        for module, match in first
    ]
