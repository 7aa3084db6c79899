"""Configurations come from checkpoints, so anything may be in them."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_architectures import TINY_SDXL

from sdengine.errors import ConfigError
from sdengine.models.configs import ModelArchitecture
from sdengine.models.controlnet import ControlNetConfig
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig

NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (UNetConfig, TINY_SDXL.unet),
    "vae": (VAEConfig, TINY_SDXL.vae),
    "text_encoder": (TextEncoderConfig, TINY_SDXL.text_encoder),
    "controlnet": (ControlNetConfig, TINY_SDXL.controlnet),
}


@pytest.mark.parametrize(
    ("network", "field", "value"),
    [
        ("unet", "block_out_channels", "wide"),
        ("unet", "down_block_types", ["DownBlock2D"]),
        ("unet", "block_out_channels", [16, 32, 1 << 30]),
        ("unet", "block_out_channels", [16, 32, 50]),
        ("unet", "block_out_channels", []),
        ("unet", "norm_num_groups", 0),
        ("unet", "attention_head_dim", [2, 4]),
        ("unet", "layers_per_block", 10**9),
        ("unet", "down_block_types", ["AttnDownBlock2D"] * 3),
        ("unet", "addition_embed_type", "image"),
        ("unet", "addition_time_embed_dim", None),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_attention_heads", 8),
        ("unet", "norm_eps", float("nan")),
        ("unet", "use_linear_projection", 1),
        ("vae", "norm_num_groups", 0),
        ("vae", "block_out_channels", [8.0, 16, 16, 16]),
        ("vae", "shift_factor", 0.1),
        ("vae", "scaling_factor", "0.18215"),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "num_attention_heads", 0),
        ("text_encoder", "num_attention_heads", 5),
        ("text_encoder", "num_hidden_layers", -1),
        ("text_encoder", "model_type", "t5"),
        ("controlnet", "conditioning_embedding_out_channels", []),
        ("controlnet", "conditioning_channels", 0),
        ("controlnet", "global_pool_conditions", True),
        ("controlnet", "down_block_types", 3),
    ],
)
def test_a_bad_value_is_named(network: str, field: str, value: Any) -> None:
    config_class, good = NETWORKS[network]
    with pytest.raises(ConfigError, match=field):
        config_class.from_dict({**good.to_dict(), field: value})


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_keys_that_change_nothing_are_ignored(network: str) -> None:
    config_class, good = NETWORKS[network]
    harmless = {"_diffusers_version": "0.6", "of_another_release": None}
    assert config_class.from_dict({**good.to_dict(), **harmless}) == config_class.from_dict(
        good.to_dict()
    )


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_key_that_nobody_knows_is_refused(network: str) -> None:
    config_class, good = NETWORKS[network]
    with pytest.raises(ConfigError, match=r"of_another_release: True.*take it out"):
        config_class.from_dict({**good.to_dict(), "of_another_release": True})


def test_a_missing_key_is_what_the_library_assumes() -> None:
    text = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]}
    read = TextEncoderConfig.from_dict(text)
    assert (read.hidden_size, read.num_attention_heads, read.projection_dim) == (512, 8, 512)
    assert UNetConfig.from_dict({}).cross_attention_dim == 1280
    assert VAEConfig.from_dict({}).block_out_channels == (64,)
    with pytest.raises(ConfigError, match="down_block_types"):
        VAEConfig.from_dict({"down_block_types": ["AttnDownEncoderBlock2D"]})


def test_families_are_complete() -> None:
    assert isinstance(TINY_SDXL, ModelArchitecture)
    assert len(TINY_SDXL.text_encoders) == len(TINY_SDXL.pad_tokens) == 2
    joined = sum(config.hidden_size for config in TINY_SDXL.text_encoders)
    assert joined == TINY_SDXL.unet.cross_attention_dim
