"""Guesses: what a checkpoint does not say of itself, and what a single file's U-Net predicts.

Source of the rule for Stable Diffusion 2: ComfyUI's model detection, which found that the bias of
one norm is spread wider in the networks that predict v.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.checkpoints.formats.tensor_files import TensorFile
from sdengine.errors import CheckpointError

_TELLING_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD_OF_V = 0.09
_SD2_BASE_STEP = "875000"


@dataclass(frozen=True)
class Guess:
    """Something that was assumed.

    Args:
        what: such as "prediction type".
        value: what it was taken to be.
        reason: why.
        option: of the command, that says it instead.
    """

    what: str
    value: str
    reason: str
    option: str


def guess_prediction(file: TensorFile, family: str, prefix: str) -> Guess:
    """Return what the U-Net of a file that says nothing most probably predicts.

    Args:
        file: opened.
        family: "sd1", "sd2", "sdxl" or "sdxl-refiner".
        prefix: of the U-Net's names in the file.

    Raises:
        CheckpointError: the file is damaged.
    """
    value, reason = "epsilon", f"the file says nothing, and {family} as published predicts noise"
    if family == "sd2":
        value, reason = _of_sd2(file, prefix)
    return Guess("prediction type", value, reason, "--prediction-type")


def _of_sd2(file: TensorFile, prefix: str) -> tuple[str, str]:
    first = f"{prefix}input_blocks.0.0.weight"
    inputs = file.shape(first)[1:2] if first in file.names() else ()
    if inputs != (4,):
        return "epsilon", "Stable Diffusion 2 as published for other inputs predicts noise"
    if file.metadata.get("global_step") == _SD2_BASE_STEP:
        return "epsilon", "its step number is that of the published file for 512 pixels"
    spread = _spread(file, f"{prefix}{_TELLING_BIAS}")
    if not spread:
        return "v_prediction", "the file says nothing; Stable Diffusion 2 for 768 pixels does"
    value = "v_prediction" if spread > _SPREAD_OF_V else "epsilon"
    return value, f"{_TELLING_BIAS} deviates by {spread:.3f}; above {_SPREAD_OF_V} means v"


def _spread(file: TensorFile, name: str) -> float:
    """Return the standard deviation of a tensor's numbers; 0 where they do not tell."""
    if name not in file.names():
        return 0.0
    try:
        numbers = file.read(name).float()
    except RuntimeError as error:
        raise CheckpointError(f"{file.path}: tensor {name!r}: {error}.") from None
    spread = float(torch.std(numbers, unbiased=False)) if numbers.numel() else 0.0
    return spread if spread < float("inf") else 0.0
