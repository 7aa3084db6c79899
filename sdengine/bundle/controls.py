"""Controls of a bundle: networks that steer its U-Net by a picture, and what runs need of each."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdengine.errors import ConfigError

CONTROL_NAME = re.compile(r"[a-z0-9_]{1,60}")
_PREFIX = "control_"
_Channels = Annotated[int, Field(ge=1, le=1024)]


class ControlArchitecture(BaseModel):
    """Describe one control, whose network is `control_network` of its name.

    Args:
        kind: how its network reads the picture and steers: "controlnet" runs with the U-Net and
            gives what is added to each of the results that it keeps on its way down;
            "controlnet_union" is one for pictures of several kinds, which reads `control_type`;
            "t2i_adapter" runs once a request and gives features, which are added to what the U-Net
            computes on its way down.
        conditioning_channels: of the picture.
        control_types: how many kinds of picture a "controlnet_union" knows; 0 for others.
        cell: pixels along a side of the squares that a "t2i_adapter" reads as one position; 1 for
            others.
        residuals: how many tensors it gives.
        global_pool: each of them counts by its mean over height and width.
        source, sha256: the name and the content's hash of what it was built from.
        config: the checkpoint's own configuration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["controlnet", "controlnet_union", "t2i_adapter"]
    conditioning_channels: _Channels = 3
    cell: Annotated[int, Field(ge=1, le=64)] = 1
    control_types: Annotated[int, Field(ge=0, le=64)] = 0
    residuals: Annotated[int, Field(ge=1, le=100)]
    global_pool: bool = False
    source: Annotated[str, Field(max_length=200)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    config: dict[str, Any] = Field(default_factory=dict)


def is_residual(tensor: str) -> bool:
    """Say whether a U-Net's input is what ControlNets give."""
    return "_residual" in tensor


def is_feature(tensor: str) -> bool:
    """Say whether a U-Net's input is what T2I-Adapters give."""
    return tensor.startswith("adapter_feature_")


def control_network(name: str) -> str:
    """Return what a bundle calls the network of a control."""
    return f"{_PREFIX}{name}"


def is_control(network: str) -> bool:
    """Say whether a bundle's network is that of a control."""
    return network.startswith(_PREFIX)


def control_name(network: str) -> str:
    """Return the name of the control that a network is of."""
    return network.removeprefix(_PREFIX)


def check_control_name(name: object) -> str:
    """Return a control's name.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(name, str) or CONTROL_NAME.fullmatch(name) is None:
        raise ConfigError.for_field(
            "controls", name, "a name of small letters, digits and _, such as canny"
        )
    return name
