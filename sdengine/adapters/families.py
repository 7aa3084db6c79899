"""Families of models: what an adapter that does not fit was made for, told from its own shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sdengine.adapters.modules import Module
from sdengine.adapters.products import OF_MATRICES, Parts, UnfittingError

_CROSS_ATTENTION = re.compile(r".*attn2[._](?:processor\.)?to_[kv](?:_lora)?")
_BY_WIDTH = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
# Modules that no U-Net of Stable Diffusion has.
_BY_NAME = (
    (re.compile(r"(double|single)_(transformer_)?blocks"), "FLUX or a relative of it"),
    (re.compile(r"joint_blocks|context_embedder"), "Stable Diffusion 3"),
    (re.compile(r"lora_prior_"), "Stable Cascade"),
    (re.compile(r"(^|_|\.)transformer[._](transformer_)?blocks"), "a diffusion transformer"),
)


def made_for(groups: Mapping[str, Parts], metadata: Mapping[str, str]) -> str:
    """Say what a file's shapes and names tell of its model; "" where they tell nothing.

    Args:
        groups: the parts of each stem.
        metadata: of the file.
    """
    for stem, parts in groups.items():
        width = _input_width(parts) if _CROSS_ATTENTION.fullmatch(stem) else None
        if width is not None:
            return _family(width)
    for stem in groups:
        for pattern, family in _BY_NAME:
            if pattern.search(stem):
                return family
    version = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture")
    return version[:40] if version else ""


def family_of(modules: Iterable[Module]) -> str:
    """Say what the modules of a bundle are."""
    for module in modules:
        if _CROSS_ATTENTION.fullmatch(module.path) and module.weight is not None:
            return _family(module.weight[1])
    return "without cross-attention"


def _family(width: int) -> str:
    name = _BY_WIDTH.get(width)
    wide = f"cross-attention {width} wide"
    return f"{name} ({wide})" if name else f"a model with {wide}"


def _input_width(parts: Parts) -> int | None:
    for product in OF_MATRICES:
        if product.parts & parts.keys():
            try:
                return product.shape(parts, ())[1]
            except (UnfittingError, IndexError):
                return None
    return None
