"""Single files with the names of the original implementations, of every family.

Which family it is follows from where the text encoders lie. What the U-Net predicts is not in any
shape; it is taken, in this order, from the keys ``v_pred`` and ``ztsnr`` that trainers add, from
the ``modelspec`` metadata, and from a guess, which is told: see `guesses`. Stable Diffusion 2 that
predicts v was trained at 768 pixels, else at 512.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from sdengine.adapters.sources.layouts import (
    LAYOUTS,
    UNET_PREFIX,
    VAE_PREFIX,
    family_of_names,
    foreign_key,
    text_names,
)
from sdengine.adapters.sources.parameters import said_prediction
from sdengine.adapters.sources.renaming import Renamer, unet_names, vae_names
from sdengine.checkpoints.checkpoint import Checkpoint, family_of
from sdengine.checkpoints.diffusers_folder import distilled_defaults
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.formats.tensor_files import TensorFile
from sdengine.checkpoints.guesses import Guess, guess_prediction
from sdengine.checkpoints.ldm_configs import (
    Shapes,
    absent_vae_config,
    clip_config,
    openclip_config,
    unet_config,
    vae_config,
)
from sdengine.checkpoints.no_parameters import ParameterFile, open_parameters
from sdengine.checkpoints.schedules import noise_schedule_config
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import ModelArchitecture
from sdengine.storage.checkpoint_folder import CheckpointFolder

_SD2_SMALL = 512
_RESOLUTION = re.compile(r"([1-9][0-9]{1,3}) ?x ?\1")
_PIXELS = {"sd1": 512, "sd2": 768, "sdxl": 1024, "sdxl-refiner": 1024}


def read_single_file(path: Path, architecture: ModelArchitecture | None = None) -> Checkpoint:
    """Open a single file; its tokenizer is CLIP's own, its noise schedule the family's.

    Args:
        path: an existing file.
        architecture: what the tensors have to fit, or None to read it off them.

    Raises:
        CheckpointError: it is damaged, incomplete, or of another kind of model.
    """
    file = open_parameters(path)
    try:
        return _read(path, file, architecture)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its tensors are of no known shape: {error}") from None


def _read(path: Path, file: ParameterFile, architecture: ModelArchitecture | None) -> Checkpoint:
    family = _family(path, file.names())
    layout = LAYOUTS[family]
    prediction = said_prediction(file)
    guesses = []
    if architecture is None:
        guesses.append(_guess_family(family))
        if prediction is None:
            guesses.append(guess_prediction(file, family, UNET_PREFIX))
            prediction = guesses[-1].value
        pixels, size = _pixels(family, file, prediction)
        guesses += size
        try:
            configs = _configs_of_shapes(file, family, pixels)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}. The file is incomplete.") from None
    else:
        configs = _configs_of_architecture(path, architecture, family)
        prediction = prediction or architecture.prediction_type
    scheduler = noise_schedule_config(prediction, zero_snr="ztsnr" in file.names())
    return Checkpoint(
        root=path,
        name=path.stem[:200] or "checkpoint",
        unet_config=configs["unet"],
        vae_config=configs["vae"],
        text_encoder_configs={encoder.part: configs[encoder.part] for encoder in layout},
        pad_tokens={encoder.part: encoder.pad_token for encoder in layout},
        scheduler_config=scheduler,
        defaults=distilled_defaults(configs["unet"], scheduler),
        zero_empty_negative=family == "sdxl",
        requires_aesthetic_score=family == "sdxl-refiner",
        open_weights=lambda part: _open_weights(path, family, configs, part),
        read_tokenizer=lambda: read_tokenizer(CheckpointFolder(demo_tokenizer_dir()), "."),
        guesses=tuple(guesses),
    )


def refuse_foreign(path: Path, names: list[str]) -> None:
    """Refuse a model of a noise process that is not computed here.

    Raises:
        CheckpointError: the names tell of one.
    """
    if foreign := foreign_key(names):
        raise CheckpointError(
            f"{path}: {foreign!r} marks a model of another noise process (EDM), which is not "
            "supported."
        )


def _guess_family(family: str) -> Guess:
    places = " and ".join(f"{encoder.prefix}*" for encoder in LAYOUTS[family])
    return Guess("family", family, f"its text encoders are {places}", "--family")


def _family(path: Path, names: list[str]) -> str:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if not has(UNET_PREFIX):
        first = ", ".join(repr(name[:80]) for name in sorted(names)[:3]) or "nothing"
        raise CheckpointError(
            f"{path}: not a whole Stable Diffusion checkpoint: there is no {UNET_PREFIX}*; it "
            f"holds {first}... A LoRA, an embedding or a single network is not a checkpoint; to a "
            "U-Net alone --base gives the rest."
        )
    refuse_foreign(path, names)
    if family := family_of_names(names):
        return family
    expected = ", ".join(f"{encoder.prefix}*" for layout in LAYOUTS.values() for encoder in layout)
    raise CheckpointError(
        f"{path}: there is a U-Net, but no text encoder; expected {expected}. The file is of "
        "another kind of model, or holds a U-Net alone, to which --base gives the rest."
    )


def _shapes(file: TensorFile, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): file.shape(name)
        for name in file.names()
        if name.startswith(prefix)
    }


def _configs_of_shapes(file: TensorFile, family: str, pixels: int) -> dict[str, Any]:
    configs: dict[str, Any] = {}
    pooled_dim = 0
    for encoder in LAYOUTS[family]:
        shapes = _shapes(file, encoder.prefix)
        if encoder.kind == "clip":
            configs[encoder.part] = clip_config(shapes)
        else:
            projects = encoder.kind == "projected"
            configs[encoder.part] = openclip_config(shapes, projects=projects)
            pooled_dim = configs[encoder.part].projection_dim if projects else 0
    latents = pixels // 8
    configs["unet"] = unet_config(_shapes(file, UNET_PREFIX), family, pooled_dim, latents)
    vae_shapes: Shapes = _shapes(file, VAE_PREFIX)
    # A file may leave the autoencoder to a separate one; asking for its weights then fails.
    make = functools.partial(vae_config, vae_shapes) if vae_shapes else absent_vae_config
    configs["vae"] = make(family, pixels)
    return configs


def _configs_of_architecture(
    path: Path, architecture: ModelArchitecture, family: str
) -> dict[str, Any]:
    if family_of(architecture) != family:
        raise CheckpointError(
            f"{path}: {architecture.name!r} was asked for; the text encoders are those of "
            f"{family!r}."
        )
    texts = zip(architecture.text_parts, architecture.text_encoders, strict=True)
    return {**dict(texts), "unet": architecture.unet, "vae": architecture.vae}


def _open_weights(path: Path, family: str, configs: dict[str, Any], part: str) -> Weights:
    if part == "unet":
        return _prefixed(path, UNET_PREFIX, unet_names(configs["unet"].num_layers))
    if part == "vae":
        return _prefixed(path, VAE_PREFIX, vae_names(len(configs["vae"].block_out_channels)))
    encoder = next(encoder for encoder in LAYOUTS[family] if encoder.part == part)
    config = configs[part]
    rename = text_names(encoder.kind, config.num_hidden_layers, config.with_projection)
    return _prefixed(path, encoder.prefix, rename)


def _prefixed(path: Path, prefix: str, rename: Renamer) -> Weights:
    weights = Weights([path], rename, prefix)
    if not weights.names():
        hint = " Name a separate autoencoder (vae)." if prefix == VAE_PREFIX else ""
        raise CheckpointError(f"{path}: there is no {prefix}*; the file lacks this network.{hint}")
    return weights


def _pixels(family: str, file: TensorFile, prediction: str) -> tuple[int, list[Guess]]:
    """Return the side of the pictures that the model was trained with, and the guess that it is."""
    said = _RESOLUTION.fullmatch(file.metadata.get("modelspec.resolution", ""))
    if said is not None and int(said[1]) % 8 == 0:
        return int(said[1]), []
    is_small = family == "sd2" and prediction != "v_prediction"
    pixels = _SD2_SMALL if is_small else _PIXELS[family]
    reason = f"{family} as published with this prediction type was trained at it"
    return pixels, [Guess("size", str(pixels), reason, "--resolutions")]
