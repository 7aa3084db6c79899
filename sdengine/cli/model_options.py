"""Model option: `--model FILE`, or `--model FILE:SHARE` as many times as a mixture has files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sdengine.cli.lora_options import split_numbers
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.images.metadata import Metadata
    from sdengine.inputs.given_files import PathLike
    from sdengine.inputs.models import Given, ModelTerm
    from sdengine.request.request import Request

MODEL_HELP = (
    "another checkpoint of the bundle's architecture in place of its weights; several times with "
    "shares that make 1 for a weighted sum (a:0.7, b:0.3) or an added difference (a:1, b:0.5, "
    'c:-0.5), where "bundle" is the bundle itself'
)
MODEL_METAVAR = "FILE[:SHARE]"


def parse_model(options: Sequence[str]) -> Given:
    """Return a path, or paths with their shares.

    Raises:
        ConfigError: a file is not named or named twice, or one of several has no share.
    """
    found: dict[PathLike, float] = {}
    for option in options:
        path, *numbers = (option,) if os.path.exists(option) else split_numbers(option, 1)
        if not path or path in found or (len(options) > 1 and not numbers):
            raise ConfigError.for_field(
                "--model", option, f"{MODEL_METAVAR}, each file once, and of several the shares"
            )
        found[path] = float(numbers[0]) if numbers else 1.0
    return found


def model_warnings(recorded: Metadata | None, request: Request) -> list[str]:
    """Say in a sentence where a recorded image was made with another model than is given."""
    known = () if recorded is None else recorded.request_fields().get("model") or ()
    used = request.model or ()
    is_ours = recorded is not None and recorded.provenance.bundle_hash
    if not is_ours or _weighty(known) == _weighty(used):
        return []
    then, now = (", ".join(map(str, terms)) or "the bundle's" for terms in (known, used))
    return [f"the image was made with the model {then}, not with {now}, so the picture differs."]


def _weighty(terms: Iterable[ModelTerm]) -> list[tuple[str, float]]:
    """Return what of a model changes a picture, whatever its files are called."""
    found = sorted((one.sha256, one.share) for one in terms if one.share)
    return [] if all(not sha256 for sha256, _ in found) else found
