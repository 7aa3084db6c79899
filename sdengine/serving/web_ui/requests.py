"""Requests of the web UI's clients, said in keywords of `Engine.request`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.web_ui_text import EMPHASIS, HIRES_UPSCALERS
from sdengine.inputs.resize import MODES
from sdengine.request.keywords import WEB_UI_CLIP_SKIP
from sdengine.request.request import random_seed
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.service import Service
from sdengine.serving.web_ui.controlnet_units import controls_of
from sdengine.serving.web_ui.fields import Generation, Img2Img, Txt2Img
from sdengine.serving.web_ui.refusals import refuse_what_is_not_there
from sdengine.serving.web_ui.sampling import sampling_of
from sdengine.serving.web_ui.settings import DECODERS, NOISE, RNG

_FILLS = ("fill", "original", "latent_noise", "latent_nothing")
_NO_UPSCALER = "None"


class Asked:
    """What a client asked for; calling it gives the keywords of `Engine.request`.

    Args:
        fields: of the body.
        settings: of the client and of the request, all of them.
        service: of which names mean something.
        engine: that shall run it.
        model: name of a model in the catalogue in place of the bundle's; "" for none.
        warnings: what is known already.

    Attributes:
        warnings: sentences on what has no effect; complete once the keywords were given.
        shows_map: of each control, whether what it reads is given back beside the pictures.
    """

    def __init__(
        self,
        fields: Generation,
        settings: Mapping[str, Any],
        service: Service,
        engine: Engine,
        model: str = "",
        warnings: Sequence[str] = (),
    ) -> None:
        self.fields = fields
        self.settings = settings
        self.engine = engine
        self.model = model
        self.warnings = list(warnings)
        self.shows_map: list[bool] = []
        self._service = service

    def __call__(self) -> dict[str, Any]:
        """Return the keywords; pictures are decoded for their sizes, so call it in a thread.

        Raises:
            ConfigError: a field asks for what cannot be had.
            HTTPError: a sampler, a schedule, a script or a picture is not there.
        """
        fields = self.fields
        refuse_what_is_not_there(fields)
        keywords: dict[str, Any] = {
            "prompt": fields.prompt,
            "negative_prompt": fields.negative_prompt,
            "steps": fields.steps,
            "guidance_scale": fields.cfg_scale,
            "noise": NOISE[self.settings[RNG]],
            **{name: getattr(fields, name) for name in ("width", "height")},
            **self._seeds(),
            **self._by_settings(),
        }
        if isinstance(fields, Txt2Img):
            keywords |= self._second_pass(fields, keywords)
        keywords |= sampling_of(fields, self.settings, self.warnings)
        if isinstance(fields, Img2Img):
            keywords |= self._picture(fields)
        if self.model:
            path = self._service.catalogue.path("sd_model_checkpoint", "model", self.model)
            keywords["model"] = path
        keywords["controls"], self.shows_map = controls_of(
            fields, self.engine, self._service.pictures, keywords.get("image"), self.warnings
        )
        if self.settings["control_net_no_detectmap"]:
            self.shows_map = [False for _ in self.shows_map]
        return {name: value for name, value in keywords.items() if value is not None}

    def _seeds(self) -> dict[str, Any]:
        """Return seeds: of picture k of all seed + k, or with a second noise, of that one."""
        fields = self.fields
        count = _count(fields, self._service.limits.max_images)
        keywords: dict[str, Any] = {"seed": fields.seed, "batch_size": count}
        if fields.seed == -1:
            keywords["seed"] = random_seed()
        if fields.subseed_strength:
            keywords["seed"] = [keywords["seed"]] * count
            keywords["variation_seed"] = fields.subseed
            keywords["variation_strength"] = fields.subseed_strength
        if fields.seed_resize_from_w > 0 and fields.seed_resize_from_h > 0:
            keywords["seed_width"] = fields.seed_resize_from_w
            keywords["seed_height"] = fields.seed_resize_from_h
        return keywords

    def _by_settings(self) -> dict[str, Any]:
        settings, tiling = self.settings, self.fields.tiling
        keywords: dict[str, Any] = {
            "emphasis": EMPHASIS[settings["emphasis"]],
            "decoder": DECODERS[settings["sd_vae_decode_method"]],
        }
        if settings["CLIP_stop_at_last_layers"] != 1:
            keywords[WEB_UI_CLIP_SKIP] = settings["CLIP_stop_at_last_layers"]
        if settings["tiling"] if tiling is None else tiling:
            keywords["seamless"] = "xy"
        return keywords

    def _second_pass(self, fields: Txt2Img, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if not fields.enable_hr:
            return {}
        found: dict[str, Any] = {}
        target: Any = fields.hr_scale
        if fields.hr_resize_x or fields.hr_resize_y:
            target = (fields.hr_resize_x, fields.hr_resize_y)
        first = (fields.firstphase_width, fields.firstphase_height)
        if any(first):  # as older clients say it: width and height are the second pass's
            if not all(first):
                raise ConfigError("firstphase_width, firstphase_height: give both or neither.")
            defaults = self.engine.bundle.manifest.defaults
            target = (
                keywords["width"] or defaults.width,
                keywords["height"] or defaults.height,
            )
            found = dict(zip(("width", "height"), first, strict=True))
        return {
            **found,
            "hires": target,
            "hires_strength": fields.denoising_strength,
            "hires_steps": fields.hr_second_pass_steps,
            "hires_prompt": fields.hr_prompt or None,
            "hires_negative_prompt": fields.hr_negative_prompt or None,
            **self._upscaler(fields.hr_upscaler or "Latent"),
        }

    def _upscaler(self, name: str) -> dict[str, Any]:
        for label, own in HIRES_UPSCALERS.items():
            if name.lower() == label.lower():
                return {"hires_upscaler": own}
        if name == _NO_UPSCALER:
            return {"hires_upscaler": "lanczos"}
        path = upscaler_path(self._service, "hr_upscaler", name, HIRES_UPSCALERS)
        return {"hires_model": path, "hires_upscaler": "lanczos"}

    def _picture(self, fields: Img2Img) -> dict[str, Any]:
        if not fields.init_images:
            raise HTTPError(404, "init_images: a picture is missing.", "InitImageNotFound")
        if len(fields.init_images) > 1:
            shown = f"{len(fields.init_images)} pictures"
            raise ConfigError.for_field("init_images", shown, "one picture a request")
        pictures, settings = self._service.pictures, self.settings
        keywords: dict[str, Any] = {
            "image": pictures("init_images", fields.init_images[0]),
            "strength": fields.denoising_strength,
            "strength_rule": "exact" if settings["img2img_fix_steps"] else "web_ui",
            "resize": _of_number("resize_mode", fields.resize_mode, MODES),
            "background": settings["img2img_background_color"],
            "color_correction": settings["img2img_color_correction"],
        }
        if not fields.mask:
            return keywords
        blurs = {fields.mask_blur_x, fields.mask_blur_y}
        if fields.mask_blur is None and len(blurs) > 1:
            shown = f"{fields.mask_blur_x:g}, {fields.mask_blur_y:g}"
            raise ConfigError.for_field("mask_blur_x, mask_blur_y", shown, "equal ones")
        keywords |= {
            "mask": pictures("mask", fields.mask),
            "mask_blur": blurs.pop() if fields.mask_blur is None else fields.mask_blur,
            "mask_invert": bool(
                _of_number("inpainting_mask_invert", fields.inpainting_mask_invert, (0, 1))
            ),
            "masked_content": _of_number("inpainting_fill", fields.inpainting_fill, _FILLS),
        }
        if fields.inpaint_full_res:
            if fields.resize_mode:
                self.warnings.append("resize_mode: it has no effect with inpaint_full_res.")
            keywords |= {
                "resize": "stretch",
                "inpaint_area": "masked",
                "mask_padding": fields.inpaint_full_res_padding,
            }
        return keywords


def upscaler_path(
    service: Service, field: str, name: str, others: Sequence[str] | Mapping[str, Any]
) -> Any:
    """Return the file of an upscaler by its name, with or without its ending.

    Raises:
        ConfigError: there is none.
    """
    known = service.catalogue.files("upscaler")
    for one, path in known.items():
        if name.lower() in (one.lower(), f"{one}.onnx".lower()):
            return path
    accepted = f"one of {', '.join([_NO_UPSCALER, *others, *list(known)[:20]])}"
    raise ConfigError.for_field(field, name, accepted)


def _count(fields: Generation, most: int) -> int:
    """Return how many pictures a request is for."""
    for name in ("batch_size", "n_iter"):
        value = getattr(fields, name)
        if not 1 <= value <= most:
            raise ConfigError.for_field(name, value, f"1 to {most} on this server")
    count: int = fields.batch_size * fields.n_iter
    if count > most:
        shown = f"{fields.batch_size} x {fields.n_iter} pictures"
        raise ConfigError.for_field("batch_size, n_iter", shown, f"at most {most} on this server")
    return count


def _of_number(field: str, number: int, values: Sequence[Any]) -> Any:
    if not 0 <= number < len(values):
        raise ConfigError.for_field(field, number, f"0 to {len(values) - 1}")
    return values[number]
