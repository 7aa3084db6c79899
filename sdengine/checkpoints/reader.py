"""Checkpoint reader: a folder or a single file, whichever comes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdengine.checkpoints.checkpoint import FAMILIES, Checkpoint, family_of
from sdengine.checkpoints.demo_variants import demo_variant
from sdengine.checkpoints.diffusers_folder import read_folder
from sdengine.checkpoints.folder import DEMO_CHECKPOINT, DEMO_TINY, DEMO_UNETS
from sdengine.checkpoints.formats.tensor_files import ENDINGS
from sdengine.checkpoints.separate_unet import with_separate_unet
from sdengine.checkpoints.separate_vae import with_separate_vae
from sdengine.checkpoints.single_file import read_single_file
from sdengine.checkpoints.tiny_vae import has_tiny_vae, with_tiny_vae
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import ARCHITECTURES, ModelArchitecture

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_VARIANT = re.compile(r"[A-Za-z0-9_-]{1,40}")

PathLike = str | os.PathLike[str]
_TAKEN = {
    "checkpoint": f"demo, {', '.join(DEMO_UNETS)}, a folder as diffusers writes them, with "
    "model_index.json, unet, vae, text_encoder, tokenizer and scheduler",
    "vae": "the folder of an autoencoder or of a whole checkpoint as diffusers writes it",
    "tiny_vae": "demo-tiny, or a folder that diffusers' AutoencoderTiny wrote, with config.json",
}


def load_checkpoint(
    path: PathLike,
    *,
    variant: str | None = None,
    base: PathLike | None = None,
    vae: PathLike | None = None,
    tiny_vae: PathLike | None = None,
    family: str | ModelArchitecture | None = None,
    prediction_type: str | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Open a checkpoint; its weights are read when a network is asked for.

    Args:
        path: a folder as diffusers writes them, a single file with the names of the original
            implementation (.safetensors, .ckpt, .pt, .pth, .bin), "demo", or its variants
            "demo-inpainting" of nine channels and "demo-depth" of five.
        variant: which of a folder's sets of weights, such as "fp16"; networks that have none of it
            come from the plain one.
        base: a checkpoint that gives everything but the U-Net, which `path` then holds: in a file
            (of a whole model or of the U-Net alone) or a folder.
        vae: a file or folder whose autoencoder replaces the checkpoint's.
        tiny_vae: a file or folder of a tiny autoencoder (TAESD) that goes with it, for previews and
            drafts; a folder named so within the checkpoint's is taken by itself; "demo-tiny" is
            the demo model's own.
        family: refuse a checkpoint that is not of this family: "sd1", "sd2", "sdxl" or
            "sdxl-refiner". Or the name of a published architecture, such as "sd15", or an
            architecture of one's own, which a single file then has to fit instead of what its
            tensors say.
        prediction_type: what the U-Net predicts, where the checkpoint says it wrongly or not at
            all: "epsilon", "v_prediction" or "sample".
        scheduler: keys that replace those of its ``scheduler_config.json``, such as
            {"clip_sample": False}.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another kind of model.
        ConfigError: an argument is invalid.
    """
    architecture = _architecture(family)
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise ConfigError.for_field("prediction_type", prediction_type, ", ".join(PREDICTION_TYPES))
    if base is None:
        checkpoint = _open(path, variant, architecture)
    else:
        _check_variant(variant)
        rest = _open(base, None, None)
        checkpoint = with_separate_unet(rest, _existing("checkpoint", path), variant)
    wanted = family if architecture is None else family_of(architecture)
    named = family if architecture is None else architecture.name
    if wanted is not None and checkpoint.family != wanted:
        raise CheckpointError(
            f"{checkpoint.root}: family {named!r} was asked for; its networks are those of "
            f"{checkpoint.family!r}."
        )
    changes = dict(scheduler or {})
    if prediction_type is not None:
        changes["prediction_type"] = prediction_type
    if changes:
        schedule = {**checkpoint.scheduler_config, **changes}
        checkpoint = replace(checkpoint, scheduler_config=schedule)
    checkpoint = _without_what_was_given(checkpoint, family, prediction_type)
    if vae is not None:
        checkpoint = with_separate_vae(checkpoint, _existing("vae", vae))
    if tiny_vae is not None:
        tiny = DEMO_TINY if tiny_vae == "demo-tiny" else _existing("tiny_vae", tiny_vae)
        checkpoint = with_tiny_vae(checkpoint, tiny)
    return checkpoint


def _without_what_was_given(
    checkpoint: Checkpoint, family: object, prediction_type: object
) -> Checkpoint:
    """Leave out the guesses that the caller's arguments make none."""
    given = {"family": family is not None, "prediction type": prediction_type is not None}
    left = tuple(guess for guess in checkpoint.guesses if not given.get(guess.what, False))
    return replace(checkpoint, guesses=left)


def _check_variant(variant: object) -> None:
    if variant is not None and not (isinstance(variant, str) and _VARIANT.fullmatch(variant)):
        raise ConfigError.for_field("variant", variant, "a word such as 'fp16'")


def _architecture(family: str | ModelArchitecture | None) -> ModelArchitecture | None:
    if family is None or isinstance(family, ModelArchitecture):
        return family
    if not isinstance(family, str) or family not in (*FAMILIES, *ARCHITECTURES):
        raise ConfigError.for_field("family", family, ", ".join((*FAMILIES, *ARCHITECTURES)))
    return ARCHITECTURES.get(family)


def _open(
    path: PathLike, variant: str | None, architecture: ModelArchitecture | None
) -> Checkpoint:
    _check_variant(variant)
    if isinstance(path, str) and path in DEMO_UNETS:
        if variant is not None:
            raise ConfigError.for_field("variant", variant, f"nothing: {path} has no variants")
        return demo_variant(path)
    place = DEMO_CHECKPOINT if path == "demo" else _existing("checkpoint", path)
    if place.is_dir():
        checkpoint = read_folder(place, variant=variant)
        return with_tiny_vae(checkpoint, place) if has_tiny_vae(place) else checkpoint
    if place.suffix.lower() not in ENDINGS:
        raise CheckpointError(
            f"checkpoint {str(place)!r} is not a folder, nor a file that ends in "
            f"{', '.join(ENDINGS)}."
        )
    if variant is not None:
        raise ConfigError.for_field("variant", variant, "nothing: a single file has no variants")
    return read_single_file(place, architecture)


def _existing(argument: str, path: PathLike) -> Path:
    try:
        place = Path(os.fsdecode(path))
    except TypeError:
        raise ConfigError.for_field(
            argument, path, "the path of a folder or file" + ", or 'demo'" * ("vae" not in argument)
        ) from None
    try:
        what = "" if place.is_dir() or place.is_file() else "does not exist"
    except (OSError, ValueError) as error:
        what = f"cannot be read: {error}"
    if what or not os.fsdecode(path):
        raise CheckpointError.of_usage(
            f"{argument} {str(path)[:200]!r} {what or 'is empty'}. Give {_TAKEN[argument]}, or a "
            "single file."
        )
    return place
