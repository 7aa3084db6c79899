"""Manifest of a bundle: what `manifest.json` may hold, as a strict schema.

A bundle is untrusted input, so every field has a type, a range and a limit here, and the paths are
checked as text before any of them touches the file system.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from sdengine.bundle.architecture import Architecture
from sdengine.bundle.controls import (
    control_network,
    is_control,
    is_feature,
    is_residual,
)
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.bundle.quantisation import Quantisation
from sdengine.bundle.schema_fields import Positive, ShortText, Strict, Text, checked_relative_path
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
_Dimension = Annotated[int, Field(ge=1, le=1 << 24)] | ShortText
_Size = Annotated[int, Field(ge=8, le=16384, multiple_of=8)]
_Bytes = Annotated[int, Field(ge=0, lt=1 << 50)]


class TensorEntry(Strict):
    """Describe one input or output of a network; symbols stand for sizes chosen at run time."""

    name: ShortText
    shape: list[_Dimension] = Field(max_length=8)
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32"]

    @field_validator("shape")
    @classmethod
    def _known_symbols(cls, shape: list[int | str]) -> list[int | str]:
        for size in shape:
            if isinstance(size, str) and not _SYMBOL.fullmatch(size):
                raise ValueError(f"dimension {size!r} is neither a number nor name or name/divisor")
        return shape


class KernelChoice(Strict):
    """Tell which kernels some nodes of an engine got, and the times that decided it.

    `shapes` and `ms` are by image size, `ms` and `problems` by "native" and "triton"; a time is
    None where it could not be measured.
    """

    op: ShortText
    dtype: ShortText
    nodes: list[Text]
    chosen: ShortText
    shapes: dict[ShortText, list[list[int]]]
    ms: dict[ShortText, dict[ShortText, Annotated[float, Field(ge=0)] | None]]
    problems: dict[ShortText, Text] = Field(default_factory=dict)


class NetworkOptions(Strict):
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
        kernels_chosen: which engine was fastest: "native", "triton", or "mixed" of both.
        kernel_engines: milliseconds of each engine that was timed, by image size.
        kernel_problems: why one was not.
        ptx_version: of the plugins' code, which the driver must read where the engine runs: "9.0".
        refittable, stripped: the engine's weights can be exchanged, were left out.
        exact: by precision, outputs of the native steps that are computed plainly.
        quantisation: how it came to compute in eight bits, where it does.
    """

    # What other releases say beside it changes nothing here.
    model_config = ConfigDict(extra="ignore")

    controlnet: bool | None = None
    precision: ShortText | None = None
    max_chunks: Positive | None = None
    rows: list[Positive] = Field(default_factory=list, max_length=64)
    scratch_bytes: dict[ShortText, _Bytes] = Field(default_factory=dict)
    scratch_from: Literal["builder", "graph"] | None = None
    weight_bytes: _Bytes | None = None
    kernels: ShortText | None = None
    kernels_reason: Text | None = None
    kernel_choices: list[KernelChoice] = Field(default_factory=list)
    kernels_chosen: ShortText | None = None
    kernel_engines: dict[ShortText, dict[ShortText, float]] = Field(default_factory=dict)
    kernel_problems: dict[ShortText, Text] = Field(default_factory=dict)
    ptx_version: ShortText | None = None
    refittable: bool = False
    stripped: bool = False
    exact: dict[ShortText, list[Text]] = Field(default_factory=dict)
    quantisation: Quantisation | None = None

    def scratch_at(self, size: tuple[int, int]) -> int | None:
        """Return the scratch at width and height in pixels; None where nothing is said of it."""
        return self.scratch_bytes.get(size_name(size))

    @model_serializer(mode="wrap")
    def _only_what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class NetworkEntry(Strict):
    """Name the files of one network and its inputs and outputs."""

    files: list[str] = Field(min_length=1, max_length=1000)
    inputs: list[TensorEntry] = Field(min_length=1, max_length=200)
    outputs: list[TensorEntry] = Field(min_length=1, max_length=200)
    options: NetworkOptions = NetworkOptions()


class FileEntry(Strict):
    """Give one file's place in the bundle, its size and its hash."""

    path: str
    size_bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return checked_relative_path(path)


class Defaults(Strict):
    """Give the values of a request that names none."""

    width: _Size
    height: _Size
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5
    sampler: ShortText = "dpmpp_2m"
    schedule: ShortText = "karras"


class GuessEntry(Strict):
    """Tell what the checkpoint did not say and was assumed, why, and the option that says it."""

    what: ShortText
    value: ShortText
    reason: Text
    option: ShortText


class Source(Strict):
    """Name the checkpoint that the bundle was built from, and what was assumed of it."""

    name: ShortText
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    guesses: list[GuessEntry] = Field(default_factory=list, max_length=100)

    @model_serializer(mode="wrap")
    def _only_what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "guesses" or value}


class Manifest(Strict):
    """Hold everything that `manifest.json` says; immutable."""

    schema_version: Literal[2] = 2
    sdengine_version: ShortText
    name: ShortText
    target: ShortText
    precision: ShortText
    resolutions: list[tuple[_Size, _Size]] = Field(min_length=1, max_length=1000)
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 1
    architecture: Architecture
    defaults: Defaults
    networks: dict[ShortText, NetworkEntry] = Field(min_length=1, max_length=64)
    files: list[FileEntry] = Field(default_factory=list, max_length=10000)
    source: Source
    versions: dict[ShortText, ShortText] = Field(default_factory=dict, max_length=100)
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
        if (IMAGE_ENCODER in self.networks) != (self.architecture.image_encoder is not None):
            raise ValueError(f"{IMAGE_ENCODER}: it is not both a network and described")
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
