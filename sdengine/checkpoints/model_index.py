"""Model index: what becomes of each entry of a ``model_index.json``.

Source: the constructors of diffusers' pipelines for Stable Diffusion; a test walks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import ConfigError

USED = frozenset(
    {
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "scheduler",
        "force_zeros_for_empty_prompt",
        "requires_aesthetics_score",
    }
)
# They look at finished pictures, mark them, or read pictures that a prompt may bring along.
HARMLESS = frozenset(
    {
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "requires_safety_checker",
        "add_watermarker",
    }
)
NOT_TAKEN_OVER = {
    "controlnet": "a ControlNet is not part of a bundle",
    "adapter": "a T2I-Adapter is not part of a bundle",
}


def read_entries(index: Mapping[str, Any]) -> list[str]:
    """Give every entry its verdict.

    Args:
        index: content of a ``model_index.json``.

    Returns:
        A line for each entry that is not taken over.

    Raises:
        ConfigError: an entry is not known, such as a network that the pipeline would run.
    """
    not_taken_over = []
    for key, value in index.items():
        if key.startswith("_") or key in USED | HARMLESS or value in (None, [None, None]):
            continue
        if key not in NOT_TAKEN_OVER:
            raise ConfigError.for_field(
                key,
                value,
                "an entry of a Stable Diffusion pipeline",
                "If it changes nothing, take it out of the file.",
            )
        not_taken_over.append(f"{key} {_class_name(value)}: {NOT_TAKEN_OVER[key]}")
    return not_taken_over


def _class_name(value: object) -> str:
    return str(value[-1] if isinstance(value, list) and value else value)[:80]
