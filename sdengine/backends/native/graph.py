"""Graph of a native network: steps over feature maps, and the file `*.graph.json` that keeps them.

A map is [images, height, width, channels]. Inputs and outputs of layout "image" are [n,c,h,w]
outside; those of layout "map", which no file has, are handed over as they lie; those of layout
"rows" are [n, channels], [n, tokens, channels] or [layers, n, tokens, channels], and their tokens
lie along the width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sdengine.backends.native.operations import check_step
from sdengine.backends.native.step import Name, Step, StrictModel
from sdengine.errors import BundleError
from sdengine.storage.regular_file import open_regular

MAX_GRAPH_BYTES = 16 << 20
MAX_STEPS = 20_000


class Port(StrictModel):
    """One input or output: its name outside, and the value that it is inside."""

    name: Name
    value: Name
    rank: int = Field(ge=1, le=4)
    layout: Literal["image", "rows", "map"]
    dtype: Literal["float32", "int64"]
    channels: int = Field(ge=1, le=1 << 20)


class Graph(StrictModel):
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
    lines = ",\n".join(
        json.dumps(step.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        for step in graph.steps
    )
    path.write_text(json.dumps(head)[:-1] + f', "steps": [\n{lines}\n]}}\n', encoding="utf-8")


def read_graph(path: Path) -> Graph:
    """Read a graph.

    Raises:
        BundleError: it cannot be read, or is no graph.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_GRAPH_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    return parse_graph(content, str(path))


def parse_graph(content: bytes, where: str) -> Graph:
    """Check a graph's JSON: its steps, and that every value is made once, before it is read.

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
    try:
        for step in graph.steps:
            check_step(step)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from None
    _check_values(graph, where)
    if any(port.layout == "map" for port in (*graph.inputs, *graph.outputs)):
        raise BundleError(f"{where}: an input or output is of layout 'map', which no file has.")
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
