"""Architecture: what the run time needs to know of a checkpoint's networks, as a strict schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from sdengine.bundle.controls import CONTROL_NAME, ControlArchitecture
from sdengine.bundle.image_prompts import ImageEncoderArchitecture
from sdengine.bundle.schema_fields import Positive, ShortText, Strict, Text, checked_relative_path


class HiddenState(Strict):
    """Choose which hidden state of the text encoder conditions the U-Net.

    `index` counts as Python does over [embeddings, layer 1, ..., layer L]; `kind` says whether the
    encoder's final layer norm is applied to it.
    """

    index: Annotated[int, Field(ge=-200, le=200)] = -1
    kind: Literal["normed", "raw"] = "normed"


class TextEncoderArchitecture(Strict):
    """Describe one text encoder: its network, its token table's file, its special tokens.

    The network reads `max_length` tokens, of which the first `prompt_length` hold a chunk of the
    prompt and condition the U-Net; None is all of them.
    """

    network: Literal["text_encoder", "text_encoder_2"] = "text_encoder"
    token_table: str = "token_table.safetensors"
    max_length: Annotated[int, Field(ge=3, le=4096)] = 77
    prompt_length: Annotated[int, Field(ge=3, le=4096)] | None = None
    hidden_size: Positive
    num_layers: Annotated[int, Field(ge=1, le=200)]
    hidden_state: HiddenState = HiddenState()
    pad_token: ShortText = "<|endoftext|>"
    bos_token_id: Annotated[int, Field(ge=0)] = 49406
    eos_token_id: Annotated[int, Field(ge=0)] = 49407
    config: dict[str, Any] = Field(default_factory=dict)

    @field_validator("token_table")
    @classmethod
    def _inside(cls, path: str) -> str:
        return checked_relative_path(path)

    @property
    def chunk_length(self) -> int:
        """Tokens of one chunk, with start and end."""
        return self.prompt_length or self.max_length

    @model_serializer(mode="wrap")
    def _without_the_usual(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if values["prompt_length"] is None:  # which earlier releases do not know
            del values["prompt_length"]
        return values

    @model_validator(mode="after")
    def _length_fits(self) -> TextEncoderArchitecture:
        if self.chunk_length > self.max_length:
            raise ValueError(f"prompt_length {self.prompt_length} of {self.max_length} tokens")
        return self

    @model_validator(mode="after")
    def _index_exists(self) -> TextEncoderArchitecture:
        states = self.num_layers + 1
        if not -states <= self.hidden_state.index < states:
            raise ValueError(f"hidden_state.index {self.hidden_state.index} of {states} states")
        return self


class UNetArchitecture(Strict):
    """Describe the U-Net; `config` is the checkpoint's own configuration.

    `size_conditioning` says what `time_ids` holds: original size, crop and target size ("size"), or
    original size, crop and aesthetic score ("aesthetic"). `guidance_embed_dim` is the width of
    `timestep_cond`, which tells distilled U-Nets the guidance scale.
    """

    in_channels: Annotated[int, Field(ge=1, le=1024)]
    cross_attention_dim: Positive
    size_conditioning: Literal["none", "size", "aesthetic"] = "none"
    guidance_embed_dim: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)] | None = None
    config: dict[str, Any] = Field(default_factory=dict)


_COLOURS = ("latent_rgb", "latent_rgb_error")


class VAEArchitecture(Strict):
    """Describe the VAE: latents = scaling_factor * encoder output, H/downscale by W/downscale.

    `compute_fp32` says that its values leave the range of fp16: where the rest computes in fp16, it
    computes in bf16, or in fp32 on a device without bf16. `latent_rgb` has a row of red, green and
    blue in [-1,1] for each channel of scaled latents and, last, one that is added: about the colour
    of a cell, for previews. `latent_rgb_error` is by how much they erred where they were fitted,
    over by how much one colour for all cells would: 0 where colours follow from latents exactly.
    """

    scaling_factor: Annotated[float, Field(gt=0, le=1e6)]
    latent_channels: Annotated[int, Field(ge=1, le=1024)]
    downscale: Annotated[int, Field(ge=1, le=64)] = 8
    compute_fp32: bool = False
    latent_rgb: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None
    latent_rgb_error: Annotated[float, Field(ge=0, le=1)] | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _row_for_each_channel(self) -> VAEArchitecture:
        if self.latent_rgb is not None and len(self.latent_rgb) != self.latent_channels + 1:
            raise ValueError(f"latent_rgb has {len(self.latent_rgb)} rows")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_known(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Earlier releases do not know them.
        unknown = [name for name in _COLOURS if getattr(self, name) is None]
        return {name: v for name, v in dump(self).items() if name not in unknown}


# What a U-Net reads beside the noisy latents tells what it is for.
TASKS = ("text", "inpainting", "depth")


def task_of(unet_channels: int, latent_channels: int) -> str:
    """Return what a U-Net is for that reads as many channels, one of TASKS."""
    extra = unet_channels - latent_channels
    return next((task for task in TASKS if extra_channels(task, latent_channels) == extra), "text")


def extra_channels(task: str, latent_channels: int) -> int:
    """Return how many channels a U-Net of a task reads beside the noisy latents."""
    return {"text": 0, "inpainting": 1 + latent_channels, "depth": 1}[task]


class Architecture(Strict):
    """Describe the checkpoint's networks as far as the run time needs to know them.

    The outputs of `text_encoders` are joined in their order; `pooled_from` names the one whose
    pooled output conditions the U-Net. `zero_empty_negative` asks for zeros in place of an empty
    negative prompt's embeddings. `controls` has the networks that steer the U-Net by a picture, by
    name. `tiny_vae` is the configuration of the tiny autoencoder, where the networks tiny_decoder
    and tiny_encoder are of one. `image_encoder` describes the network of that name, through which
    IP-Adapters see pictures. `not_taken_over` has a line for each thing in the checkpoint's files
    that has no effect here.
    """

    family: ShortText
    text_encoders: list[TextEncoderArchitecture] = Field(min_length=1, max_length=2)
    pooled_from: Literal["text_encoder", "text_encoder_2"] | None = None
    zero_empty_negative: bool = False
    unet: UNetArchitecture
    vae: VAEArchitecture
    scheduler: dict[str, Any]
    controls: dict[ShortText, ControlArchitecture] = Field(default_factory=dict, max_length=32)
    tiny_vae: dict[str, Any] | None = None
    image_encoder: ImageEncoderArchitecture | None = None
    not_taken_over: list[Text] = Field(default_factory=list, max_length=100)

    @property
    def task(self) -> str:
        """One of TASKS."""
        return task_of(self.unet.in_channels, self.vae.latent_channels)

    @model_validator(mode="after")
    def _encoders_fit(self) -> Architecture:
        names = [encoder.network for encoder in self.text_encoders]
        if len(set(names)) != len(names):
            raise ValueError("text_encoders: a network is named twice")
        if len({encoder.max_length for encoder in self.text_encoders}) != 1:
            raise ValueError("text_encoders: max_length differs")
        if len({encoder.chunk_length for encoder in self.text_encoders}) != 1:
            raise ValueError("text_encoders: prompt_length differs")
        if self.pooled_from is not None and self.pooled_from not in names:
            raise ValueError(f"pooled_from: {self.pooled_from} is not among text_encoders")
        if self.unet.size_conditioning != "none" and self.pooled_from is None:
            raise ValueError("unet.size_conditioning needs pooled_from")
        for name in self.controls:
            if CONTROL_NAME.fullmatch(name) is None:
                raise ValueError(f"controls: {name[:80]!r} is no name of a control")
        return self

    @model_serializer(mode="wrap")
    def _as_older_releases_without_what_is_empty(
        self, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        for name in ("not_taken_over", "controls", "tiny_vae", "image_encoder"):
            if not content[name]:
                del content[name]
        return content
