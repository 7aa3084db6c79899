"""Split of a bundle of engines: the halves of the U-Net's rows on two GPUs of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdengine.backends.places import FIELD
from sdengine.errors import ConfigError

_NUMBERS = re.compile(r"(\d{1,4})/(\d{1,4})", re.ASCII)


def two_gpus(option: str, device: int | None, gpus: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """Return the numbers of two GPUs.

    Args:
        option: `split_guidance`.
        device: the number of a GPU that was given beside it.
        gpus: name and compute capability of those that are there.

    Raises:
        ConfigError: it does not name two that are there, and are alike.
    """
    if device is not None:
        raise ConfigError.for_field("device", device, f"None with {FIELD}, which names the GPUs")
    known = ", ".join(f"{number} ({name})" for number, (name, _) in enumerate(gpus)) or "none"
    matched = _NUMBERS.fullmatch(option)
    first, second = (int(matched[1]), int(matched[2])) if matched else (0, 0)
    if first == second or max(first, second) >= len(gpus):
        raise ConfigError.for_field(
            FIELD,
            option,
            "the numbers of two GPUs with a / between them, such as '0/1'",
            f"There are: {known}.",
        )
    if gpus[first] != gpus[second]:
        raise ConfigError.for_field(
            FIELD,
            option,
            "two GPUs of one model, whose kernels give the same bits",
            f"There are: {known}.",
        )
    return first, second
