"""IP-Adapter plan: when a request's IP-Adapters prompt, which layers they reach, what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdengine.bundle.image_prompts import ImageEncoderArchitecture, cross_attentions
from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import Bundle
from sdengine.errors import BundleError, ConfigError
from sdengine.inputs.ip_adapters import IPAdapterFile
from sdengine.pipeline.control_plan import active_evaluations
from sdengine.request.ip_adapters import IPAdapter
from sdengine.request.request import Request
from sdengine.storage.tensor_file import map_open_tensors

Layers = Mapping[str, tuple[int, int]]
_FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}


@dataclass(frozen=True)
class PlannedIPAdapter:
    """One IP-Adapter of a request, with what follows from request and bundle alone.

    Args:
        adapter: as asked for.
        active: evaluations that it prompts.
        factors: scale of each cross-attention that it reaches, by transformer block.
        reads_pictures: the image encoder runs for it, unless what it makes is known already.
        is_guided: there are unconditional rows, which are told what no picture looks like.
    """

    adapter: IPAdapter
    active: frozenset[int]
    factors: Mapping[str, float]
    reads_pictures: bool
    is_guided: bool


def unet_layers(bundle: Bundle) -> Layers:
    """Return the cross-attentions of a bundle's U-Net; see `cross_attentions`.

    Raises:
        ConfigError: what runs the bundle's U-Net cannot read pictures.
        BundleError: it is damaged.
    """
    manifest = bundle.manifest
    if manifest.target != "native":
        raise ConfigError.for_field(
            "ip_adapters",
            manifest.target,
            "a bundle of target native",
            "U-Nets of other targets are compiled without what reads pictures. Build the "
            "checkpoint with --target native.",
        )
    files = [f for f in bundle.network("unet").files if f.endswith(".safetensors")]
    if len(files) != 1:
        raise BundleError(f"{bundle.root}: unet has {len(files)} files of weights, not 1.")
    with bundle.open(files[0]) as file:
        tensors = map_open_tensors(file, bundle.path(files[0]))
    return cross_attentions({name: tensor.shape for name, tensor in tensors.items()})


def plan_ip_adapters(
    request: Request, layers: Layers, manifest: Manifest, count: int, *, is_guided: bool
) -> tuple[list[PlannedIPAdapter], list[str]]:
    """Return the IP-Adapters that prompt something, and what to say of the others.

    Args:
        request: with IP-Adapters.
        layers: of the U-Net.
        manifest: of the bundle.
        count: evaluations that run.
        is_guided: some of their rows are unconditional.

    Raises:
        ConfigError: one is for other models, or the bundle has not what it needs.
    """
    planned, said = [], []
    for number, adapter in enumerate(request.ip_adapters, 1):
        if not adapter.is_given:
            raise ConfigError(
                f"ip_adapters: only the record of number {number}, with SHA-256 "
                f"{adapter.file.sha256}, is known. Give its file and pictures again, with "
                "--ip-adapter FILE=PICTURE or ip_adapters=."
            )
        _require_fit(adapter.file, layers)
        reads_pictures = _reads_pictures(adapter, is_guided)
        if reads_pictures:
            _require_encoder(adapter, manifest.architecture.image_encoder)
        factors = _factors(adapter, layers)
        if not factors:
            continue
        active = active_evaluations(adapter, count)
        if active:
            planned.append(PlannedIPAdapter(adapter, active, factors, reads_pictures, is_guided))
        else:
            said.append(
                f"ip_adapter {adapter.file.name}: it does nothing, because none of {count} "
                f"evaluations lies between {adapter.start:g} and {adapter.end:g}."
            )
    return planned, said


def _reads_pictures(adapter: IPAdapter, is_guided: bool) -> bool:
    if adapter.embeds is None:
        return True
    projection = adapter.file.projection
    lacks_negative = adapter.embeds.rows("ip_adapter.embeds", projection)[1] is None
    return is_guided and lacks_negative and projection.reads == "states"


def _require_fit(file: IPAdapterFile, layers: Layers) -> None:
    """Refuse an adapter of another family of models."""
    (wanted,) = {width for _, width in layers.values()} or {0}
    found = file.projection.out_width
    channels = tuple(channels for channels, _ in layers.values())
    if found == wanted and file.channels == channels:
        return
    named = [f"{_FAMILIES[w]}, " if w in _FAMILIES else "" for w in (found, wanted)]
    shown = [f"{len(c)} of {' '.join(map(str, sorted(set(c))))}" for c in (file.channels, channels)]
    raise ConfigError(
        f"ip_adapter.file: {file.name!r} is for a U-Net of {named[0]}text of width {found} and "
        f"cross-attentions {shown[0]} channels; this bundle's is of {named[1]}text of width "
        f"{wanted} and {shown[1]}. Give an adapter that was trained for this model's family."
    )


def _require_encoder(adapter: IPAdapter, encoder: ImageEncoderArchitecture | None) -> None:
    file: IPAdapterFile = adapter.file
    projection = file.projection
    if encoder is None:
        also = ""
        if adapter.embeds is not None:
            also = " that have those of the unconditional half, a picture of zeros, before them"
        raise ConfigError(
            f"ip_adapter {file.name}: the bundle has no image encoder, which it needs. Build the "
            "bundle with one: sdengine build CHECKPOINT -o BUNDLE --image-encoder FOLDER; or give "
            f"embeds{also}."
        )
    given = adapter.embeds.values.shape[-2] if adapter.embeds is not None else encoder.num_states
    if projection.kind == "full" and given != encoder.num_states:
        raise ConfigError.for_field(
            "ip_adapter.embeds",
            f"{given} states",
            f"{encoder.num_states}, as many as the bundle's image encoder makes of the picture of "
            "zeros that the unconditional half reads",
            "Give those of that half before them.",
        )
    width = encoder.hidden_size if projection.reads == "states" else encoder.projection_dim
    if projection.in_width != width:
        what = "states" if projection.reads == "states" else "embeddings"
        raise ConfigError(
            f"ip_adapter {file.name}: it reads {what} of {projection.in_width} numbers; the "
            f"bundle's image encoder {encoder.source} gives {width}. Build the bundle with the "
            "encoder that the adapter was trained with."
        )


def _factors(adapter: IPAdapter, layers: Layers) -> dict[str, float]:
    """Return the scale of each layer that is reached; the longest path that names it counts."""
    if adapter.blocks is None:
        return dict.fromkeys(layers, adapter.scale) if adapter.scale else {}
    found = {}
    unused = {path for path, _ in adapter.blocks}
    for layer in layers:
        fitting = [(p, f) for p, f in adapter.blocks if f"{layer}.".startswith(f"{p}.")]
        unused -= {path for path, _ in fitting}
        _, factor = max(fitting, key=lambda one: len(one[0]), default=("", 0.0))
        if factor * adapter.scale:
            found[layer] = factor * adapter.scale
    if unused:
        known = sorted({layer.rpartition(".transformer_blocks")[0] for layer in layers})
        raise ConfigError.for_field(
            "ip_adapter.blocks", min(unused), f"parts of this U-Net: {', '.join(known)}"
        )
    return found
