"""Tiny architectures: one of each family, small enough to run in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sdengine.benchmarks.tiny import TINY_SD15 as TINY_SD15
from sdengine.benchmarks.tiny import TINY_SD21 as TINY_SD21
from sdengine.benchmarks.tiny import TINY_SDXL as TINY_SDXL
from sdengine.models.configs import SDXL_REFINER, ModelArchitecture

TINY_SDXL_REFINER = replace(
    SDXL_REFINER,
    name="tiny-sdxl-refiner",
    text_encoders=TINY_SDXL.text_encoders[1:],
    unet=replace(
        SDXL_REFINER.unet,
        sample_size=8,
        block_out_channels=(16, 32, 48, 48),
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=(2, 4, 8, 8),
        transformer_layers_per_block=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 5 * 8,
    ),
    vae=TINY_SDXL.vae,
    resolution=64,
)
TINY_LCM = replace(TINY_SD15, name="tiny-lcm", unet=replace(TINY_SD15.unet, time_cond_proj_dim=12))
# With one layer where those above have two, and two levels: for what takes long for each layer.
SHALLOW_SD15 = replace(
    TINY_SD15,
    name="shallow-sd15",
    text_encoders=(replace(TINY_SD15.text_encoder, num_hidden_layers=2),),
    unet=replace(
        TINY_SD15.unet,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    ),
    vae=replace(TINY_SD15.vae, layers_per_block=1),
)
SHALLOW_SDXL = replace(
    TINY_SDXL,
    name="shallow-sdxl",
    text_encoders=tuple(
        replace(encoder, num_hidden_layers=2) for encoder in TINY_SDXL.text_encoders
    ),
    unet=replace(
        TINY_SDXL.unet,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
    ),
    vae=replace(TINY_SDXL.vae, layers_per_block=1),
)

TINY: Mapping[str, ModelArchitecture] = {
    "tiny": TINY_SD15,  # which most tests take
    "shallow": SHALLOW_SD15,
    **{
        architecture.name: architecture
        for architecture in (
            TINY_SD15,
            TINY_SD21,
            TINY_SDXL,
            TINY_SDXL_REFINER,
            TINY_LCM,
            SHALLOW_SDXL,
        )
    },
}
