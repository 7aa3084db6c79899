"""Routes of the web UI's ControlNet extension: what there is, and preprocessors on their own."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.images.png import encode_png
from sdengine.request.control import MAX_CONTROLS
from sdengine.request.preprocessors import preprocess
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.served import served
from sdengine.serving.service import Service
from sdengine.serving.web_ui.answers import json_answer
from sdengine.serving.web_ui.controlnet_modules import MODULES, find_module
from sdengine.serving.web_ui.controlnet_units import model_title
from sdengine.serving.web_ui.fields import Detect, body_schema, parsed
from sdengine.serving.web_ui.owners import workbench_of

router = APIRouter(prefix="/controlnet")
_API_VERSION = 3
_NONE = "None"


@router.get("/version")
async def version() -> dict[str, int]:
    """Tell which version of the extension's API this is."""
    return {"version": _API_VERSION}


@router.get("/model_list")
async def model_list(request: Request) -> dict[str, list[str]]:
    """List the controls of all bundles."""
    return {"model_list": _models(served(request))}


@router.get("/module_list")
async def module_list(alias_names: Annotated[bool, Query()] = False) -> dict[str, Any]:
    """List the modules, by their names or those that pages show."""
    names = {name: (one.alias or name) if alias_names else name for name, one in MODULES.items()}
    return {
        "module_list": list(names.values()),
        "module_detail": {names[name]: one.described() for name, one in MODULES.items()},
    }


@router.get("/control_types")
async def control_types(request: Request) -> dict[str, Any]:
    """List modules and models by the kind of picture."""
    models = [_NONE, *_models(served(request))]
    kinds = sorted({kind for one in MODULES.values() for kind in one.kinds})
    found = {"All": _kind(list(MODULES), "none", models)}
    for kind in kinds:
        named = [name for name, one in MODULES.items() if kind in one.kinds]
        found[kind] = _kind(["none", *named], named[0], models)
    return {"control_types": found}


@router.get("/settings")
async def settings() -> dict[str, int]:
    """Tell how many units a request may have."""
    return {"control_net_unit_count": MAX_CONTROLS}


@router.post("/detect", openapi_extra=body_schema(Detect))
async def detect(request: Request) -> Response:
    """Make of pictures what controls read."""
    service, body = served(request), await request.body()
    work = workbench_of(request)
    return json_answer(await work.do(lambda: _detected(parsed(Detect, body), service)))


def _detected(fields: Detect, service: Service) -> dict[str, Any]:
    given = fields.controlnet_input_images or fields.controlnet_images
    if not given:
        raise HTTPError(422, "controlnet_input_images: no picture is given.", "NoImage")
    if len(given) > service.limits.max_images:
        accepted = f"at most {service.limits.max_images} on this server"
        raise ConfigError.for_field("controlnet_input_images", f"{len(given)} pictures", accepted)
    try:
        module = find_module("controlnet_module", fields.controlnet_module)
    except ConfigError as error:
        raise HTTPError(422, str(error), "ModuleNotFound") from None
    if module.is_masked:
        message = "controlnet_module: what it makes of a picture and a mask is no picture."
        raise HTTPError(422, message, "ModuleNotSupported")
    if fields.controlnet_masks:
        accepted = "none: no module here reads one"
        raise ConfigError.for_field("controlnet_masks", "some", accepted)
    options = module.options(
        fields.controlnet_processor_res,
        fields.controlnet_threshold_a,
        fields.controlnet_threshold_b,
        pixel_perfect=False,
    )
    images = []
    for one in given:
        picture = service.pictures("controlnet_input_images", one)
        made = preprocess(picture, module.preprocess, background="#000000", **options)
        content = encode_png(Image.fromarray(made.astype("uint8")), {})
        images.append(base64.b64encode(content).decode())
    return {"info": "Success", "images": images}


def _models(service: Service) -> list[str]:
    found = {
        model_title(name, one): None
        for engine in service.engines.values()
        for name, one in engine.bundle.manifest.architecture.controls.items()
    }
    return list(found)


def _kind(modules: list[str], usual: str, models: list[str]) -> dict[str, Any]:
    return {
        "module_list": modules,
        "model_list": models,
        "default_option": usual,
        "default_model": models[1] if len(models) > 1 else _NONE,
    }
