"""Image prompts of a U-Net: its cross-attentions, and what they read of pictures beside the text.

For each adapter and each cross-attention that it steers there are keys and values [rows, tokens,
channels]; values have the adapter's scale in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from sdengine.bundle.schema_fields import Positive, Strict

IMAGE_ENCODER = "image_encoder"
_KEYS, _VALUES = "image_keys", "image_values"
_CROSS = re.compile(
    r"((?P<block>down_blocks|up_blocks|mid_block)\.(?:(?P<level>[0-9]+)\.)?attentions\."
    r"(?P<place>[0-9]+)\.transformer_blocks\.(?P<depth>[0-9]+))\.attn2\.to_k\.weight"
)
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")


class ImageEncoderArchitecture(Strict):
    """Describe the network `image_encoder`, a CLIP image encoder, as far as runs need to know it.

    Args:
        image_size: pixels along a side of the square that it reads.
        patch_size: of the squares that this is cut into.
        hidden_size: numbers of a state.
        projection_dim: numbers of a picture's embedding.
        source, sha256: the name and the content's hash of what it was built from.
        config: the checkpoint's own configuration.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)]
    patch_size: Annotated[int, Field(ge=1, le=64)]
    hidden_size: Positive
    projection_dim: Positive
    source: Annotated[str, Field(max_length=200)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _squares_fill_it(self) -> ImageEncoderArchitecture:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_encoder: {self.image_size} pixels in squares of {self.patch_size}"
            )
        return self

    @property
    def num_states(self) -> int:
        """Of a picture: one of each square, and that of the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def cross_attentions(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Return a U-Net's cross-attentions in the order in which IP-Adapters number them.

    Args:
        shapes: of the U-Net's parameters, by name.

    Returns:
        Channels of the keys and width of the text, by the path of the transformer block.

    Source: diffusers' attention processors: the way down, the way up, then the middle.
    """
    found = []
    for name, shape in shapes.items():
        if (match := _CROSS.fullmatch(name)) is not None and len(shape) == 2:
            numbers = (int(match[key] or 0) for key in ("level", "place", "depth"))
            place = (_BLOCKS.index(match["block"]), *numbers)
            found.append((place, match[1], (shape[0], shape[1])))
    return {path: widths for _, path, widths in sorted(found)}


def prompt_inputs(adapter: int, layer: str) -> tuple[str, str]:
    """Return the names of the keys and the values that a cross-attention reads of an adapter."""
    return f"{_KEYS}_{adapter}.{layer}", f"{_VALUES}_{adapter}.{layer}"


def parse_prompt_input(name: str) -> tuple[int, str, bool] | None:
    """Return the adapter and layer of such a name, and whether it is of keys; None of another."""
    head, _, layer = name.partition(".")
    kind, _, adapter = head.rpartition("_")
    if kind not in (_KEYS, _VALUES) or not adapter.isdecimal() or not layer:
        return None
    return int(adapter), layer, kind == _KEYS


def is_image_prompt(name: str) -> bool:
    """Say whether an input is what a cross-attention reads of pictures."""
    return name.startswith((_KEYS, _VALUES))
