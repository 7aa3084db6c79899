"""Tiny autoencoder that goes with a checkpoint, for previews and drafts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdengine.adapters.sources.renaming import Renamer
from sdengine.checkpoints.checkpoint import TINY_VAE, Checkpoint
from sdengine.checkpoints.diffusers_folder import open_folder_weights, part_config
from sdengine.checkpoints.no_parameters import open_parameters
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.tiny_vae import TinyVAEConfig
from sdengine.storage.checkpoint_folder import CheckpointFolder

# A layer of one half: what is before its number, and behind it.
_LAYER = re.compile(r"(?:(?:taesd_)?(encoder|decoder)\.)?(?:(layers)\.)?([0-9]{1,3})\.(.+)")
_BLOCK = "conv.0.weight"


def with_tiny_vae(checkpoint: Checkpoint, place: Path) -> Checkpoint:
    """Return the checkpoint with a tiny autoencoder beside its own.

    Args:
        checkpoint: what it is for.
        place: a folder as diffusers' AutoencoderTiny writes it, or one with such a folder
            "tiny_vae"; or a file with its names or the original ones, of both halves, with
            "encoder." and "decoder." in front, or of one alone.

    Raises:
        CheckpointError: it is none, is damaged, or its latents are not those of the checkpoint.
    """
    try:
        config, open_weights = (_of_folder if place.is_dir() else _of_file)(place)
    except ConfigError as error:
        raise CheckpointError(f"{place}: not a tiny autoencoder: {error}") from None
    check_fits(config, checkpoint, place)
    before = checkpoint.open_weights
    return replace(
        checkpoint,
        tiny_vae_config=config,
        open_weights=lambda part: open_weights() if part == TINY_VAE else before(part),
    )


def check_fits(config: TinyVAEConfig, checkpoint: Checkpoint, place: Path) -> None:
    """Refuse a tiny autoencoder whose latents or pixels are others than the checkpoint's.

    Raises:
        CheckpointError: they are.
    """
    vae = checkpoint.vae_config
    found = (config.latent_channels, config.downscales, {config.in_channels, config.out_channels})
    if found != (vae.latent_channels, {vae.downscale}, {vae.in_channels}):
        cells = " and ".join(map(str, sorted(config.downscales)))
        raise CheckpointError(
            f"{place}: a tiny autoencoder whose latents have {config.latent_channels} channels, a "
            f"cell for {cells} pixels a side; those of {checkpoint.name} have "
            f"{vae.latent_channels}, a cell for {vae.downscale}."
        )


def has_tiny_vae(root: Path) -> bool:
    """Say whether the folder of a checkpoint holds a tiny autoencoder too."""
    return CheckpointFolder(root).find(f"{TINY_VAE}/config.json") is not None


def _of_folder(place: Path) -> tuple[TinyVAEConfig, Callable[[], Weights]]:
    folder = CheckpointFolder(place)
    subfolder = TINY_VAE if has_tiny_vae(place) else "."
    config: TinyVAEConfig = part_config(folder, subfolder, TinyVAEConfig.from_dict)
    return config, lambda: open_folder_weights(folder, TINY_VAE, subfolder, None)


def _of_file(place: Path) -> tuple[TinyVAEConfig, Callable[[], Weights]]:
    config, rename = _described(place)
    return config, lambda: Weights([place], rename)


def _described(place: Path) -> tuple[TinyVAEConfig, Renamer]:
    """Return the configuration that a file's shapes tell, and what its tensors are called today."""
    file = open_parameters(place)
    shapes = {name: file.shape(name) for name in file.names()}
    half = _only_half(shapes)
    renamed = {name: _current(name, half, shapes) for name in shapes}
    layers: dict[str, dict[int, set[str]]] = {"encoder": {}, "decoder": {}}
    by_name = {}
    for name, current in renamed.items():
        if current is not None:
            side, _, index, rest = current.split(".", 3)
            layers[side].setdefault(int(index), set()).add(rest)
            by_name[current] = shapes[name]
    values: dict[str, object] = {}
    for side, found in layers.items():
        blocks = _counts(side, found)
        first = by_name.get(f"{side}.layers.0.weight", (0, 0))
        last = by_name.get(f"{side}.layers.{max(found, default=0)}.weight", (0, 0))
        if blocks and (len(first) != 4 or len(last) != 4):
            raise ConfigError(f"its {side} begins or ends with no convolution.")
        values[f"num_{side}_blocks"] = blocks
        values[f"{side}_block_out_channels"] = (first[0],) * len(blocks)
        if blocks:
            pixels, latents = (first[1], last[0]) if side == "encoder" else (last[0], first[1])
            values["in_channels" if side == "encoder" else "out_channels"] = pixels
            values["latent_channels"] = latents
    return TinyVAEConfig(**values), renamed.get  # type: ignore[arg-type]


def _only_half(shapes: dict[str, tuple[int, ...]]) -> str:
    """Say which half a file is of whose names do not: a decoder ends in three channels."""
    first = next((shapes[name] for name in ("0.weight", "layers.0.weight") if name in shapes), ())
    return "encoder" if len(first) == 4 and first[1] == 3 else "decoder"


def _current(name: str, half: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Return what a tensor is called today; None for what is no layer's.

    In original files the decoder's first layer bends the latents and has no weights, so that its
    convolution is number 1.
    """
    found = _LAYER.fullmatch(name)
    if found is None:
        return None
    side, layers, index, rest = found.groups()
    head = name[: found.start(3)]
    side = side or half
    shift = 1 if side == "decoder" and not layers and f"{head}0.weight" not in shapes else 0
    number = int(index) - shift
    return None if number < 0 else f"{side}.layers.{number}.{rest}"


def _counts(side: str, layers: dict[int, set[str]]) -> tuple[int, ...]:
    """Count the blocks between the convolutions that change the size, from the layers' numbers."""
    if not layers:
        return ()
    counts = [0]
    convolutions = 0
    for index in range(max(layers) + 1):
        if _BLOCK in layers.get(index, ()):
            counts[-1] += 1
        elif index in layers:
            convolutions += 1
            counts.append(0)
    if convolutions < 2:
        raise ConfigError(f"its {side} has {convolutions} convolutions beside its blocks.")
    return tuple(counts[1:-1])  # the first and the last one end no level
