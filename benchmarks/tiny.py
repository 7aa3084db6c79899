"""Tiny architecture: Stable Diffusion 1 made so small that a benchmark can be tried in seconds."""

from __future__ import annotations

from dataclasses import replace

from sdengine.models.configs import SD15
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig

TINY_SD15 = replace(
    SD15,
    name="tiny-sd15",
    text_encoders=(
        TextEncoderConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
        ),
    ),
    unet=UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32, 48, 48),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ),
    vae=VAEConfig(block_out_channels=(8, 16, 16, 16), norm_num_groups=4, sample_size=64),
    resolution=64,
)
