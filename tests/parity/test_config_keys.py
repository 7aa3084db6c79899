"""Every key of a configuration has a verdict: used, accepted at one value, or harmless."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import diffusers
import pytest
from transformers import CLIPTextConfig

from sdengine.models import controlnet, unet, vae
from sdengine.models.text_encoder import TextEncoderConfig

_UPCAST = "computes attention in fp32, which the kernels here decide by themselves"
_DROPOUT = "does nothing at inference"
_UNUSED = "belongs to what another key switches on, which is refused"
HARMLESS: dict[str, dict[str, str]] = {
    "unet": {
        "dropout": _DROPOUT,
        "upcast_attention": _UPCAST,
        "addition_embed_type_num_heads": _UNUSED,
        "mid_block_only_cross_attention": _UNUSED,
        "time_embedding_dim": "checked against the width that it has to be",
    },
    "controlnet": {"upcast_attention": _UPCAST, "addition_embed_type_num_heads": _UNUSED},
    "vae": {"force_upcast": "the autoencoder of SDXL is computed in a type of enough range"},
    "text_encoder": {
        "attention_dropout": _DROPOUT,
        "initializer_factor": "of training",
        "initializer_range": "of training",
        "pad_token_id": "padding is the tokenizer's",
        "kwargs": "not a key",
    },
}
USED = {
    "unet": {f.name for f in fields(unet.UNetConfig)} | unet._FIXED.keys(),
    "vae": {f.name for f in fields(vae.VAEConfig)} | vae._FIXED.keys(),
    "controlnet": (
        {f.name for f in fields(controlnet.ControlNetConfig)}
        | {f.name for f in fields(unet.UNetConfig)}
        | unet._FIXED.keys()
        | controlnet._FIXED.keys()
    ),
    "text_encoder": {f.name for f in fields(TextEncoderConfig)},
}
THEIRS: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "controlnet": diffusers.ControlNetModel,
    "text_encoder": CLIPTextConfig,
}


def keys_of(network: str) -> dict[str, Any]:
    """Return the keys that their library reads, with its defaults."""
    theirs = THEIRS[network]
    if network == "text_encoder":
        own = {name: getattr(theirs(), name) for name in inspect.get_annotations(theirs)}
        return {name: value for name, value in own.items() if not callable(value)}
    parameters = inspect.signature(theirs.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


@pytest.mark.parametrize("network", THEIRS)
def test_every_key_has_a_verdict(network: str) -> None:
    unknown = keys_of(network).keys() - USED[network] - HARMLESS[network].keys()
    transformers_own = {"base_config_key", "model_type"}
    assert unknown - transformers_own == set()


@pytest.mark.parametrize(
    ("network", "config_class"), [("unet", unet.UNetConfig), ("vae", vae.VAEConfig)]
)
def test_a_key_that_is_left_out_means_what_it_means_to_diffusers(
    network: str, config_class: Any
) -> None:
    read = config_class.from_dict({})
    for key, default in keys_of(network).items():
        if key in {f.name for f in fields(config_class)} - {"sample_size"}:
            assert getattr(read, key) == default, key
