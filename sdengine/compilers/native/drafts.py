"""Drafts of steps: what single nodes of an exported graph compute, before they are joined.

A draft has the kind of a step, or one that must become part of another: "bias", "sigmoid",
"scale", "product", "half", "angles", "cos", "sin", "double", "pad", "one_hot".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ExportError


@dataclass(eq=False)
class Draft:
    """What one node computes.

    Args:
        kind, name, inputs, output, weights: as of a step.
        op_type: of the node, for messages.
        fields: the step's other fields, and what the kinds that are no steps need.
        place: its number, in the order of the graph.
    """

    kind: str
    name: str
    inputs: dict[str, str]
    output: str
    op_type: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    place: int = 0


class Drafts:
    """All drafts of a network, in order, by what they make."""

    def __init__(self, network: str, outputs: Sequence[str]) -> None:
        self.network = network
        self.outputs = set(outputs)
        self.all: list[Draft] = []
        self.maker: dict[str, Draft] = {}
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.readers: Counter[str] = Counter()

    def add(self, draft: Draft) -> None:
        """Put a draft behind the others."""
        draft.place = len(self.all)
        self.all.append(draft)
        self.maker[draft.output] = draft
        self.readers.update(draft.inputs.values())

    def only_reader(self, value: str, count: int = 1) -> bool:
        """Whether nothing but the asker, in so many places, reads a value."""
        return self.readers[value] == count and value not in self.outputs

    def absorb(self, draft: Draft, into: Draft) -> None:
        """Let another draft make what one made; that one is gone."""
        self.drop(draft)
        del self.maker[into.output]
        into.output = draft.output
        self.maker[draft.output] = into

    def drop(self, draft: Draft) -> None:
        """Take a draft out."""
        self.all.remove(draft)
        self.readers.subtract(draft.inputs.values())
        if self.maker.get(draft.output) is draft:
            del self.maker[draft.output]

    def refuse(
        self, draft: Draft, reason: str = "the native target has no step for it"
    ) -> NoReturn:
        """Name the node that cannot be computed."""
        raise ExportError(
            f"{self.network}: node {draft.name!r} ({draft.op_type}) cannot be compiled: {reason}."
        )
