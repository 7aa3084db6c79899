"""Manifest of a bundle: what `manifest.json` may hold, as a strict schema.

A bundle is untrusted input, so every field has a type, a range and a limit here, and the paths are
checked as text before any of them touches the file system.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from sdengine.bundle.controls import (
    CONTROL_NAME,
    ControlArchitecture,
    control_network,
    is_control,
    is_feature,
    is_residual,
)
from sdengine.bundle.quantisation import Quantisation
from sdengine.bundle.tensors import size_name
from sdengine.errors import BundleError

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
TOKEN_TABLE_TENSOR = "token_embedding"
VOCAB_FILE = "tokenizer/vocab.json"
MERGES_FILE = "tokenizer/merges.txt"
ADDED_TOKENS_FILE = "tokenizer/added_tokens.json"  # where the checkpoint has any

_SYMBOL = re.compile(r"[a-z_]+(/[1-9][0-9]{0,3})?")
_ShortText = Annotated[str, Field(max_length=200)]
_Positive = Annotated[int, Field(ge=1, le=1 << 20)]
_Dimension = Annotated[int, Field(ge=1, le=1 << 24)] | _ShortText
_Size = Annotated[int, Field(ge=8, le=16384, multiple_of=8)]
_Bytes = Annotated[int, Field(ge=0, lt=1 << 50)]
_Text = Annotated[str, Field(max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorEntry(_Strict):
    """Describe one input or output of a network; symbols stand for sizes chosen at run time."""

    name: _ShortText
    shape: list[_Dimension] = Field(max_length=8)
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32"]

    @field_validator("shape")
    @classmethod
    def _known_symbols(cls, shape: list[int | str]) -> list[int | str]:
        for size in shape:
            if isinstance(size, str) and not _SYMBOL.fullmatch(size):
                raise ValueError(f"dimension {size!r} is neither a number nor name or name/divisor")
        return shape


class KernelChoice(_Strict):
    """Tell which kernels some nodes of an engine got, and the times that decided it.

    `shapes` and `ms` are by image size, `ms` and `problems` by "native" and "triton"; a time is
    None where it could not be measured.
    """

    op: _ShortText
    dtype: _ShortText
    nodes: list[_Text]
    chosen: _ShortText
    shapes: dict[_ShortText, list[list[int]]]
    ms: dict[_ShortText, dict[_ShortText, Annotated[float, Field(ge=0)] | None]]
    problems: dict[_ShortText, _Text] = Field(default_factory=dict)


class NetworkOptions(_Strict):
    """Say how a network was built, as far as its target has something to say.

    Args:
        controlnet: it reads ControlNet residuals.
        precision: what an engine computes in; the bundle's own where None.
        max_chunks: of a prompt, that an engine takes.
        rows: that an engine computes at once, one profile an image size each; earlier releases
            built for the largest alone and say nothing.
        scratch_bytes: what a context of an engine computes in, by image size.
        scratch_from: who says so: TensorRT's builder, or the graph that it was given.
        weight_bytes: what an engine keeps on the GPU.
        kernels: what was asked for; see `sdengine.build`.
        kernels_reason: why no kernel became a plugin, where that was not asked for.
        kernel_choices: what was chosen for nodes that have a plugin.
        ptx_version: of the plugins' code, which the driver must read where the engine runs: "9.0".
        refittable, stripped: the engine's weights can be exchanged, were left out.
        exact: by precision, outputs of the native steps that are computed plainly.
        quantisation: how it came to compute in eight bits, where it does.
    """

    # What other releases say beside it changes nothing here.
    model_config = ConfigDict(extra="ignore")

    controlnet: bool | None = None
    precision: _ShortText | None = None
    max_chunks: _Positive | None = None
    rows: list[_Positive] = Field(default_factory=list, max_length=64)
    scratch_bytes: dict[_ShortText, _Bytes] = Field(default_factory=dict)
    scratch_from: Literal["builder", "graph"] | None = None
    weight_bytes: _Bytes | None = None
    kernels: _ShortText | None = None
    kernels_reason: _Text | None = None
    kernel_choices: list[KernelChoice] = Field(default_factory=list)
    ptx_version: _ShortText | None = None
    refittable: bool = False
    stripped: bool = False
    exact: dict[_ShortText, list[_Text]] = Field(default_factory=dict)
    quantisation: Quantisation | None = None

    def scratch_at(self, size: tuple[int, int]) -> int | None:
        """Return the scratch at width and height in pixels; None where nothing is said of it."""
        return self.scratch_bytes.get(size_name(size))

    @model_serializer(mode="wrap")
    def _only_what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class NetworkEntry(_Strict):
    """Name the files of one network and its inputs and outputs."""

    files: list[str] = Field(min_length=1, max_length=1000)
    inputs: list[TensorEntry] = Field(min_length=1, max_length=200)
    outputs: list[TensorEntry] = Field(min_length=1, max_length=200)
    options: NetworkOptions = NetworkOptions()


class FileEntry(_Strict):
    """Give one file's place in the bundle, its size and its hash."""

    path: str
    size_bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return checked_relative_path(path)


class HiddenState(_Strict):
    """Choose which hidden state of the text encoder conditions the U-Net.

    `index` counts as Python does over [embeddings, layer 1, ..., layer L]; `kind` says whether the
    encoder's final layer norm is applied to it.
    """

    index: Annotated[int, Field(ge=-200, le=200)] = -1
    kind: Literal["normed", "raw"] = "normed"


class TextEncoderArchitecture(_Strict):
    """Describe one text encoder: its network, its token table's file, its special tokens.

    The network reads `max_length` tokens, of which the first `prompt_length` hold a chunk of the
    prompt and condition the U-Net; None is all of them.
    """

    network: Literal["text_encoder", "text_encoder_2"] = "text_encoder"
    token_table: str = "token_table.safetensors"
    max_length: Annotated[int, Field(ge=3, le=4096)] = 77
    prompt_length: Annotated[int, Field(ge=3, le=4096)] | None = None
    hidden_size: _Positive
    num_layers: Annotated[int, Field(ge=1, le=200)]
    hidden_state: HiddenState = HiddenState()
    pad_token: _ShortText = "<|endoftext|>"
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


class UNetArchitecture(_Strict):
    """Describe the U-Net; `config` is the checkpoint's own configuration.

    `size_conditioning` says what `time_ids` holds: original size, crop and target size ("size"), or
    original size, crop and aesthetic score ("aesthetic"). `guidance_embed_dim` is the width of
    `timestep_cond`, which tells distilled U-Nets the guidance scale.
    """

    in_channels: Annotated[int, Field(ge=1, le=1024)]
    cross_attention_dim: _Positive
    size_conditioning: Literal["none", "size", "aesthetic"] = "none"
    guidance_embed_dim: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)] | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class VAEArchitecture(_Strict):
    """Describe the VAE: latents = scaling_factor * encoder output, H/downscale by W/downscale.

    `compute_fp32` says that its values leave the range of fp16: where the rest computes in fp16, it
    computes in bf16, or in fp32 on a device without bf16. `latent_rgb` has a row of red, green and
    blue in [-1,1] for each channel of scaled latents and, last, one that is added: about the colour
    of a cell, for previews.
    """

    scaling_factor: Annotated[float, Field(gt=0, le=1e6)]
    latent_channels: Annotated[int, Field(ge=1, le=1024)]
    downscale: Annotated[int, Field(ge=1, le=64)] = 8
    compute_fp32: bool = False
    latent_rgb: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _row_for_each_channel(self) -> VAEArchitecture:
        if self.latent_rgb is not None and len(self.latent_rgb) != self.latent_channels + 1:
            raise ValueError(f"latent_rgb has {len(self.latent_rgb)} rows")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_known(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        known = self.latent_rgb is not None  # earlier releases do not know it
        return {name: v for name, v in dump(self).items() if name != "latent_rgb" or known}


# What a U-Net reads beside the noisy latents tells what it is for.
TASKS = ("text", "inpainting", "depth")


def extra_channels(task: str, latent_channels: int) -> int:
    """Return how many channels a U-Net of a task reads beside the noisy latents."""
    return {"text": 0, "inpainting": 1 + latent_channels, "depth": 1}[task]


class Architecture(_Strict):
    """Describe the checkpoint's networks as far as the run time needs to know them.

    The outputs of `text_encoders` are joined in their order; `pooled_from` names the one whose
    pooled output conditions the U-Net. `zero_empty_negative` asks for zeros in place of an empty
    negative prompt's embeddings. `controls` has the networks that steer the U-Net by a picture, by
    name. `tiny_vae` is the configuration of the tiny autoencoder, where the networks tiny_decoder
    and tiny_encoder are of one. `not_taken_over` has a line for each thing in the checkpoint's
    files that has no effect here.
    """

    family: _ShortText
    text_encoders: list[TextEncoderArchitecture] = Field(min_length=1, max_length=2)
    pooled_from: Literal["text_encoder", "text_encoder_2"] | None = None
    zero_empty_negative: bool = False
    unet: UNetArchitecture
    vae: VAEArchitecture
    scheduler: dict[str, Any]
    controls: dict[_ShortText, ControlArchitecture] = Field(default_factory=dict, max_length=32)
    tiny_vae: dict[str, Any] | None = None
    not_taken_over: list[_Text] = Field(default_factory=list, max_length=100)

    @property
    def task(self) -> str:
        """One of TASKS."""
        extra = self.unet.in_channels - self.vae.latent_channels
        tasks = (t for t in TASKS if extra_channels(t, self.vae.latent_channels) == extra)
        return next(tasks, "text")

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
        for name in ("not_taken_over", "controls", "tiny_vae"):
            if not content[name]:
                del content[name]
        return content


class Defaults(_Strict):
    """Give the values of a request that names none."""

    width: _Size
    height: _Size
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5
    sampler: _ShortText = "dpmpp_2m"
    schedule: _ShortText = "karras"


class GuessEntry(_Strict):
    """Tell what the checkpoint did not say and was assumed, why, and the option that says it."""

    what: _ShortText
    value: _ShortText
    reason: _Text
    option: _ShortText


class Source(_Strict):
    """Name the checkpoint that the bundle was built from, and what was assumed of it."""

    name: _ShortText
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    guesses: list[GuessEntry] = Field(default_factory=list, max_length=100)

    @model_serializer(mode="wrap")
    def _only_what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "guesses" or value}


class Manifest(_Strict):
    """Hold everything that `manifest.json` says; immutable."""

    schema_version: Literal[2] = 2
    sdengine_version: _ShortText
    name: _ShortText
    target: _ShortText
    precision: _ShortText
    resolutions: list[tuple[_Size, _Size]] = Field(min_length=1, max_length=1000)
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 1
    architecture: Architecture
    defaults: Defaults
    networks: dict[_ShortText, NetworkEntry] = Field(min_length=1, max_length=64)
    files: list[FileEntry] = Field(default_factory=list, max_length=10000)
    source: Source
    versions: dict[_ShortText, _ShortText] = Field(default_factory=dict, max_length=100)
    # Of the GPUs that the engines run on, times ten; none for other targets, or for one GPU.
    compute_capabilities: list[Annotated[int, Field(ge=10, le=999)]] = Field(
        default_factory=list, max_length=16
    )

    @property
    def size_multiple(self) -> int | None:
        """Pixels that the sides of any image size are multiples of; None if only resolutions run.

        Networks of target native are laid out for a size when they are loaded. A U-Net halves its
        maps between its levels.
        """
        levels = self.architecture.unet.config.get("block_out_channels")
        if self.target != "native" or not isinstance(levels, list) or not 1 <= len(levels) <= 8:
            return None
        return self.architecture.vae.downscale << (len(levels) - 1)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        paths = [entry.path for entry in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        if (self.defaults.width, self.defaults.height) not in self.resolutions:
            raise ValueError("the default size is not among the resolutions")
        self._controls_are_there()
        for name, network in self.networks.items():
            for path in network.files:
                checked_relative_path(path)
                if paths and path not in paths:
                    raise ValueError(f"network {name} names {path!r}, which files does not list")
        return self

    def _controls_are_there(self) -> None:
        described = {control_network(name) for name in self.architecture.controls}
        if odd := described ^ {name for name in self.networks if is_control(name)}:
            raise ValueError(f"{min(odd)}: it is not both a network and among the controls")
        unet = self.networks.get("unet")
        if described and unet is not None:
            names = [tensor.name for tensor in unet.inputs]
            for name, control in self.architecture.controls.items():
                adds = is_feature if control.kind == "t2i_adapter" else is_residual
                read = sum(map(adds, names))
                given = len(self.networks[control_network(name)].outputs)
                if not read == given == control.residuals:
                    raise ValueError(f"control {name}: {given} residuals, the U-Net reads {read}")


def checked_relative_path(path: str) -> str:
    """Return the path when it stays inside the folder that it is relative to.

    Args:
        path: POSIX-style relative path, as text; nothing is looked up on disk.

    Raises:
        ValueError: it is absolute, leads upwards, or is not in its plain form.
    """
    plain = PurePosixPath(path)
    if (
        not path
        or len(path) > 500
        or plain.is_absolute()
        or ".." in plain.parts
        or str(plain) != path
        or path == "."
        or any(ord(char) < 32 or char in '\\:*?"<>|' for char in path)
    ):
        raise ValueError(f"{path[:80]!r} is not a plain relative path")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{path[:80]!r} is not a plain relative path") from None
    return path


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest from the bytes of `manifest.json`.

    Args:
        data: the file's content, at most MAX_MANIFEST_BYTES.

    Raises:
        BundleError: not JSON, of another schema version, or a field is missing, unknown or invalid.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME} has {len(data)} bytes; at most {MAX_MANIFEST_BYTES}.")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is not valid JSON: {_short(error)}.") from None
    if not isinstance(content, dict):
        raise BundleError(f"{MANIFEST_NAME} holds a {type(content).__name__}, not an object.")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{MANIFEST_NAME} has schema_version {str(version)[:40]!r}; this release reads "
            f"{SCHEMA_VERSION}. Build the bundle again with `sdengine build`."
        )
    try:
        return Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_NAME} is invalid: {_first_problem(error)}.") from None


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    place = ".".join(str(part) for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place or 'manifest'}: {problems[0]['msg'][:200]}{more}"


def _short(error: BaseException) -> str:
    return str(error)[:120]
