"""Routes of the web UI's API that work on pictures without a prompt: extras and texts."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sdengine.errors import ConfigError
from sdengine.images.png import encode_png
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.served import served
from sdengine.serving.service import Service
from sdengine.serving.web_ui.answers import json_answer
from sdengine.serving.web_ui.enlarging import enlarged, refuse_faces
from sdengine.serving.web_ui.fields import (
    Extras,
    ExtrasBatch,
    ExtrasSingle,
    OneImage,
    body_schema,
    parsed,
)
from sdengine.serving.web_ui.owners import workbench_of
from sdengine.serving.web_ui.picture_texts import texts_of

router = APIRouter(prefix="/sdapi/v1")


@router.post("/extra-single-image", openapi_extra=body_schema(ExtrasSingle))
async def extra_single_image(request: Request) -> Response:
    """Enlarge a picture."""
    service, body = served(request), await request.body()

    def work() -> dict[str, Any]:
        fields = parsed(ExtrasSingle, body)
        images, told = _enlarged(fields, service, [("image", fields.image)])
        return {"html_info": told, "image": images[0] if images else None}

    return json_answer(await workbench_of(request).do(work))


@router.post("/extra-batch-images", openapi_extra=body_schema(ExtrasBatch))
async def extra_batch_images(request: Request) -> Response:
    """Enlarge several pictures; their names are for the client alone."""
    service, body = served(request), await request.body()

    def work() -> dict[str, Any]:
        fields = parsed(ExtrasBatch, body)
        most = service.limits.max_images
        if not 1 <= len(fields.imageList) <= most:
            shown = f"{len(fields.imageList)} pictures"
            raise ConfigError.for_field("imageList", shown, f"1 to {most} on this server")
        given = [(f"imageList[{i}].data", one.data) for i, one in enumerate(fields.imageList)]
        images, told = _enlarged(fields, service, given)
        return {"html_info": told, "images": images}

    return json_answer(await workbench_of(request).do(work))


@router.post("/png-info", openapi_extra=body_schema(OneImage))
async def png_info(request: Request) -> Response:
    """Tell what a picture says of how it was made."""
    service, body = served(request), await request.body()

    def work() -> dict[str, Any]:
        image = parsed(OneImage, body).image
        return texts_of("image", service.pictures("image", image))

    return json_answer(await workbench_of(request).do(work))


@router.post("/interrogate")
async def interrogate() -> None:
    """Refuse to describe a picture."""
    message = "interrogate: the server has no model that describes pictures. png-info reads texts."
    raise HTTPError(400, message, "NotImplemented")


def _enlarged(
    fields: Extras, service: Service, given: Sequence[tuple[str, Any]]
) -> tuple[list[str], str]:
    refuse_faces(fields)
    images, told = [], []
    for field, value in given:
        image, sentence = enlarged(fields, field, value, service)
        images.append(base64.b64encode(encode_png(image, {})).decode())
        told.append(f"<p>{html.escape(sentence)}</p>")
    return images if fields.show_extras_results else [], "".join(told)
