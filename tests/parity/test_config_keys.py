"""Keys of the configurations that diffusers and transformers write: each has a verdict."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import diffusers
import pytest
import transformers

from sdengine.checkpoints import model_index
from sdengine.errors import ConfigError
from sdengine.models import controlnet, text_encoder, transformers_keys, unet, unet_keys, vae

NETWORKS: dict[str, tuple[str, set[str], dict[str, Any]]] = {
    "unet": (
        "UNet2DConditionModel",
        {field.name for field in fields(unet.UNetConfig)} | set(unet_keys.HARMLESS),
        unet_keys.FIXED,
    ),
    "vae": (
        "AutoencoderKL",
        {field.name for field in fields(vae.VAEConfig)} | set(vae.HARMLESS),
        vae.FIXED,
    ),
    "controlnet": (
        "ControlNetModel",
        {field.name for field in fields(controlnet.ControlNetConfig)}
        | {field.name for field in fields(unet.UNetConfig)}
        | set(unet_keys.HARMLESS),
        {**unet_keys.FIXED, **controlnet.FIXED},
    ),
}
CONFIGS: dict[str, Any] = {
    "unet": unet.UNetConfig,
    "vae": vae.VAEConfig,
    "controlnet": controlnet.ControlNetConfig,
    "text_encoder": text_encoder.TextEncoderConfig,
}


def constructor(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key != "self"}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_key_of_a_network_has_a_verdict(network: str) -> None:
    name, known, fixed = NETWORKS[network]
    for key, default in constructor(name).items():
        assert (key in known) + (key in fixed) == 1, f"{network}.{key}"
        if key in fixed:
            assert fixed[key] == default, f"{network}.{key}"


# What diffusers leaves open, and the one published architecture that is not its default.
NEEDED: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64},
    "vae": {},
    "controlnet": {},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_what_diffusers_assumes_is_read_as_nothing_said(network: str) -> None:
    """A file with every default and one without any key describe the same network."""
    needed = NEEDED[network]
    full = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in constructor(NETWORKS[network][0]).items()
    }
    from_dict = CONFIGS[network].from_dict
    assert from_dict({**full, **needed}) == from_dict(needed)


def test_every_key_of_a_text_encoder_has_a_verdict() -> None:
    written = transformers.CLIPTextConfig().to_dict()
    known = {field.name for field in fields(text_encoder.TextEncoderConfig)}
    for key in written:
        verdicts = [key in known, key in transformers_keys.HARMLESS, key in text_encoder.FIXED]
        assert key.startswith("_") or sum(verdicts) == 1, f"text_encoder.{key}"
    from_dict = text_encoder.TextEncoderConfig.from_dict
    assert from_dict(written) == from_dict({})


PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionAdapterPipeline",
    "LatentConsistencyModelPipeline",
)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_entry_of_a_pipeline_has_a_verdict(name: str) -> None:
    for key in constructor(name):
        verdicts = (model_index.USED, model_index.HARMLESS, model_index.NOT_TAKEN_OVER)
        assert sum(key in verdict for verdict in verdicts) == 1, f"{name}: {key}"


def test_a_network_that_nobody_runs_is_refused() -> None:
    entries = {"prior": ["diffusers", "PriorTransformer"]}
    with pytest.raises(ConfigError, match="prior"):
        model_index.read_entries(entries)
    assert model_index.read_entries({"prior": [None, None], "_class_name": "X"}) == []
    controlnet = {"controlnet": ["diffusers", "ControlNetModel"]}
    assert "ControlNetModel" in model_index.read_entries(controlnet)[0]
