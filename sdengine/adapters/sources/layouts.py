"""Layouts of single files: where the original implementations' files hold each network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdengine.adapters.sources.renaming import Renamer, clip_names, openclip_names

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
ORIGINAL_MARK = "input_blocks.0.0.weight"
DIFFUSERS_MARK = "conv_in.weight"
# What the names of a U-Net begin with, by what follows them; a whole checkpoint's come first.
UNET_LAYOUTS = (
    (UNET_PREFIX, ORIGINAL_MARK),
    ("diffusion_model.", ORIGINAL_MARK),
    ("", ORIGINAL_MARK),
    ("", DIFFUSERS_MARK),
    ("unet.", DIFFUSERS_MARK),
)
END_OF_TEXT = "<|endoftext|>"
_PAD = "!"
# Keys of models that are trained for another noise process than the schedules here describe.
_FOREIGN_KEYS = ("edm_mean", "edm_vpred.sigma_max")


@dataclass(frozen=True)
class TextPlace:
    """Where a family's files hold a text encoder, by whose names, and what they pad with."""

    part: str
    prefix: str
    kind: str
    pad_token: str


_CLIP = TextPlace("text_encoder", "cond_stage_model.transformer.", "clip", END_OF_TEXT)
_OPENCLIP = TextPlace("text_encoder", "cond_stage_model.model.", "openclip", _PAD)
_FIRST = TextPlace("text_encoder", "conditioner.embedders.0.transformer.", "clip", END_OF_TEXT)
_SECOND = TextPlace("text_encoder_2", "conditioner.embedders.1.model.", "projected", _PAD)
_ONLY = TextPlace("text_encoder_2", "conditioner.embedders.0.model.", "projected", _PAD)
# In this order, because SDXL's keys would also match what its refiner has.
LAYOUTS = {
    "sdxl": (_FIRST, _SECOND),
    "sdxl-refiner": (_ONLY,),
    "sd2": (_OPENCLIP,),
    "sd1": (_CLIP,),
}


def text_names(kind: str, layers: int, with_projection: bool) -> Renamer:
    """Return the renamer of a text encoder.

    Args:
        kind: of a TextPlace.
        layers: that the network here has.
        with_projection: it projects its pooled output.
    """
    if kind == "clip":
        return clip_names(with_projection)
    return openclip_names(layers, with_projection)


def family_of_names(names: Iterable[str]) -> str:
    """Return the family whose text encoders a file holds; "" where it has none of them."""
    known = list(names)
    for family, layout in LAYOUTS.items():
        if all(any(name.startswith(place.prefix) for name in known) for place in layout):
            return family
    return ""


def foreign_key(names: Iterable[str]) -> str:
    """Return the key that marks a model of a noise process that is not computed here, or ""."""
    return next((key for key in _FOREIGN_KEYS if key in set(names)), "")
