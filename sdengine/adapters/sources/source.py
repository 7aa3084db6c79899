"""Source: a checkpoint whose weights fit a bundle, checked before any of them is used."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from sdengine.adapters.sources.array_file import ArrayFile, ArrayWeights, open_arrays
from sdengine.adapters.sources.layouts import (
    LAYOUTS,
    ORIGINAL_MARK,
    UNET_LAYOUTS,
    VAE_PREFIX,
    family_of_names,
    foreign_key,
    text_names,
)
from sdengine.adapters.sources.own import Own
from sdengine.adapters.sources.placement import Shapes
from sdengine.adapters.sources.renaming import (
    Piece,
    Renamer,
    current_name,
    unet_names,
    vae_names,
)
from sdengine.adapters.sources.settings import check_folder, check_said
from sdengine.errors import CheckpointError
from sdengine.inputs.models import FoundModel
from sdengine.storage.checkpoint_folder import CheckpointFolder
from sdengine.storage.content_hash import HashedFile

Array = NDArray[Any]
FIRST_CONVOLUTION = "conv_in.weight"
# What goes with each half of an autoencoder.
_VAE_OUTSIDE = {"encoder": ("quant_conv.",), "decoder": ("post_quant_conv.",)}
_RESNET = re.compile(r"down_blocks\.(\d{1,3})\.resnets\.(\d{1,3})\.conv1\.weight")
_VAE_LEVEL = re.compile(r"(?:encoder\.down|decoder\.up)_blocks\.(\d{1,3})\..+")
_TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d{1,4})\..+")


@dataclass(frozen=True)
class Source:
    """A checkpoint whose networks are those of a bundle, but for their numbers.

    Args:
        found: its files.
        parts: its networks' tensors; those that it lacks are not there.
        notes: what a user should know of it.
    """

    found: FoundModel
    parts: Mapping[str, ArrayWeights] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Iterator[HashedFile]:
        """Its files as they were opened."""
        return (handle.holder for part in self.parts.values() for handle in part.opened)

    def part_sha256(self, part: str) -> str:
        """Return the hash of a part's files; "" where it lacks the part."""
        return self.found.part_sha256(part) if part in self.parts else ""

    def array(self, part: str, name: str, shape: tuple[int, ...]) -> Array:
        """Return a parameter in the type that it is stored in.

        Args:
            part, name: of it.
            shape: of the bundle's own; the first convolution may have fewer input channels.
        """
        values = self.parts[part].array(name)
        if name == FIRST_CONVOLUTION and part == "unet" and values.ndim == 4:
            return values
        return values.reshape(shape)


def read_source(found: FoundModel, own: Own) -> Source:
    """Open a checkpoint and check that its networks fit a bundle.

    Args:
        found: a folder as diffusers writes them, of a whole checkpoint or of a U-Net; or a file
            with the names of the original implementation, or a U-Net alone under those or
            diffusers'.
        own: the bundle's parameters.

    Raises:
        CheckpointError: it is missing, damaged, of another model or another noise schedule; the
            message names the tensor and both shapes, or the setting and both values.
    """
    path = found.path
    try:
        source = _of_folder(found, own) if path.is_dir() else _of_file(found, own)
        for part, weights in source.parts.items():
            _check_part(part, weights, own)
        known = {sha256 for part in found.files.values() for sha256 in part.values()}
        if any(holder.sha256 not in known for holder in source.files):
            raise CheckpointError("it was overwritten after it was found. Give it again.")
    except CheckpointError as error:
        raise CheckpointError(f"model {str(path)!r}: {error}") from None
    return source


def _of_file(found_model: FoundModel, own: Own) -> Source:
    path = found_model.path
    file = open_arrays(path)
    names = set(file.names())
    if key := foreign_key(names):
        raise CheckpointError(
            f"{key!r} marks a model of another noise process (EDM), which is not supported."
        )
    found = next(((p, mark) for p, mark in UNET_LAYOUTS if f"{p}{mark}" in names), None)
    if found is None:
        first = ", ".join(repr(name[:80]) for name in sorted(names)[:3]) or "nothing"
        raise CheckpointError(
            f"there is no U-Net, neither {UNET_LAYOUTS[0][0]}{ORIGINAL_MARK} nor "
            f"{UNET_LAYOUTS[2][1]}; it holds {first}... A LoRA goes to `loras`, an embedding to "
            "`embeddings`, a hypernetwork to `hypernetworks`."
        )
    check_said(file, own)
    family = family_of_names(names)
    open_file: Callable[[Any], ArrayFile] = lambda _: file  # noqa: E731
    prefix, mark = found
    unet: Renamer = _unet_names(own) if mark == ORIGINAL_MARK else str
    parts = {"unet": ArrayWeights([path], unet, prefix, open_file)}
    for place in LAYOUTS.get(own.architecture.family, ()):
        shapes = own.parts.get(place.part)
        if shapes is not None and any(name.startswith(place.prefix) for name in names):
            rename = text_names(place.kind, _layers(shapes), "text_projection.weight" in shapes)
            parts[place.part] = ArrayWeights(
                [path], _only_used(place.part, rename, own), place.prefix, open_file
            )
    if "vae" in own.parts and any(name.startswith(VAE_PREFIX) for name in names):
        rename = _only_used("vae", vae_names(_vae_levels(own)), own)
        parts["vae"] = ArrayWeights([path], rename, VAE_PREFIX, open_file)
    if family and family != own.architecture.family:
        told = f"It is a checkpoint of {family}; this bundle is of {own.architecture.family}."
        try:
            _check_part("unet", parts["unet"], own)
        except CheckpointError as error:  # which names tensors and shapes
            raise CheckpointError(f"{error} {told}") from None
        raise CheckpointError(told)
    return Source(found_model, parts, _notes_on_lacking(parts, own))


def _of_folder(found: FoundModel, own: Own) -> Source:
    places = {part: place for part, place in found.places.items() if part in own.parts}
    check_folder(CheckpointFolder(found.path), places, own)
    parts = {}
    for part in places:
        rename = _only_used(part, functools.partial(current_name, part), own)
        parts[part] = ArrayWeights(list(found.files[part]), rename)
    return Source(found, parts, _notes_on_lacking(parts, own))


def _notes_on_lacking(parts: Mapping[str, Any], own: Own) -> tuple[str, ...]:
    lacking = [part for part in own.parts if part not in parts]
    return (f"it holds no {', '.join(lacking)}; the bundle's stays",) if lacking else ()


def _check_part(part: str, weights: ArrayWeights, own: Own) -> None:
    expected: Shapes = {name: tensor.shape for name, tensor in own.parts[part].items()}
    wanted = expected.get(FIRST_CONVOLUTION, ()) if part == "unet" else ()
    if len(wanted) == 4 and FIRST_CONVOLUTION in weights.names():
        plain = own.architecture.vae.latent_channels
        found = weights.stored_shape(FIRST_CONVOLUTION)
        # A model of text to image, for one that reads a picture beside the latents.
        if wanted[1] > plain and found == (wanted[0], plain, *wanted[2:]):
            expected = {**expected, FIRST_CONVOLUTION: found}
    try:
        weights.check(expected)
    except CheckpointError as error:
        raise CheckpointError(f"{part}: {error}") from None


def _unet_names(own: Own) -> Renamer:
    matches = [_RESNET.fullmatch(name) for name in own.parts["unet"]]
    counts: dict[int, int] = {}
    for match in matches:
        if match:
            level = int(match[1])
            counts[level] = max(counts.get(level, 0), int(match[2]) + 1)
    return unet_names([counts[level] for level in sorted(counts)])


def _vae_levels(own: Own) -> int:
    matches = [_VAE_LEVEL.fullmatch(name) for name in own.parts["vae"]]
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _layers(shapes: Mapping[str, Any]) -> int:
    matches = [_TEXT_LAYER.fullmatch(name) for name in shapes]
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _only_used(part: str, rename: Renamer, own: Own) -> Renamer:
    """Return a renamer that leaves out what no network of the bundle reads.

    These are the last layers of a text encoder, its projection, or half of an autoencoder.
    """
    known = own.parts[part]
    if part == "vae":
        halves = {half: any(n.startswith(f"{half}.") for n in known) for half in _VAE_OUTSIDE}
        gone = tuple(
            start
            for half, others in _VAE_OUTSIDE.items()
            if not halves[half]
            for start in (f"{half}.", *others)
        )
    else:
        gone = () if "text_projection.weight" in known else ("text_projection.",)
    layers = _layers(known)

    def used(name: str) -> bool:
        layer = _TEXT_LAYER.fullmatch(name)
        return not (name.startswith(gone) or (layer and int(layer[1]) >= layers))

    def renamed(stored: str) -> Any:
        found = rename(stored)
        if found is None:
            return None
        pieces = (Piece(found),) if isinstance(found, str) else found
        return tuple(piece for piece in pieces if used(piece.name)) or None

    return renamed
