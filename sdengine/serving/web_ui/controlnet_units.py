"""Units of the web UI's ControlNet extension, said as controls of a request."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdengine.bundle.controls import ControlArchitecture
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.web_ui_text import CONTROL_MODES, CONTROL_RESIZES
from sdengine.inputs.control_picture import control_pixels, resized_control
from sdengine.inputs.picture import Pixels
from sdengine.request.control import CONTROL_TYPES, MAX_CONTROLS, Control
from sdengine.request.preprocessors import hint_of
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.payload import Pictures
from sdengine.serving.web_ui.controlnet_modules import Module, find_module
from sdengine.serving.web_ui.fields import Generation, Txt2Img, Unit, checked

SCRIPT = "controlnet"
_HASH_DIGITS = 8
_RESIZES = {text.lower(): own for own, text in CONTROL_RESIZES.items()} | {
    "scale to fit (inner fit)": "crop",
    "envelope (outer fit)": "fill",
}
_NUMBERED_RESIZES = ("stretch", "crop", "fill")
_MODES = {text.lower(): own for own, text in reversed(CONTROL_MODES.items())}
_NUMBERED_MODES = ("balanced", "prompt", "control")
_BOTH = ("both", "hiresfixoption.both", 0)
_UNION_TYPES = {
    "openpose": "openpose",
    "depth": "depth",
    "hed/pidi/scribble/ted": "scribble",
    "canny/lineart/mlsd": "canny",
    "normal map": "normal",
    "segment": "segmentation",
    "tile": "tile",
    "repaint": "inpaint",
}


def units_of(fields: Generation) -> list[Unit]:
    """Return the units of a request's scripts that run with everything.

    Raises:
        HTTPError: such a script is not there; 422, as clients expect it.
        ConfigError: a unit is none.
    """
    found: list[Unit] = []
    for name, script in fields.alwayson_scripts.items():
        if name.strip().lower() != SCRIPT:
            message = f"alwayson_scripts: script {name[:80]!r} not found; there is {SCRIPT!r}."
            raise HTTPError(422, message, "ScriptNotFound")
        args = script.get("args", []) if isinstance(script, Mapping) else script
        if args is None:
            continue
        if not isinstance(args, list) or len(found) + len(args) > MAX_CONTROLS:
            accepted = f"an object with a list of up to {MAX_CONTROLS} units as args"
            raise ConfigError.for_field(f"alwayson_scripts.{SCRIPT}", script, accepted)
        for one in args:
            if isinstance(one, bool):  # as extensions switch themselves off
                continue
            found.append(checked(Unit, one, f"{SCRIPT}[{len(found)}]"))
    return found


def controls_of(
    fields: Generation,
    engine: Engine,
    pictures: Pictures,
    image: bytes | None,
    warnings: list[str],
) -> tuple[list[Control], list[bool]]:
    """Return the controls that a request's units are.

    Args:
        fields: of the request.
        engine: whose bundle has the networks.
        pictures: how theirs are had.
        image: that the request starts from, for units without a picture.
        warnings: takes sentences on units that do nothing.

    Returns:
        The controls, and of each whether what it reads is to be given back.

    Raises:
        ConfigError: a unit asks for what is not there; the message has its number.
    """
    known = engine.bundle.manifest.architecture.controls
    controls, shows = [], []
    for number, unit in enumerate(units_of(fields)):
        place = f"{SCRIPT}[{number}]"
        if not unit.enabled:
            if unit.model.lower() != "none" and "enabled" not in unit.model_fields_set:
                warnings.append(f"{place}: it is not enabled, and has no effect.")
            continue
        is_hires = isinstance(fields, Txt2Img) and fields.enable_hr
        _refuse(place, unit, is_hires=is_hires)
        controls.append(_control(place, unit, known, pictures, image))
        shows.append(unit.save_detected_map)
    return controls, shows


def _control(
    place: str,
    unit: Unit,
    known: Mapping[str, ControlArchitecture],
    pictures: Pictures,
    image: bytes | None,
) -> Control:
    module = find_module(f"{place}.module", unit.module)
    network = find_model(f"{place}.model", unit.model, known)
    resolution = unit.processor_res
    given = unit.image
    mask = unit.mask
    if isinstance(given, Mapping):
        mask, given = mask or given.get("mask"), given.get("image")
    if mask:
        hint = "Give it as mask of the request, with module inpaint."
        raise ConfigError.for_field(f"{place}.mask", "a picture", "none in a unit", hint)
    if given:
        picture = pictures(f"{place}.image", given)
    elif image is not None:
        picture = image
    else:
        raise ConfigError(f"{place}.image: it is missing, and the request starts from no picture.")
    return Control(
        network=network,
        image=picture,
        scale=unit.weight,
        start=unit.guidance_start,
        end=unit.guidance_end,
        mode=_choice(f"{place}.control_mode", unit.control_mode, _MODES, _NUMBERED_MODES),
        layer_weights=unit.advanced_weighting,
        resize=_choice(f"{place}.resize_mode", unit.resize_mode, _RESIZES, _NUMBERED_RESIZES),
        masked=module.is_masked,
        control_type=_control_type(place, unit, known[network], module),
        preprocess=module.preprocess,
        preprocess_options=module.options(
            resolution, unit.threshold_a, unit.threshold_b, pixel_perfect=unit.pixel_perfect
        ),
    )


def _refuse(place: str, unit: Unit, *, is_hires: bool) -> None:
    """Refuse what would change the pictures and cannot be done."""
    for name in ("effective_region_mask", "ipadapter_input", "batch_images"):
        if getattr(unit, name):
            raise ConfigError.for_field(f"{place}.{name}", "one", "none")
    mode = unit.input_mode.lower().rpartition(".")[2]
    if mode != "simple":
        raise ConfigError.for_field(f"{place}.input_mode", unit.input_mode, "simple")
    option = unit.hr_option
    if is_hires and (option.lower() if isinstance(option, str) else option) not in _BOTH:
        accepted = "Both: a control steers both passes"
        raise ConfigError.for_field(f"{place}.hr_option", option, accepted)
    if not unit.inpaint_crop_input_image:
        accepted = "true: where inpaint_full_res cuts, controls are cut alike"
        raise ConfigError.for_field(f"{place}.inpaint_crop_input_image", False, accepted)


def _choice(
    field: str, value: int | str, names: Mapping[str, str], numbers: tuple[str, ...]
) -> str:
    if isinstance(value, str):
        if value.strip().lower() in names:
            return names[value.strip().lower()]
        value = int(value) if value in ("0", "1", "2") else -1
    if not 0 <= value < len(numbers):
        raise ConfigError.for_field(field, value, f"0 to 2, or one of {', '.join(names)}")
    return numbers[value]


def _control_type(
    place: str, unit: Unit, architecture: ControlArchitecture, module: Module
) -> str | None:
    if not architecture.control_types:
        return None
    given = unit.union_control_type.strip().lower()
    if given in ("", "unknown", "none"):
        return module.control_type
    found = _UNION_TYPES.get(given, given)
    if found not in CONTROL_TYPES:
        accepted = f"one of {', '.join(CONTROL_TYPES)}"
        raise ConfigError.for_field(f"{place}.union_control_type", given, accepted)
    return found


def model_title(name: str, architecture: ControlArchitecture) -> str:
    """Return what clients choose a control by, as in "canny [01234567]"."""
    return f"{name} [{architecture.sha256[:_HASH_DIGITS]}]"


def find_model(field: str, given: str, known: Mapping[str, ControlArchitecture]) -> str:
    """Return the name in the bundle of a control, given by title or name in any case.

    Raises:
        ConfigError: the bundle has none of it.
    """
    wanted = given.strip().lower()
    for name, architecture in known.items():
        if wanted in (name.lower(), model_title(name, architecture).lower()):
            return name
    titles = [model_title(*one) for one in known.items()]
    accepted = f"one of {', '.join(titles)}" if titles else "none: the bundle has no controls"
    raise ConfigError.for_field(field, given, accepted)


def detected_map(control: Control, width: int, height: int) -> Pixels:
    """Return what a control reads at a size, [height,width,3]."""
    pixels, options = control_pixels(control.image), dict(control.preprocess_options)
    is_sized = "resolution" in options
    if is_sized:
        pixels = hint_of(pixels, control.preprocess, options)
    pixels = resized_control(pixels, width, height, control.resize)
    if not is_sized:
        pixels = hint_of(pixels, control.preprocess, options)
    return np.ascontiguousarray(pixels)
