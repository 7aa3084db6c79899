"""Settings of the web UI: those that have a meaning here, what each accepts, and whose they are.

A client's settings hold for its own later requests, never for another token's and never for those
that wait: a request takes them along when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.images.web_ui_text import EMPHASIS
from sdengine.request.fields import Check, Choice, Color, Flag, Integer, Number, Text

CHECKPOINT = "sd_model_checkpoint"
# The web UI draws noise on its GPU unless it is told otherwise, and so were all seeds drawn that
# people have noted there: the same ones give the same noise here.
RNG = "randn_source"
NOISE = MappingProxyType({"GPU": "cuda", "NV": "cuda", "CPU": "cpu"})
DECODERS = MappingProxyType({"Full": "vae", "TAESD": "tiny"})
# Where the web UI would keep files; this server writes none.
_OF_FILES = ("save_", "samples_", "grid_", "outdir_", "directories_", "use_save_", "export_for_")


@dataclass(frozen=True)
class Only:
    """A setting that has but one meaning here, in one or several spellings."""

    values: tuple[Any, ...]
    range: str = ""

    @property
    def accepted(self) -> str:
        """The spellings."""
        return " or ".join(map(repr, self.values)) + ", because the server has nothing else"

    def __call__(self, name: str, value: Any) -> Any:
        """Return the value; a number is no flag."""
        for one in self.values:
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return value
        raise ConfigError.for_field(name, value, self.accepted)


_SHARE, _LEVEL = Number(0, 1), Number(0, 1e6)
_NONE = Only(("None", ""))
# What each accepts, and its default.
SETTINGS: Mapping[str, tuple[Check, Any]] = MappingProxyType(
    {
        CHECKPOINT: (Text(500), ""),
        "sd_vae": (Only(("Automatic", "None")), "Automatic"),
        "CLIP_stop_at_last_layers": (Integer(1, 12), 1),
        RNG: (Choice(tuple(NOISE)), "GPU"),
        "samples_format": (Only(("png",)), "png"),
        "eta_noise_seed_delta": (Only((0,)), 0),
        "eta_ddim": (_SHARE, 0.0),
        "eta_ancestral": (_SHARE, 1.0),
        "s_churn": (Number(0, 1000), 0.0),
        "s_tmin": (_LEVEL, 0.0),
        "s_tmax": (_LEVEL, 0.0),
        "s_noise": (Number(0, 2), 1.0),
        "emphasis": (Choice(tuple(EMPHASIS)), "Original"),
        "tiling": (Flag(), False),
        "img2img_fix_steps": (Flag(), False),
        "img2img_color_correction": (Flag(), False),
        "img2img_background_color": (Color(), "#ffffff"),
        "initial_noise_multiplier": (Only((1,)), 1),
        "inpainting_mask_weight": (Only((1,)), 1),
        "sd_vae_decode_method": (Choice(tuple(DECODERS)), "Full"),
        "sd_vae_encode_method": (Only(("Full",)), "Full"),
        "sd_hypernetwork": (_NONE, "None"),
        "sd_lora": (_NONE, "None"),
        "face_restoration": (Only((False,)), False),
        "return_mask": (Only((False,)), False),
        "return_mask_composite": (Only((False,)), False),
        "live_previews_enable": (Flag(), True),
        "show_progress_every_n_steps": (Integer(-1, 1000), 10),
        "control_net_no_detectmap": (Flag(), False),
    }
)
DEFAULTS: Mapping[str, Any] = MappingProxyType({n: one[1] for n, one in SETTINGS.items()})
# Told, and of no effect when a client sends back all that it was told.
READ_ONLY = frozenset({"sd_checkpoint_hash"})


def checked_settings(
    given: Mapping[str, Any], place: str, warnings: list[str] | None = None
) -> dict[str, Any]:
    """Return settings that are understood.

    Args:
        given: by name.
        place: what errors call them.
        warnings: takes sentences on those of no effect; None refuses them.

    Raises:
        ConfigError: a setting is not known here, or its value is not accepted.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in READ_ONLY or value is None:
            continue
        shown = name[:80] if name.isprintable() else ascii(name[:80])
        if name in SETTINGS:
            found[name] = SETTINGS[name][0](f"{place}.{name}", _plain(value))
        elif warnings is not None and name.startswith(_OF_FILES):
            warnings.append(
                f"{place}.{shown}: it has no effect, because this server keeps no files."
            )
        else:
            known = ", ".join(SETTINGS)
            raise ConfigError(f"{place}.{shown}: no such setting has a meaning here; {known} have.")
    return found


def _plain(value: Any) -> Any:
    """Return a whole number as an integer: forms of pages send 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
