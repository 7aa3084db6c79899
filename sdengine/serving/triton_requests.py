"""Requests of clients of Triton Inference Server: their arrays become checked requests.

Each picture is a request of its own, so that those of several clients may be made together; see
`sdengine.pipeline.joining`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.request.fields import PROMPT, Integer
from sdengine.request.keywords import RANDOM_SEED
from sdengine.request.request import Request, random_seed
from sdengine.serving.triton_settings import Settings

Array = NDArray[Any]
# A seed is told to clients in 64 bits with a sign, as they give it.
_SEED = Integer(RANDOM_SEED, 2**63 - 1)
_RANDOM = np.array([RANDOM_SEED], np.int64)
_MOST_BYTES = 4 * PROMPT.max_characters  # of a text in UTF-8
# What published clients send where they have no negative prompt.
_NO_NEGATIVE = "NONE"
_TEXTS = ("prompt", "negative_prompt")
_NAMES = ("sampler", "schedule", "scheduler")
_PIXELS = ("image", "mask")
_LISTS = frozenset((*_TEXTS, "seed"))  # without batches, of all others there is one value


def read_requests(given: Mapping[str, Array], engine: Engine, settings: Settings) -> list[Request]:
    """Return a request for each picture that a client asks for.

    Args:
        given: the arrays of the tensors that it sent, by their fields in `triton_tensors`: with
            batches the first dimension counts pictures, without them prompt [P], negative_prompt
            and seed [1] or one a picture, all others one value. Strings are bytes objects.
        engine: whose bundle says what is not given.
        settings: of the model.

    Returns:
        The requests, each of one picture. Without batches they are `samples` of the first prompt,
        as many of the second, and so on; picture i has seed + i where one seed is given.

    Raises:
        ConfigError: a value is not acceptable or beyond the limits; nothing has run.
    """
    if given["prompt"].size == 0:
        raise ConfigError("prompt: there is none.")
    rows = _batch(given) if settings.is_batched else _unbatched(given, settings)
    requests = [_request(row, engine, settings) for row in rows]
    sizes = {(one.width, one.height) for one in requests}
    if len(sizes) > 1:  # which a batch may ask for, and no tensor holds
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise ConfigError(f"width, height: {shown}; the pictures of a batch are of one size.")
    return requests


def _batch(given: Mapping[str, Array]) -> list[dict[str, Any]]:
    count = len(given["prompt"])
    for name, array in given.items():
        if len(array) != count:
            raise ConfigError(f"{name}: {len(array)} elements in a batch of {count}.")
    return [
        {name: _value(name, array[index]) for name, array in given.items()}
        for index in range(count)
    ]


def _unbatched(given: Mapping[str, Array], settings: Settings) -> list[dict[str, Any]]:
    common = {name: _value(name, array) for name, array in given.items() if name not in _LISTS}
    most = settings.limits.max_images
    samples = Integer(1, most)("samples", common.pop("samples", 1))
    count = samples * given["prompt"].size
    if count > most:
        accepted = f"at most {most}, which max_images in config.pbtxt says"
        raise ConfigError.for_field("prompt, samples", f"{count} pictures", accepted)
    rows = [{**common} for _ in range(count)]
    for name in ("prompt", "negative_prompt"):
        if name in given:
            _give_each(rows, name, given[name].reshape(-1), samples)
    _give_each(rows, "seed", given.get("seed", _RANDOM).reshape(-1), samples)
    return rows


def _give_each(rows: list[dict[str, Any]], name: str, array: Array, samples: int) -> None:
    """Give every picture its text or seed: of one for all, one a prompt, or one a picture."""
    count = len(rows)
    values = [_value(name, one) for one in array]
    if name == "seed" and len(values) == 1 < count:
        first = random_seed() if values[0] == RANDOM_SEED else values[0]
        values = [first + index for index in range(count)]
    elif name != "seed" and len(values) == 1:
        values *= count
    elif name != "seed" and len(values) * samples == count:
        values = [value for value in values for _ in range(samples)]
    if len(values) != count:
        raise ConfigError(f"{name}: {len(values)} values for {count} pictures; give one, or each.")
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _value(name: str, array: Any) -> Any:
    """Return what an array of one element holds, or pixels as they are."""
    if name in _PIXELS:
        return array
    value = array
    if isinstance(array, np.ndarray):
        if array.size != 1:
            raise ConfigError(f"{name}: {array.size} values, where one is read.")
        value = array.reshape(-1)[0]
    if name in (*_TEXTS, *_NAMES):
        return _text(name, value)
    if isinstance(value, np.floating):
        return float(str(value))  # 0.6 of 32 bits, which as it is would not be 0.6 in 64
    return int(value)


def _text(name: str, value: Any) -> str:
    content = value if isinstance(value, bytes) else str(value).encode()
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{name}: {len(content)} bytes; at most {_MOST_BYTES} are accepted.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: it is no text in UTF-8.") from None


def _request(row: Mapping[str, Any], engine: Engine, settings: Settings) -> Request:
    fields = {name: value for name, value in row.items() if not (name in _NAMES and value == "")}
    prompt, negative = fields.pop("prompt"), fields.pop("negative_prompt", "")
    if negative == _NO_NEGATIVE and settings.spelling == "capitals":
        negative = ""
    if (scheduler := fields.pop("scheduler", None)) is not None:
        if "sampler" in fields:
            raise ConfigError("scheduler, sampler: both are given; give one of them.")
        fields["sampler"] = scheduler
    if "seed" in fields:
        fields["seed"] = _SEED("seed", fields["seed"])
    for name in _PIXELS:
        if name in fields:
            height, width = fields[name].shape[:2]
            settings.limits.check_size(width, height, name)
    width, height = fields.get("width"), fields.get("height")
    if width is not None and height is not None:  # before a picture is read for that size
        settings.limits.check_size(width, height, "width, height")
    request = engine.request(prompt, negative, **fields)
    settings.limits.check(request)
    engine.stream(request)  # which checks it, and does nothing until it is iterated
    return request
