"""Hostile configurations: a typed error, or a network that can be built and run."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tiny_architectures import TINY_SD15, TINY_SDXL
from torch import nn

from sdengine.errors import ConfigError
from sdengine.models.contracts import make_contract
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

SETTINGS = settings(max_examples=80, deadline=None)
SIZE = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 24])
DEPTH = st.one_of(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=3))
ANYTHING = st.one_of(
    st.none(), st.booleans(), SIZE, st.text(max_size=3), st.floats(), st.lists(SIZE)
)


def changes(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a few fields, mostly of the right type."""
    chosen = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(
            {name: st.one_of(fields[name], fields[name], ANYTHING) for name in names}
        )
    )


def run(name: str, module: nn.Module) -> None:
    """Run a network at the smallest size at which a norm has several numbers."""
    try:
        contract = make_contract(name, module.eval(), num_time_ids=6)
    except ConfigError:
        return
    height, width = 3 * contract.multiple, 2 * contract.multiple
    with torch.no_grad():
        contract.module(*contract.example(1, height, width, seed=0))


UNET = {
    "block_out_channels": st.lists(SIZE, max_size=4),
    "layers_per_block": st.one_of(SIZE.filter(lambda n: n < 4), st.lists(SIZE, max_size=3)),
    "attention_head_dim": st.one_of(SIZE, st.lists(SIZE, max_size=4)),
    "transformer_layers_per_block": st.one_of(DEPTH, st.lists(DEPTH, max_size=4)),
    "reverse_transformer_layers_per_block": st.one_of(st.none(), st.lists(DEPTH, max_size=4)),
    "mid_block_type": st.sampled_from([None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn", "x"]),
    "norm_num_groups": SIZE,
    "norm_eps": st.floats(0, 1),
    "cross_attention_dim": SIZE,
    "in_channels": SIZE,
    "out_channels": SIZE,
    "addition_time_embed_dim": SIZE,
    "time_cond_proj_dim": SIZE,
    "sample_size": SIZE,
}


@SETTINGS
@given(changed=changes(UNET))
def test_unets(changed: dict[str, Any]) -> None:
    try:
        module = UNet2DConditionModel(UNetConfig.from_dict({**TINY_SDXL.unet.to_dict(), **changed}))
    except ConfigError:
        return
    run("unet", module)


VAE = {
    "block_out_channels": st.lists(SIZE, max_size=4),
    "layers_per_block": SIZE.filter(lambda n: n < 4),
    "norm_num_groups": SIZE,
    "latent_channels": SIZE,
    "in_channels": SIZE,
    "out_channels": SIZE,
    "scaling_factor": st.floats(-1, 1),
    "shift_factor": st.floats(-1, 1),
    "latents_mean": st.lists(st.floats(-9, 9), max_size=5),
    "latents_std": st.lists(st.floats(-9, 9), max_size=5),
    "use_quant_conv": st.booleans(),
    "use_post_quant_conv": st.booleans(),
    "sample_size": SIZE,
}


@SETTINGS
@given(changed=changes(VAE))
def test_autoencoders(changed: dict[str, Any]) -> None:
    try:
        module = AutoencoderKL(VAEConfig.from_dict({**TINY_SD15.vae.to_dict(), **changed}))
    except ConfigError:
        return
    run("vae_decoder", module)
    run("vae_encoder", module)


TEXT = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE.filter(lambda n: n < 4),
    "num_attention_heads": SIZE,
    "max_position_embeddings": SIZE,
    "projection_dim": SIZE,
    "layer_norm_eps": st.floats(0, 1),
}


@SETTINGS
@given(changed=changes(TEXT), projects=st.booleans())
@example(changed={"max_position_embeddings": 1}, projects=False)
def test_text_encoders(changed: dict[str, Any], projects: bool) -> None:
    config = {**TINY_SD15.text_encoder.to_dict(), **changed}
    if projects:
        config["architectures"] = ["CLIPTextModelWithProjection"]
    try:
        module = CLIPTextEncoder(TextEncoderConfig.from_dict(config))
    except ConfigError:
        return
    run("text_encoder", module)
