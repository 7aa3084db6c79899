"""Answers of OpenAI's API: the body of a call, and the events of a streamed one.

Source: the types of its Python client, release 3.57.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from sdengine.images.result import Result
from sdengine.request.request import Request
from sdengine.serving.openai.fields import EDITS
from sdengine.serving.openai.pictures import encoded, encoded_preview
from sdengine.serving.openai.requests import Call

DONE = b"data: [DONE]\n\n"


def files_of(call: Call, result: Result) -> list[bytes]:
    """Return the pictures of a result as files, in their order."""
    options = call.options
    return [
        encoded(result, index, options.output_format, options.compression)
        for index in range(len(result.arrays))
    ]


def in_base64(content: bytes) -> dict[str, str]:
    """Return what is told of a picture that is itself in the answer."""
    return {"b64_json": base64.b64encode(content).decode()}


def answer(call: Call, results: Sequence[Result], given: Sequence[dict[str, str]]) -> bytes:
    """Return the body of an answer.

    Args:
        call: that it answers.
        results: of its requests.
        given: for each picture what is given of it: b64_json, or url.
    """
    seeds = [seed for result in results for seed in result.seeds]
    read = [_read_by(call, result.request) for result in results]
    made = sum(_cells(call, *_size(array)) for result in results for array in result.arrays)
    usage = _usage(sum(text for text, _ in read), sum(image for _, image in read), made)
    told: dict[str, Any] = {
        "created": int(time.time()),
        "data": [{**one, "seed": seed} for one, seed in zip(given, seeds, strict=True)],
        "background": "opaque",
        "output_format": call.options.output_format,
        "quality": call.options.quality,
        "size": "{}x{}".format(*_size(results[0].arrays[0])),
        "usage": {**usage, "output_tokens_details": {"image_tokens": made, "text_tokens": 0}},
    }
    for name in ("warnings", "notes"):
        if said := [text for result in results for text in getattr(result, name)]:
            told[name] = list(dict.fromkeys(said))
    return json.dumps(told).encode()


def partial_event(call: Call, request: Request, preview: NDArray[uint8], number: int) -> bytes:
    """Return the event of a picture [h,w,3] on its way, shown at the size that it will have."""
    options, size = call.options, (request.width, request.height)
    if request.hires is not None:
        size = request.hires_size(*size)
    content = encoded_preview(preview, size, options.output_format, options.compression)
    more = {"partial_image_index": number}
    return _picture_event(call, "partial_image", content, size, more)


def completed_events(call: Call, result: Result) -> list[bytes]:
    """Return an event for each picture of a result; what was read is counted with the first."""
    events = []
    for index, content in enumerate(files_of(call, result)):
        size = _size(result.arrays[index])
        read = _read_by(call, result.request) if index == 0 else (0, 0)
        more: dict[str, Any] = {
            "usage": _usage(*read, _cells(call, *size)),
            "seed": result.seeds[index],
        }
        for name in ("warnings", "notes"):
            if said := getattr(result, name):
                more[name] = list(said)
        events.append(_picture_event(call, "completed", content, size, more))
    return events


def error_event(told: dict[str, Any]) -> bytes:
    """Return the event of what went wrong, the body of an answer to an error; nothing follows."""
    return _event("error", {"type": "error", **told})


def _picture_event(
    call: Call, what: str, content: bytes, size: tuple[int, int], more: dict[str, Any]
) -> bytes:
    name = f"{'image_edit' if call.kind == EDITS else 'image_generation'}.{what}"
    told = {
        "type": name,
        **in_base64(content),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": call.options.output_format,
        "quality": call.options.quality,
        "size": "{}x{}".format(*size),
        **more,
    }
    return _event(name, told)


def _event(name: str, told: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(told)}\n\n".encode()


def _size(array: NDArray[uint8]) -> tuple[int, int]:
    return array.shape[1], array.shape[0]


def _usage(text: int, image: int, made: int) -> dict[str, Any]:
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": made,
        "total_tokens": text + image + made,
    }


def _read_by(call: Call, request: Request) -> tuple[int, int]:
    """Return the tokens that a request's texts have as they are written, and its picture's cells.

    A text that many images have is read once.
    """
    texts = dict.fromkeys((*request.prompts, *request.negative_prompts))
    image = 0 if request.image is None else _cells(call, request.width, request.height)
    return sum(map(call.engine.count_tokens, texts)), image


def _cells(call: Call, width: int, height: int) -> int:
    """Return how many latent positions, of 8x8 pixels, a picture has."""
    side = call.engine.bundle.manifest.architecture.vae.downscale
    return -(-width // side) * -(-height // side)
