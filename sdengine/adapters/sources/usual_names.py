"""Usual names of a single file's tensors, without what programs put around or in place of them.

Trainers save what they wrapped a model in (`module.`, `_orig_mod.`), modules that hold the whole
model as one of theirs put `model.` before it, and node editors call text encoders by their kind.
Every other part of the package sees the usual names alone.

Source: torch's DataParallel, DistributedDataParallel and torch.compile for the wrappers; ComfyUI's
comfy/supported_models.py for `clip_l`, `clip_g` and `clip_h`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sdengine.errors import CheckpointError

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module)\.")
_ROOTS = r"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\."
_OUTSIDE = re.compile(rf"(?:model\.|state_dict\.)+(?={_ROOTS})")
_TEXT = re.compile(
    r"(?:cond_stage_model\.|conditioner\.|text_encoders\.)?(clip_[lgh])\."
    r"(?:model\.|transformer\.(?=text_))?(.+)"
)
# Where a family keeps its text encoders, by the kinds that a file has.
_PLACES = {
    ("clip_l",): ("cond_stage_model.transformer.",),
    ("clip_h",): ("cond_stage_model.model.",),
    ("clip_g",): ("conditioner.embedders.0.model.",),
    ("clip_g", "clip_l"): (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.transformer.",
    ),
}


def usual_names(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the names that a file's tensors have, by their usual ones.

    Args:
        path: of the file, for messages.
        names: of its tensors that may be parameters.

    Raises:
        CheckpointError: two tensors are the same one by their usual names.
    """
    bare = {name: _OUTSIDE.sub("", _WRAPPERS.sub("", name), count=1) for name in names}
    texts = {name: match for name, usual in bare.items() if (match := _TEXT.fullmatch(usual))}
    kinds = tuple(sorted({match[1] for match in texts.values()}))
    places = dict(zip(kinds, _PLACES.get(kinds, ()), strict=False))
    found: dict[str, str] = {}
    for name, usual in bare.items():
        match = texts.get(name)
        if match is not None and match[1] in places:
            usual = places[match[1]] + match[2]
        if usual in found:
            raise CheckpointError(
                f"{path}: {found[usual][:120]!r} and {name[:120]!r} are both {usual[:120]!r} of "
                "the network, so that it is not clear whose weights to read. Save one of them "
                "alone."
            )
        found[usual] = name
    return found
