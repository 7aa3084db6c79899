"""Request fields of pictures: what images are made from beside the prompt, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdengine.errors import ConfigError
from sdengine.inputs.recorded import Recorded
from sdengine.inputs.resize import MODES
from sdengine.request.control import Control, Controls
from sdengine.request.fields import (
    DEPTH,
    PICTURE,
    Choice,
    Color,
    FieldInfo,
    Flag,
    Integer,
    Number,
    about,
)
from sdengine.request.hires_fields import HiresFields, hires_text
from sdengine.request.ip_adapters import IPAdapter, IPAdapters
from sdengine.request.outpaint_fields import OutpaintFields

STRENGTH_RULES = ("diffusers", "web_ui", "exact")
ENCODINGS = ("mean", "sample", "tiny")
MASKED_CONTENTS = ("original", "fill", "latent_noise", "latent_nothing")
INPAINT_AREAS = ("whole", "masked")
MASK_BLENDS = ("auto", "clean", "latents", "none")
PICTURES = ("image", "mask", "depth")
# Files that JSON names by their hash.
FILES = (*PICTURES, "hires_model")
DEPTH_FIELDS = ("depth_invert",)
# What has no meaning without `image`.
IMAGE_FIELDS = (
    "strength",
    "strength_rule",
    "resize",
    "encode",
    "background",
    "color_correction",
)
# What has no meaning without `mask`.
MASK_FIELDS = ("mask_blur", "mask_invert", "masked_content", "soft_inpainting")
# What has none without it or `outpaint`.
AREA_FIELDS = ("inpaint_area", "mask_padding", "mask_blend")
OUTPAINT_FIELDS = ("outpaint_fill", "outpaint_overlap")
HIRES_FIELDS = (
    *("hires_upscaler", "hires_model", "hires_strength", "hires_steps"),
    *("hires_sampler", "hires_schedule", "hires_prompt", "hires_negative_prompt"),
)
# Fields by that of which one must be given for them to mean something.
OPTIONS_OF = {
    "image": IMAGE_FIELDS,
    "mask": MASK_FIELDS,
    "outpaint": OUTPAINT_FIELDS,
    "mask or outpaint": AREA_FIELDS,
    "depth": DEPTH_FIELDS,
    "hires": HIRES_FIELDS,
}


@dataclass(frozen=True, kw_only=True)
class PictureFields(OutpaintFields, HiresFields):
    """Those fields of a request that start with a picture; see `sdengine.Request`."""

    image: Recorded | None = field(
        default=None,
        metadata=about(
            PICTURE, "what to start from: a path, a PIL image, an array or a file's bytes"
        ),
    )
    strength: float = field(
        default=0.75,
        metadata=about(
            Number(0, 1),
            "image: how much of the way from noise is gone again; 1 keeps next to nothing of it",
        ),
    )
    strength_rule: str = field(
        default="diffusers",
        metadata=about(
            Choice(STRENGTH_RULES),
            "image: how many steps run; strength x steps, one more, or exactly steps",
        ),
    )
    resize: str = field(
        default="stretch",
        metadata=about(Choice(MODES), "image: how it gets the size asked for"),
    )
    encode: str = field(
        default="mean",
        metadata=about(
            Choice(ENCODINGS),
            "image: its mean latents, or drawn ones, before all other noise, as diffusers does, or "
            "those of the bundle's tiny encoder",
        ),
    )
    background: str = field(
        default="#ffffff", metadata=about(Color(), "image: what lies under transparent pixels")
    )
    color_correction: bool = field(
        default=False,
        metadata=about(Flag(), "image: give the result its mean and contrast in each channel"),
    )
    mask: Recorded | None = field(
        default=None,
        metadata=about(
            PICTURE,
            "of image's size: white may change, black stays as it is to the byte; where its alpha "
            "varies, the opaque part may change",
        ),
    )
    mask_blur: float = field(
        default=4.0,
        metadata=about(
            Number(0, 256),
            "mask: deviation of its Gaussian blur in pixels of image, 4 if not given, so that its "
            "edge reaches 10 pixels into the black; 0 for none",
        ),
    )
    mask_invert: bool = field(
        default=False, metadata=about(Flag(), "mask: black may change, not white")
    )
    masked_content: str = field(
        default="original",
        metadata=about(Choice(MASKED_CONTENTS), "mask: what the part that may change starts from"),
    )
    inpaint_area: str = field(
        default="whole",
        metadata=about(
            Choice(INPAINT_AREAS),
            "mask: compute the whole picture, or what the mask covers, enlarged to width and "
            "height and put back",
        ),
    )
    mask_padding: int = field(
        default=32,
        metadata=about(
            Integer(0, 4096), "mask: pixels of image around it, where inpaint_area is masked"
        ),
    )
    mask_blend: str = field(
        default="auto",
        metadata=about(
            Choice(MASK_BLENDS),
            "mask: keep the rest in each estimate of the clean latents, or as diffusers does in "
            "the latents after each step, or in neither; auto is clean, none for inpainting models",
        ),
    )
    soft_inpainting: bool = field(
        default=False,
        metadata=about(Flag(), "mask: grey is how much may change, by the share of the steps"),
    )

    depth: Recorded | None = field(
        default=None,
        metadata=about(
            DEPTH,
            "for depth models: how near each pixel is, near large; a picture of 8 or 16 bits, a "
            "TIFF of floats, or an array",
        ),
    )
    depth_invert: bool = field(default=False, metadata=about(Flag(), "depth: near is small"))
    controls: tuple[Control, ...] = field(
        default=(),
        metadata=about(
            Controls(),
            "ControlNets of the bundle that steer the picture, each by a picture of its own; a "
            "list of sdengine.Control",
            option="control",
        ),
    )
    ip_adapters: tuple[IPAdapter, ...] = field(
        default=(),
        metadata=about(
            IPAdapters(),
            "files that let the U-Net read pictures as prompts, each with pictures of its own; a "
            "list of sdengine.IPAdapter",
            option="ip_adapter",
        ),
    )

    def check_pictures(self, infos: Mapping[str, FieldInfo]) -> None:
        """Refuse what does not go together, and what has no effect.

        Args:
            infos: of all fields by name.

        Raises:
            ConfigError: so it is.
        """
        for needed, names in OPTIONS_OF.items():
            if all(getattr(self, name) is None for name in needed.split(" or ")):
                self._require_defaults(needed, names, infos)
        for name in ("mask", "outpaint"):
            if getattr(self, name) is not None and self.image is None:
                value = getattr(self, name)
                raise ConfigError.for_field(name, value, "none without image", "Give an image.")
        if self.mask is not None and self.image is not None and self.mask.size != self.image.size:
            shown = "{}x{} pixels".format(*self.mask.size)
            accepted = "the size of image, {}x{}".format(*self.image.size)
            raise ConfigError.for_field("mask", shown, accepted)
        if self.outpaint is not None:
            self._check_outpaint(infos)
        for control in self.controls:
            if control.masked and self.mask is None:
                raise ConfigError.for_field("control.masked", True, "False without mask")
        if self.hires is not None and self.image is not None:
            hint = "Give the result of the one as image to the other, with width and height."
            raise ConfigError.for_field("hires", hires_text(self.hires), "none with image", hint)
        if self.soft_inpainting and self.masked_content != "original":
            raise ConfigError.for_field(
                "masked_content", self.masked_content, "original with soft_inpainting"
            )
        if self.soft_inpainting and self.mask_blur != infos["mask_blur"].default:
            raise ConfigError.for_field(
                "mask_blur", self.mask_blur, "its default with soft_inpainting, where grey counts"
            )
        if self.inpaint_area == "whole" and self.mask_padding != infos["mask_padding"].default:
            raise ConfigError.for_field(
                "mask_padding", self.mask_padding, "its default where inpaint_area is whole"
            )
        if self.mask is not None and self.resize == "latent":
            raise ConfigError.for_field("resize", self.resize, "another mode with mask")
        if self.inpaint_area == "masked" and self.resize != "stretch":
            raise ConfigError.for_field(
                "resize", self.resize, "stretch where inpaint_area is masked"
            )

    def _check_outpaint(self, infos: Mapping[str, FieldInfo]) -> None:
        if self.mask is not None:
            hint = "Inpaint what outpainting gave."
            raise ConfigError.for_field("mask", self.mask, "none with outpaint", hint)
        for name in ("resize", "color_correction"):  # the size and the tone are outpainting's own
            if getattr(self, name) != infos[name].default:
                value = getattr(self, name)
                raise ConfigError.for_field(name, value, "its default with outpaint")
        fill = infos["outpaint_fill"]
        if self.outpaint_fill != fill.default and not self.starts_from_picture:
            hint = "Give --strength 0.95, or leave it out."
            raise ConfigError.for_field(
                fill.name, self.outpaint_fill, "its default at strength 1, which starts from noise",
                hint,
            )  # fmt: skip

    def _require_defaults(
        self, needed: str, names: tuple[str, ...], infos: Mapping[str, FieldInfo]
    ) -> None:
        for name in names:
            value = getattr(self, name)
            if value != infos[name].default:
                raise ConfigError.for_field(
                    name, value, f"its default without {needed}", f"Give {needed}, or leave it out."
                )

    @property
    def starts_from_picture(self) -> bool:
        """Whether the trajectory starts from the picture's latents, else from noise alone.

        At strength 1 what may change starts from noise, as in diffusers.
        """
        is_masked = self.mask is not None or self.outpaint is not None
        is_free = is_masked and self.masked_content == "original"
        at_once = self.strength == 1 and self.strength_rule == "diffusers"
        return self.image is not None and not (is_free and at_once)

    def steps_run(self, steps: int) -> int:
        """Return how many of a schedule's last steps run from the picture.

        Products are rounded to 1e-9 first, because 0.29 x 100 steps are 29.
        """
        if self.strength_rule == "exact":
            return steps
        if self.strength_rule == "web_ui":
            return int(round(min(self.strength, 0.999) * steps, 9)) + 1
        return min(int(round(self.strength * steps, 9)), steps)

    def schedule_steps(self, steps: int) -> int:
        """Return how many steps the schedule has, of which the last `steps_run` run."""
        if self.strength_rule != "exact":
            return steps
        return int(round(steps / min(max(self.strength, 1e-3), 0.999), 9))
