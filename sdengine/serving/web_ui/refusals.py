"""Refusals: what the web UI's fields may ask for that would change pictures and is not here."""

from __future__ import annotations

from typing import Any

from sdengine.errors import ConfigError
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.web_ui.fields import Generation

_NO_CHECKPOINT = ("", "none", "use same checkpoint")
# Fields by the one value that they may have here, and what is said of others.
_USUAL: dict[str, tuple[Any, str]] = {
    "styles": ([], "[], because the server has no styles"),
    "restore_faces": (False, "false, because the server has nothing that restores faces"),
    "s_min_uncond": (0, "0"),
    "firstpass_image": (None, "none"),
    "latent_mask": (None, "none; mask is for pictures"),
    "mask_round": (True, "true"),
    "initial_noise_multiplier": (1, "1"),
}


def refuse_what_is_not_there(fields: Generation) -> None:
    """Refuse what would change the pictures and cannot be done.

    Raises:
        ConfigError: a field asks for such a thing.
        HTTPError: a script is not there.
    """
    if fields.script_name and fields.script_name.lower() != "none":
        raise HTTPError(422, f"Script {fields.script_name[:80]!r} not found", "ScriptNotFound")
    for name, (usual, accepted) in _USUAL.items():
        value = getattr(fields, name, usual)
        if value is not None and value != usual:
            raise ConfigError.for_field(name, value, accepted)
    for name in ("refiner_checkpoint", "hr_checkpoint_name"):
        value = getattr(fields, name, "")
        is_used = name != "hr_checkpoint_name" or getattr(fields, "enable_hr", False)
        if is_used and value.lower() not in _NO_CHECKPOINT:
            raise ConfigError.for_field(name, value, "none: one checkpoint makes a picture")
    if fields.disable_extra_networks and "<" in fields.prompt:
        raise ConfigError.for_field(
            "disable_extra_networks", True, "false where the prompt has tags", "Take them out."
        )
    if fields.save_images and not fields.send_images:
        raise ConfigError.for_field(
            "save_images", True, "false: this server keeps no files, and send_images is false"
        )
