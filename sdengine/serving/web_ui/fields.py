"""Fields of the web UI's calls with the defaults that its server gives them; others are ignored.

Null stands for a default, as there. Names, types and defaults are the server's own; width and
height alone have none here: they are the bundle's, or those of the picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdengine.errors import ConfigError

Name = Annotated[str, Field(max_length=500)]
Text = Annotated[str, Field(max_length=1 << 20)]
Share = Annotated[float, Field(ge=0, le=1)]
_MOST_SHOWN = 80


class Fields(BaseModel):
    """Base of all bodies: unknown fields are ignored, null is what is not given."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if value is not None}
        return values


class Generation(Fields):
    """What txt2img and img2img have in common."""

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[Name] = []
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: Name = ""
    sampler_index: Name = "Euler"
    scheduler: Name = ""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int | None = None
    height: int | None = None
    restore_faces: bool = False
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float | None = None
    denoising_strength: float = 0.75
    s_min_uncond: float = 0.0
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: Name = ""
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: Any = None
    script_name: Name = ""
    script_args: list[Any] = []
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] = {}
    force_task_id: Name = ""
    infotext: Annotated[str, Field(max_length=1 << 16)] = ""


class Txt2Img(Generation):
    """Body of txt2img."""

    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: Name = ""
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: Name = ""
    hr_sampler_name: Name = ""
    hr_scheduler: Name = ""
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""


class Img2Img(Generation):
    """Body of img2img."""

    init_images: list[Any] = []
    resize_mode: int = 0
    image_cfg_scale: float | None = None
    mask: Any = None
    mask_blur: float | None = None
    mask_blur_x: float = 4
    mask_blur_y: float = 4
    mask_round: bool = True
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None
    latent_mask: Any = None
    include_init_images: bool = False


class Extras(Fields):
    """What extra-single-image and extra-batch-images have in common."""

    resize_mode: Annotated[int, Field(ge=0, le=1)] = 0
    show_extras_results: bool = True
    gfpgan_visibility: Share = 0
    codeformer_visibility: Share = 0
    codeformer_weight: Share = 0
    upscaling_resize: Annotated[float, Field(gt=0, le=64)] = 2
    upscaling_resize_w: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    upscaling_resize_h: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    upscaling_crop: bool = True
    upscaler_1: Name = "None"
    upscaler_2: Name = "None"
    extras_upscaler_2_visibility: Share = 0
    upscale_first: bool = False


class ExtrasSingle(Extras):
    """Body of extra-single-image."""

    image: Any = ""


class FileData(Fields):
    """One of several pictures."""

    data: Any = ""
    name: Name = ""


class ExtrasBatch(Extras):
    """Body of extra-batch-images."""

    imageList: list[FileData] = []


class OneImage(Fields):
    """Body of png-info."""

    image: Any = ""


class Task(Fields):
    """Body of /internal/progress."""

    id_task: Name = ""
    id_live_preview: int = -1
    live_preview: bool = True


class Unit(Fields):
    """One unit of `alwayson_scripts.controlnet.args`; older names of its fields are read too."""

    enabled: bool = False
    module: Name = "none"
    model: Name = "None"
    weight: float = 1.0
    image: Any = None
    mask: Any = None
    resize_mode: int | Name = "Crop and Resize"
    low_vram: bool = False
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    control_mode: int | Name = "Balanced"
    pixel_perfect: bool = False
    hr_option: int | Name = "Both"
    inpaint_crop_input_image: bool = True
    save_detected_map: bool = True
    advanced_weighting: list[float] | None = None
    effective_region_mask: Any = None
    union_control_type: Name = "Unknown"
    ipadapter_input: Any = None
    batch_images: Any = None
    input_mode: Name = "simple"

    @model_validator(mode="before")
    @classmethod
    def _by_older_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for old, new in _OLDER:
            if found.get(new) is None and found.get(old) is not None:
                found[new] = found[old]
        return found


_OLDER = (
    ("guidance", "guidance_end"),
    ("lowvram", "low_vram"),
    ("input_image", "image"),
    ("mask_image", "mask"),
)


class Detect(Fields):
    """Body of /controlnet/detect; a client in wide use has another name for the pictures."""

    controlnet_module: Name = "none"
    controlnet_input_images: list[Any] = []
    controlnet_images: list[Any] = []
    controlnet_masks: list[Any] = []
    controlnet_processor_res: float = -1
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1
    low_vram: bool = False


_Model = TypeVar("_Model", bound=Fields)


def parsed(model: type[_Model], body: bytes) -> _Model:
    """Return the fields of a body.

    Raises:
        ConfigError: it is no JSON object, or a field is of another kind; the message names it.
    """
    return checked(model, json_object(body))


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        ConfigError: it is none.
    """
    try:
        content = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ConfigError("request: it is not valid JSON.") from None
    if not isinstance(content, dict):
        raise ConfigError("request: its JSON is not an object of fields by name.")
    return content


def checked(model: type[_Model], values: object, place: str = "") -> _Model:
    """Return the fields that values are.

    Args:
        model: of the fields.
        values: by name.
        place: before the names of fields in errors.

    Raises:
        ConfigError: a field is of another kind; the message names it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part)[:_MOST_SHOWN] for part in first["loc"][:3])
        shown = ".".join(filter(None, (place, name))) or "request"
        said = first["msg"][:1].lower() + first["msg"][1:]
        field = shown if shown.isprintable() else ascii(shown)
        raise ConfigError.for_field(field, first["input"], f"what the API says: {said}") from None
    except (OverflowError, RecursionError):
        message = f"{place or 'request'}: a number is too large, or lists lie too deep."
        raise ConfigError(message) from None


def body_schema(model: type[Fields]) -> dict[str, Any]:
    """Return what OpenAPI says of a body, each of whose fields may also be null."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    for place in (schema, *parts.values()):
        place["properties"] = {
            name: {"anyOf": [one, {"type": "null"}]} for name, one in place["properties"].items()
        }

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return whole(parts[value["$ref"].rpartition("/")[2]])
            return {name: whole(one) for name, one in value.items()}
        return [whole(one) for one in value] if isinstance(value, list) else value

    content = {"application/json": {"schema": whole(schema)}}
    return {"requestBody": {"required": True, "content": content}}


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
