"""Published architectures: the configurations of each model's networks.

Source: the config.json files of the published checkpoints, and table 1 of "SDXL" (Podell et al.
2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sdengine.models.controlnet import ControlNetConfig
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig


@dataclass(frozen=True)
class ModelArchitecture:
    """Hold the configurations of one model's networks.

    Args:
        name: such as "sd15".
        text_encoders: in the order in which their outputs are joined.
        prediction_type: what the U-Net predicts.
        pad_token: what fills a prompt up, by text encoder.
        resolution: pixels a side that the model was trained at.
        text_parts: what checkpoints call each of the text encoders.
        requires_aesthetic_score: the U-Net reads a score in place of the target size.
    """

    name: str
    text_encoders: tuple[TextEncoderConfig, ...]
    unet: UNetConfig
    vae: VAEConfig
    prediction_type: str
    pad_tokens: tuple[str, ...]
    resolution: int
    text_parts: tuple[str, ...] = ("text_encoder",)
    requires_aesthetic_score: bool = False

    @property
    def text_encoder(self) -> TextEncoderConfig:
        """The first text encoder."""
        return self.text_encoders[0]

    @property
    def controlnet(self) -> ControlNetConfig:
        """The ControlNet that fits the U-Net."""
        return ControlNetConfig(unet=self.unet)


_CLIP_L = TextEncoderConfig()
_OPENCLIP_H = TextEncoderConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    projection_dim=512,
    hidden_act="gelu",
)
_OPENCLIP_BIG_G = TextEncoderConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
    with_projection=True,
)

SD15 = ModelArchitecture(
    name="sd15",
    text_encoders=(_CLIP_L,),
    unet=UNetConfig(),
    vae=VAEConfig(),
    prediction_type="epsilon",
    pad_tokens=("<|endoftext|>",),
    resolution=512,
)
SD21 = ModelArchitecture(
    name="sd21",
    text_encoders=(_OPENCLIP_H,),
    unet=UNetConfig(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    ),
    vae=VAEConfig(sample_size=768),
    prediction_type="v_prediction",
    pad_tokens=("!",),
    resolution=768,
)
SDXL = ModelArchitecture(
    name="sdxl",
    text_encoders=(_CLIP_L, _OPENCLIP_BIG_G),
    unet=UNetConfig(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    vae=VAEConfig(sample_size=1024, scaling_factor=0.13025),
    prediction_type="epsilon",
    pad_tokens=("<|endoftext|>", "!"),
    resolution=1024,
    text_parts=("text_encoder", "text_encoder_2"),
)
SDXL_REFINER = ModelArchitecture(
    name="sdxl-refiner",
    text_encoders=(_OPENCLIP_BIG_G,),
    unet=UNetConfig(
        sample_size=128,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        block_out_channels=(384, 768, 1536, 1536),
        cross_attention_dim=1280,
        attention_head_dim=(6, 12, 24, 24),
        transformer_layers_per_block=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2560,
    ),
    vae=SDXL.vae,
    prediction_type="epsilon",
    pad_tokens=("!",),
    resolution=1024,
    text_parts=("text_encoder_2",),
    requires_aesthetic_score=True,
)
LCM_SD15 = replace(SD15, name="lcm", unet=replace(SD15.unet, time_cond_proj_dim=256))

ARCHITECTURES: Mapping[str, ModelArchitecture] = MappingProxyType(
    {architecture.name: architecture for architecture in (SD15, SD21, SDXL, SDXL_REFINER, LCM_SD15)}
)
