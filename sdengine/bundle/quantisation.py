"""Quantisation record: what a manifest tells of a network in eight bits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Short = Annotated[str, Field(max_length=200)]
_Name = Annotated[str, Field(max_length=2000)]
_Error = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Quantisation(BaseModel):
    """Tell how an engine came to compute in eight bits, and how it errs.

    Args:
        format: "fp8" or "int8".
        prompts, prompts_sha256: how many prompts scales were taken from, and the hash of their
            lines.
        steps: of each prompt's picture.
        evaluations: of the U-Net that scales were taken from.
        size: of the pictures, such as "512x512".
        error: root mean square error of the network on held-out evaluations, relative to its
            result in fp32, as onnxruntime computes the quantised graph.
        error_by_evaluation: of each of these, by its number among those of a request.
        layers: by the name of the weight, the same error of each layer that computes in eight bits,
            alone.
        kept: by the reason, names of the weights of layers that compute in 16 bits.
    """

    # What other releases say beside it changes nothing here.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    format: _Short
    prompts: _Count
    prompts_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    steps: _Count
    evaluations: _Count
    size: _Short
    error: _Error
    error_by_evaluation: dict[_Short, _Error] = Field(default_factory=dict, max_length=1000)
    layers: dict[_Name, _Error] = Field(max_length=20_000)
    kept: dict[_Short, list[_Name]] = Field(default_factory=dict, max_length=100)
