"""Steps of a native graph: one operation each, with the values that it reads and its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=512)]
_Roles = Annotated[dict[Annotated[str, Field(max_length=16)], Name], Field(max_length=256)]
_Count = Annotated[int, Field(ge=0, le=1 << 20)]
_Divisor = Annotated[int, Field(ge=1, le=1 << 20)]
_Side = Annotated[int, Field(ge=1, le=15)]
# Those behind "relu" only as steps of their own.
Activation = Literal[
    "none",
    "silu",
    "gelu",
    "quick_gelu",
    "geglu",
    "relu",
    "leaky_relu",
    "rrelu",
    "relu6",
    "elu",
    "selu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "tanh",
    "tanhshrink",
    "sigmoid",
    "softplus",
    "logsigmoid",
    "mish",
    "softsign",
    "softshrink",
    "hardshrink",
]


class StrictModel(BaseModel):
    """Part of a graph's file: nothing unknown, nothing converted, nothing changed later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )


class Step(StrictModel):
    """One operation; which inputs, weights and fields its kind has says `operations.OPERATIONS`.

    Args:
        inputs: value by role. "residual" has the output's shape, "per_image" one row an image;
            both are added to what a product makes.
        output: the value that it makes.
        weights: tensor by role.
        channels: of the output, where the input does not say; of a `sinusoid`, its frequencies.
        activation: applied to the sums before the residual is added; "geglu" halves the channels.
        kernel, stride, padding: of a convolution. padding_after: zeros behind the last row and
            column only.
        upsample: every pixel of the input is read as a square of four.
        first, parts: `slice` takes part `first` of so many along the images, `cut` takes channels
            from `first` on; `constant` has the first so many rows of its tensor.
        weight_kind, tile, wraps: how it is computed, decided when the network is loaded: along the
            axes that `wraps` names, padding is what lies at the other end.
    """

    kind: Annotated[str, Field(max_length=32)]
    name: Name
    inputs: _Roles
    output: Name
    weights: _Roles = {}
    channels: _Count = 0
    activation: Activation = "none"
    kernel: _Side = 1
    # Files of version 1 spell these "step", "pad" and "after".
    stride: Annotated[_Side, Field(alias="step")] = 1
    padding: Annotated[int, Field(ge=0, le=15, alias="pad")] = 0
    padding_after: Annotated[int, Field(ge=0, le=1, alias="after")] = 0
    upsample: bool = False
    groups: _Divisor = 1
    epsilon: float = 1e-5
    heads: _Divisor = 1
    scale: float = 1.0
    causal: bool = False
    first: _Count = 0
    parts: _Count = 0
    weight_kind: Literal["", "float32", "bfloat16", "int16", "int8"] = ""
    tile: Literal[0, 2, 4] = 0
    wraps: Literal["none", "x", "y", "xy"] = "none"

    @property
    def out_features(self) -> int:
        """Rows of a product's matrix: a gated one has a value and a gate for each channel."""
        return self.channels * (2 if self.activation == "geglu" else 1)
