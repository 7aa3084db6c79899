"""Control plan: when a request's controls run, what they read and how they count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.controls import ControlArchitecture, control_network
from sdengine.bundle.manifest import Manifest
from sdengine.errors import ConfigError
from sdengine.inputs.control_picture import control_pixels, resized_control
from sdengine.inputs.picture import Pixels
from sdengine.inputs.resize import padded
from sdengine.pipeline.picture_start import StartingPicture
from sdengine.request.control import CONTROL_TYPES, Control
from sdengine.request.ip_adapters import IPAdapter
from sdengine.request.preprocessors import hint_of
from sdengine.request.request import Request

Array = NDArray[np.float32]
# Of two residuals next to each other, and the distance of the last one of Stable Diffusion 1 from
# the middle block, from which those of all families are counted.
_SOFTER, _FARTHEST = 0.825, 12
_SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)  # of a T2I-Adapter, as in the web UI's extension
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class PlannedControl:
    """One control of a request, with what follows from request and bundle alone.

    Args:
        control: as asked for.
        architecture: what the bundle says of its network.
        active: evaluations that it steers.
        weights: factor on each of its residuals.
    """

    control: Control
    architecture: ControlArchitecture
    active: frozenset[int]
    weights: tuple[float, ...]

    @property
    def type_vector(self) -> Array:
        """What a union ControlNet is told of the picture, [1,control_types]: 1 at its kind."""
        found = np.zeros((1, self.architecture.control_types), np.float32)
        if self.control.control_type is not None:
            found[0, CONTROL_TYPES[self.control.control_type]] = 1
        return found

    @property
    def network(self) -> str:
        """Its network in the bundle."""
        return control_network(self.control.network)

    @property
    def runs_once(self) -> bool:
        """Whether its network runs once, for one row, and not at each evaluation."""
        return self.architecture.kind == "t2i_adapter"

    @property
    def is_conditional_only(self) -> bool:
        """Whether the unconditional rows are left as they are."""
        return self.control.mode in ("control", "guess") or self.architecture.global_pool


def plan_controls(
    request: Request, manifest: Manifest, count: int
) -> tuple[list[PlannedControl], list[str]]:
    """Return the controls that steer something, and what to say of the others.

    Args:
        request: checked by `require_controls`.
        manifest: of the bundle.
        count: evaluations that run.
    """
    planned, said = [], []
    for control in request.controls:
        if control.scale == 0 or (control.layer_weights and not any(control.layer_weights)):
            continue
        architecture = manifest.architecture.controls[control.network]
        active = active_evaluations(control, count)
        if active:
            if control.layer_weights and control.mode == "prompt":
                said.append(
                    f"control {control.network}: mode prompt has no effect beside layer_weights, "
                    "which take the place of its weights."
                )
            weights = residual_weights(control, architecture)
            planned.append(PlannedControl(control, architecture, active, weights))
        else:
            said.append(
                f"control {control.network}: it does nothing, because none of {count} evaluations "
                f"lies between {control.start:g} and {control.end:g}."
            )
    return planned, said


def active_evaluations(control: Control | IPAdapter, count: int) -> frozenset[int]:
    """Return the evaluations, of as many as run, in a window: as diffusers counts."""
    return frozenset(
        i for i in range(count) if i / count >= control.start and (i + 1) / count <= control.end
    )


def residual_weights(control: Control, architecture: ControlArchitecture) -> tuple[float, ...]:
    """Return the factor on each residual, the middle block's last."""
    count = architecture.residuals
    weights: tuple[float, ...] = (1.0,) * count
    if control.layer_weights is not None:
        weights = tuple(control.layer_weights)
    elif control.mode in ("prompt", "control") and architecture.kind == "t2i_adapter":
        weights = _SOFT_FEATURES
    elif control.mode in ("prompt", "control"):
        weights = tuple(_SOFTER ** (_FARTHEST - i) for i in range(count))
    elif control.mode == "guess" and not architecture.global_pool:
        weights = tuple(np.logspace(-1, 0, count).tolist())
    return tuple(control.scale * weight for weight in weights)


def require_controls(request: Request, manifest: Manifest) -> None:
    """Refuse, before any work, controls that the bundle does not have or that cannot be used.

    Raises:
        ConfigError: so it is.
    """
    known = manifest.architecture.controls
    for control in request.controls:
        if not known:
            raise ConfigError(
                f"controls: the bundle has none, and {control.network!r} was asked for. Build one "
                f"with it: sdengine build CHECKPOINT -o BUNDLE --control {control.network}=FOLDER."
            )
        if control.network not in known:
            raise ConfigError.for_field(
                "control.network", control.network, f"one of the bundle's: {', '.join(known)}"
            )
        if not control.image.is_given:
            raise ConfigError(
                f"control {control.network}: only the record of the picture with SHA-256 "
                f"{control.image.sha256} is known. Give the picture itself, with --control "
                f"{control.network}=FILE or controls=."
            )
        architecture = known[control.network]
        count = architecture.residuals
        if control.layer_weights is not None and len(control.layer_weights) != count:
            raise ConfigError.for_field(
                "control.layer_weights", control.layer_weights, f"{count} of them for this model"
            )
        _require_type(control, architecture)
        if architecture.kind == "t2i_adapter" and control.mode == "guess":
            raise ConfigError.for_field(
                "control.mode", control.mode, "balanced, prompt or control for a T2I-Adapter"
            )
        if architecture.conditioning_channels not in (1, 3):
            raise ConfigError(
                f"control {control.network}: it reads pictures of "
                f"{architecture.conditioning_channels} channels; only 1 and 3 can be given."
            )


def _require_type(control: Control, architecture: ControlArchitecture) -> None:
    kinds, given = architecture.control_types, control.control_type
    known = [name for name, number in CONTROL_TYPES.items() if number < kinds]
    if given is not None and given not in known:
        accepted = f"one of {', '.join(known)}" if kinds else "none: the network reads one kind"
        raise ConfigError.for_field("control.control_type", given, accepted)
    if given is None and kinds:
        raise ConfigError(
            f"control {control.network}: control_type is missing; a union ControlNet is told what "
            f"its picture is: {', '.join(known)}."
        )


def read_hint(
    planned: PlannedControl,
    request: Request,
    size: tuple[int, int],
    picture: StartingPicture | None,
) -> Array:
    """Return what a control's network reads, [1,C,H,W] fp32 in [0,1], or -1 where it is masked.

    Args:
        planned: the control.
        request: that it is of.
        size: width and height of the computation.
        picture: that the request starts from, if any.
    """
    control, width, height = planned.control, request.width, request.height
    pixels, options = control_pixels(control.image), dict(control.preprocess_options)
    is_sized = "resolution" in options
    if is_sized:
        pixels = hint_of(pixels, control.preprocess, options)
    inpainting = None if picture is None else picture.inpainting
    if inpainting is not None and (box := inpainting.box) is not None:
        own_height, own_width = inpainting.original.shape[:2]
        pixels = resized_control(pixels, own_width, own_height, control.resize)
        pixels = pixels[box.top : box.bottom, box.left : box.right]
        pixels = resized_control(pixels, width, height, "stretch")
    else:
        pixels = resized_control(pixels, width, height, control.resize)
    if not is_sized:  # lines are then as thin as the result shows them
        pixels = hint_of(pixels, control.preprocess, options)
    hint = _channels(padded(pixels, *size), planned.architecture.conditioning_channels)
    if control.masked and inpainting is not None:
        around = ((0, size[1] - height), (0, size[0] - width))
        hint[:, :, np.pad(inpainting.free, around, mode="edge")] = -1
    return hint


def _channels(pixels: Pixels, count: int) -> Array:
    values = pixels.astype(np.float32) / np.float32(255)
    if count == 1:
        values = (values @ _LUMA)[..., None]
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)
