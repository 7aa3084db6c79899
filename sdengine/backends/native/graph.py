"""A network as a list of steps over feature maps: what the native target keeps in `*.graph.json`.

A map is [images, height, width, channels]. Inputs and outputs of layout "image" are [n,c,h,w]
outside; those of layout "rows" are [n, channels], [n, tokens, channels] or
[layers, n, tokens, channels], and their tokens lie along the width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdengine.errors import BundleError

MAX_GRAPH_BYTES = 16 << 20
MAX_STEPS = 20_000

Kind = Literal[
    "linear", "conv", "group_norm", "layer_norm", "attention", "add", "activation", "sinusoid",
    "select", "concat", "stack", "slice", "cut", "constant",
]  # fmt: skip
Activation = Literal["none", "silu", "gelu", "quick_gelu", "geglu"]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Roles = Annotated[dict[Annotated[str, Field(max_length=16)], Name], Field(max_length=256)]
Count = Annotated[int, Field(ge=0, le=1 << 20)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Port(_Model):
    """One input or output: its name outside, and the value that it is inside."""

    name: Name
    value: Name
    rank: int = Field(ge=1, le=4)
    layout: Literal["image", "rows"]
    dtype: Literal["float32", "int64"]
    channels: int = Field(ge=1, le=1 << 20)


class Step(_Model):
    """One operation; which fields count depends on its kind.

    Args:
        inputs: value by role. `linear` and `conv` read "x", and may add a "residual" of the
            output's shape and one row "per_image"; `concat` joins along the channels and `stack`
            along the images, in the order of their roles.
        output: the value that it makes.
        weights: tensor by role.
        channels: of the output, where the input does not say; of a `sinusoid`, its frequencies.
        activation: applied to the sums before the residual is added; "geglu" halves the channels.
        kernel, step, pad: of a convolution. after: zeros behind the last row and column only.
        upsample: every pixel of the input is read as a square of four.
        first, parts: `slice` takes part `first` of so many along the images, `cut` takes channels
            from `first` on; `constant` has the first so many rows of its tensor.
        weight_kind, tile: how it is computed, decided when the network is loaded.
    """

    kind: Kind
    name: Name
    inputs: Roles
    output: Name
    weights: Roles = {}
    channels: Count = 0
    activation: Activation = "none"
    kernel: Annotated[int, Field(ge=1, le=15)] = 1
    step: Annotated[int, Field(ge=1, le=15)] = 1
    pad: Annotated[int, Field(ge=0, le=15)] = 0
    after: Annotated[int, Field(ge=0, le=1)] = 0
    upsample: bool = False
    groups: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    epsilon: float = 1e-5
    heads: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    scale: float = 1.0
    causal: bool = False
    first: Count = 0
    parts: Count = 0
    weight_kind: Literal["", "float32", "bfloat16", "int16", "int8"] = ""
    tile: Literal[0, 2, 4] = 0


class Graph(_Model):
    """A network's steps in the order in which they run."""

    version: Literal[1]
    network: Name
    inputs: Annotated[tuple[Port, ...], Field(strict=False, max_length=256)]
    outputs: Annotated[tuple[Port, ...], Field(strict=False, max_length=64)]
    steps: Annotated[tuple[Step, ...], Field(strict=False, max_length=MAX_STEPS)]

    def weight_names(self) -> Iterator[str]:
        """Give the name of every tensor that a step reads, as often as one does."""
        for step in self.steps:
            yield from step.weights.values()


def write_graph(graph: Graph, path: Path) -> None:
    """Write a graph as JSON with a line for each step."""
    head = graph.model_dump(mode="json", exclude={"steps"})
    lines = ",\n".join(json.dumps(s.model_dump(mode="json", exclude_defaults=True))
                       for s in graph.steps)  # fmt: skip
    path.write_text(json.dumps(head)[:-1] + f', "steps": [\n{lines}\n]}}\n', encoding="utf-8")


def read_graph(path: Path) -> Graph:
    """Read a graph.

    Raises:
        BundleError: it cannot be read, or is no graph.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_GRAPH_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    return parse_graph(content, str(path))


def parse_graph(content: bytes, where: str) -> Graph:
    """Check a graph's JSON: fields, and that every value is made once, before it is read.

    Raises:
        BundleError: naming the place and what is wrong there.
    """
    if len(content) > MAX_GRAPH_BYTES:
        raise BundleError(f"{where}: larger than {MAX_GRAPH_BYTES} bytes; no graph is.")
    try:
        graph = Graph.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{where}: {place}: {first['msg']}.") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON: {error}.") from None
    _check_values(graph, where)
    return graph


def _check_values(graph: Graph, where: str) -> None:
    made = {port.value for port in graph.inputs}
    if len(made) != len(graph.inputs):
        raise BundleError(f"{where}: two inputs are the same value.")
    for step in graph.steps:
        for role, value in step.inputs.items():
            if value not in made:
                raise BundleError(
                    f"{where}: step {step.name!r} reads {value!r} as {role}, which no step before "
                    "it makes."
                )
        if step.output in made:
            raise BundleError(f"{where}: step {step.name!r} makes {step.output!r} again.")
        made.add(step.output)
    for port in graph.outputs:
        if port.value not in made:
            raise BundleError(f"{where}: output {port.name!r} is never made.")
