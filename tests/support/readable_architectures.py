"""Small architectures whose shapes tell what they are, so that a file needs no `family`.

Heads of 64 channels, 8 of them where the projections are convolutions, and 32 groups, as the
published networks have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sdengine.models.configs import SD15, SD21, SDXL, SDXL_REFINER, ModelArchitecture
from sdengine.models.text_encoder import TextEncoderConfig

_TEXT = TextEncoderConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    projection_dim=64,
)
_SECOND = replace(_TEXT, hidden_act="gelu", with_projection=True)
_VAE = (32, 32, 32, 32)

READABLE_SD15 = replace(
    SD15,
    text_encoders=(_TEXT,),
    unet=replace(SD15.unet, block_out_channels=(64,) * 4, cross_attention_dim=64),
    vae=replace(SD15.vae, block_out_channels=_VAE),
)
READABLE_SD21 = replace(
    SD21,
    text_encoders=(replace(_TEXT, hidden_act="gelu", projection_dim=512),),
    unet=replace(
        SD21.unet,
        block_out_channels=(64,) * 4,
        cross_attention_dim=64,
        attention_head_dim=(1,) * 4,
    ),
    vae=replace(SD21.vae, block_out_channels=_VAE),
)
READABLE_SDXL = replace(
    SDXL,
    text_encoders=(_TEXT, _SECOND),
    unet=replace(
        SDXL.unet,
        block_out_channels=(64, 64, 128),
        cross_attention_dim=128,
        attention_head_dim=(1, 1, 2),
        transformer_layers_per_block=(1, 2, 3),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=64 + 6 * 32,
    ),
    vae=replace(SDXL.vae, block_out_channels=_VAE),
)
READABLE_REFINER = replace(
    SDXL_REFINER,
    text_encoders=(_SECOND,),
    unet=replace(
        SDXL_REFINER.unet,
        block_out_channels=(64,) * 4,
        cross_attention_dim=64,
        attention_head_dim=(1,) * 4,
        transformer_layers_per_block=2,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=64 + 5 * 32,
    ),
    vae=READABLE_SDXL.vae,
)
READABLE: Mapping[str, ModelArchitecture] = {
    "sd15": READABLE_SD15,
    "sd21": READABLE_SD21,
    "sdxl": READABLE_SDXL,
    "sdxl-refiner": READABLE_REFINER,
    # Distilled: SSD-1B and Vega without attention in the middle, KOALA and BK-SDM without a middle.
    "ssd-1b": replace(
        READABLE_SDXL,
        unet=replace(
            READABLE_SDXL.unet,
            transformer_layers_per_block=(1, 2, 4),
            reverse_transformer_layers_per_block=((4, 4, 5), (2, 1, 1), 1),
            mid_block_type="UNetMidBlock2D",
        ),
    ),
    "koala-700m": replace(
        READABLE_SDXL,
        unet=replace(
            READABLE_SDXL.unet,
            layers_per_block=1,
            transformer_layers_per_block=(1, 2, 5),
            mid_block_type=None,
        ),
    ),
    "bk-sdm-small": replace(
        READABLE_SD15,
        unet=replace(READABLE_SD15.unet, layers_per_block=1, mid_block_type=None),
    ),
    "bk-sdm-tiny": replace(
        READABLE_SD15,
        unet=replace(
            READABLE_SD15.unet,
            layers_per_block=1,
            mid_block_type=None,
            block_out_channels=(64,) * 3,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
        ),
    ),
}
