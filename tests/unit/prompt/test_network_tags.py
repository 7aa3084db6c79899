"""Tags of networks are read as the web UI reads them."""

from __future__ import annotations

import pytest

from sdengine.errors import ConfigError
from sdengine.prompt.network_tags import NetworkTag, parse_tag, split_tags


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("<lora:cat>", NetworkTag("lora", "cat")),
        ("<lora:cat:0.8>", NetworkTag("lora", "cat", 0.8, 0.8)),
        ("<lora:cat:0.8:-2>", NetworkTag("lora", "cat", 0.8, -2.0)),
        ("<lora:cat:0.8:1:16>", NetworkTag("lora", "cat", 0.8, 1.0, 16)),
        ("<lora:cat:te=0.5:unet=0>", NetworkTag("lora", "cat", 0.5, 0.0)),
        ("<lora:cat:unet=0.5>", NetworkTag("lora", "cat", 1.0, 0.5)),
        ("<lora:cat:te=0.5>", NetworkTag("lora", "cat", 0.5, 0.5)),
        ("<lora:cat:1:dyn=4>", NetworkTag("lora", "cat", 1.0, 1.0, 4)),
        ("<LoRA:my cat v2 (final):1.5>", NetworkTag("lora", "my cat v2 (final)", 1.5, 1.5)),
        ("<lyco:cat:0>", NetworkTag("lora", "cat", 0.0, 0.0)),
        ("<hypernet:old:0.3>", NetworkTag("hypernet", "old", 0.3, 0.3)),
    ],
)
def test_tags(tag: str, found: NetworkTag) -> None:
    assert parse_tag(tag) == found
    assert split_tags(f"a {tag} b") == ("a  b", [tag])


@pytest.mark.parametrize(
    "tag",
    [
        "<lora: >",
        "<lora::1>",
        "<lora:cat:>",
        "<lora:cat:x>",
        "<lora:cat:nan>",
        "<lora:cat:1e9>",
        "<lora:cat:1:1:1:1>",
        "<lora:cat:te=1:te=2>",
        "<lora:cat:0.5:te=2>",
        "<lora:cat:strength=1>",
        "<lora:cat:1:1:0.5>",
        "<lora:cat:dyn=0>",
        "<lora:cat:dyn=65537>",
        "<lora:cat:dyn=99999999999999999999999x>",
        "<other:cat>",
        "lora:cat",
    ],
)
def test_malformed_tags_are_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        parse_tag(tag)
