"""Settings of a model of Triton Inference Server: what its `config.pbtxt` says of it.

Whoever runs the server may edit that file, so that it is read back here and checked against what
the model can do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.fields import Integer
from sdengine.request.hires_fields import MAX_SIDE, MAX_STEPS
from sdengine.request.request import MAX_BATCH, Request
from sdengine.serving.triton_tensors import (
    IMAGES,
    OUTPUTS,
    PIXEL_TYPES,
    Spelling,
    Tensor,
    inputs_of,
    spelling_of,
)

DEFAULT_MAX_STEPS = 150
DEFAULT_MAX_IMAGES = 16


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Args:
        max_pixels: of a picture, to start from or to make.
        max_steps: of the sampler.
        max_images: of a request, where there are no batches that say so.
    """

    max_pixels: int = MAX_SIDE * MAX_SIDE
    max_steps: int = DEFAULT_MAX_STEPS
    max_images: int = DEFAULT_MAX_IMAGES

    def __post_init__(self) -> None:
        most = {"max_pixels": MAX_SIDE * MAX_SIDE, "max_steps": MAX_STEPS, "max_images": MAX_BATCH}
        for name, high in most.items():
            Integer(1, high)(name, getattr(self, name))

    def check_size(self, width: int, height: int, what: str) -> None:
        """Refuse more pixels than a picture may have; raises ConfigError."""
        if width * height > self.max_pixels:
            accepted = f"at most {self.max_pixels} pixels, which max_pixels in config.pbtxt says"
            raise ConfigError.for_field(what, f"{width}x{height}", accepted)

    def check(self, request: Request) -> None:
        """Refuse a request that asks for more; raises ConfigError."""
        self.check_size(request.width, request.height, "width, height")
        if request.steps > self.max_steps:
            accepted = f"at most {self.max_steps}, which max_steps in config.pbtxt says"
            raise ConfigError.for_field("steps", request.steps, accepted)


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True)
class Settings:
    """What a model is to be.

    Args:
        spelling: of its tensors' names.
        is_batched: the first dimension of each tensor counts the elements of a batch.
        most_rows: elements of a batch.
        pixel_type: of the images that it returns.
        inputs, outputs: that it has.
        cpu_instances: of the model, on this server, that share its processors.
        backend, precision, threads: as for `sdengine.load`; threads None are shared out.
        limits: of requests.
    """

    spelling: Spelling
    is_batched: bool
    most_rows: int
    pixel_type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    cpu_instances: int
    backend: str
    precision: str
    threads: int | None
    limits: Limits


def read_settings(model_config: str) -> Settings:
    """Read the configuration that the server gives a model.

    Args:
        model_config: `config.pbtxt` as JSON, as the server completes it.

    Raises:
        ConfigError: it has tensors or parameters that the model does not know.
    """
    config: Mapping[str, Any] = json.loads(model_config)
    given = config.get("input", ())
    spelling = spelling_of(given)
    if spelling is None:
        raise ConfigError("config.pbtxt: no input is called PROMPT or prompt.")
    most_rows = int(config.get("max_batch_size", 0))
    inputs = _known(given, inputs_of(most_rows > 0), spelling, "input")
    outputs = _known(config.get("output", ()), OUTPUTS, spelling, "output")
    pixel_type = next(
        (
            one["data_type"]
            for one in config.get("output", ())
            if one["name"] == IMAGES.spelled(spelling)
        ),
        IMAGES.data_type,
    )
    parameters = _parameters(config.get("parameters", {}))
    numbers = {name: _number(name, parameters.pop(name, "")) for name in ("threads", *LIMIT_NAMES)}
    threads = numbers.pop("threads")
    groups = config.get("instance_group", ())
    settings = Settings(
        spelling,
        most_rows > 0,
        most_rows,
        pixel_type,
        inputs,
        outputs,
        sum(int(one.get("count", 1)) for one in groups if one.get("kind") == "KIND_CPU"),
        parameters.pop("backend", "") or "auto",
        parameters.pop("precision", "") or "auto",
        threads,
        Limits(**{name: value for name, value in numbers.items() if value is not None}),
    )
    # Those in capitals are the server's own.
    if odd := sorted(name for name in parameters if not name.isupper()):
        known = ", ".join(("backend", "precision", "threads", *LIMIT_NAMES))
        raise ConfigError.for_field("config.pbtxt: parameters", odd[0], known)
    return settings


def _known(
    given: Iterable[Mapping[str, Any]], known: Iterable[Tensor], spelling: Spelling, what: str
) -> tuple[Tensor, ...]:
    by_name = {one.spelled(spelling): one for one in known}
    found = []
    for one in given:
        name, data_type = one.get("name"), one.get("data_type")
        tensor = by_name.get(str(name))
        if tensor is None:
            raise ConfigError.for_field(f"config.pbtxt: {what}", name, ", ".join(by_name))
        types = tuple(PIXEL_TYPES.values()) if tensor is IMAGES else (tensor.data_type,)
        if data_type not in types:
            raise ConfigError.for_field(f"config.pbtxt: {name}", data_type, " or ".join(types))
        found.append(tensor)
    return tuple(found)


def _parameters(given: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: str(value.get("string_value", "")).strip() for name, value in given.items()}


def _number(name: str, value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ConfigError.for_field(f"config.pbtxt: {name}", value, "a number")
    return int(value)
