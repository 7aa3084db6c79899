"""Tiny architectures: one of each family, so small that a benchmark takes seconds."""

from __future__ import annotations

from dataclasses import replace

from sdengine.models.configs import SD15, SD21, SDXL
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
TINY_SD21 = replace(
    SD21,
    name="tiny-sd21",
    text_encoders=(replace(TINY_SD15.text_encoder, hidden_act="gelu"),),
    unet=replace(TINY_SD15.unet, attention_head_dim=(2, 4, 8, 8), use_linear_projection=True),
    vae=TINY_SD15.vae,
    resolution=64,
)
TINY_SDXL = replace(
    SDXL,
    name="tiny-sdxl",
    text_encoders=(
        TINY_SD15.text_encoder,
        replace(TINY_SD15.text_encoder, hidden_act="gelu", with_projection=True),
    ),
    unet=replace(
        SDXL.unet,
        sample_size=8,
        block_out_channels=(16, 32, 48),
        norm_num_groups=4,
        cross_attention_dim=64,
        attention_head_dim=(2, 4, 8),
        transformer_layers_per_block=(1, 2, 3),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ),
    vae=replace(TINY_SD15.vae, scaling_factor=0.13025),
    resolution=64,
)
