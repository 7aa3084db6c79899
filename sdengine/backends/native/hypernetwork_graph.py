"""Hypernetworks in a native graph: their layers before the projections to keys and to values.

What an attention's keys and values are made of gets what the networks of its width add to it; of
several each adds to the last one's result. A text is the same at every step: instead of layers, the
graph then has two inputs for it, which the host makes once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.size_rules import Sizes
from sdengine.backends.native.step import Step
from sdengine.bundle.contexts import CONTEXTS, TEXT
from sdengine.inputs.hypernetworks import Hypernetwork, Layer

Array = NDArray[Any]
# What a product applies to its sums itself; others are a step of their own.
_TAKEN_ALONG = ("relu", "silu", "gelu")
# Files' names of activations, where the kernels have another.
_NAMES = {"leakyrelu": "leaky_relu", "celu": "elu", "swish": "hardswish"}


@dataclass(frozen=True)
class WithHypernetworks:
    """A U-Net's graph with the layers of hypernetworks.

    Args:
        graph: the steps; their methods are yet to be chosen.
        shapes: shape of every input, by name.
        weights: what it reads beside the bundle's tensors, by name.
        exact: outputs of its own products, whose error in 8 bits no build has measured.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, Array]
    exact: frozenset[str]


def with_hypernetworks(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    hypernetworks: Sequence[tuple[Hypernetwork, float]],
) -> WithHypernetworks:
    """Return a graph with the layers of hypernetworks, each times its strength.

    Args:
        graph: a U-Net as its file has it.
        shapes: shape of every input, by name.
        hypernetworks: in the order in which they are applied; none of strength 0.
    """
    return _Rewriting(graph, map_sizes(graph, shapes), hypernetworks).result(shapes)


@dataclass
class _Rewriting:
    graph: Graph
    sizes: Sizes
    hypernetworks: Sequence[tuple[Hypernetwork, float]]
    before: dict[str, list[Step]] = field(default_factory=dict)  # by the projection's output
    instead: dict[str, str] = field(default_factory=dict)  # what a projection reads, by its output
    weights: dict[str, Array] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)

    def result(self, shapes: Mapping[str, tuple[int, ...]]) -> WithHypernetworks:
        text = next((port.value for port in self.graph.inputs if port.name == TEXT), None)
        maker = {step.output: step for step in self.graph.steps}
        for step in self.graph.steps:
            for index, role in enumerate("kv"):
                projection = maker.get(step.inputs.get(role, ""))
                if step.kind == "attention" and projection is not None:
                    self._change(projection, index, is_text=projection.inputs.get("x") == text)
        steps: list[Step] = []
        for step in self.graph.steps:
            steps += self.before.get(step.output, [])
            if (context := self.instead.get(step.output)) is not None:
                step = step.model_copy(update={"inputs": {**step.inputs, "x": context}})
            steps.append(step)
        read = {value for step in steps for value in step.inputs.values()}
        ports: list[Port] = []
        shapes = dict(shapes)
        for port in self.graph.inputs:
            if port.value != text:
                ports.append(port)
                continue
            made = [one for one in CONTEXTS if one in read]
            shape = shapes[port.name]
            if port.value in read:
                ports.append(port)
            else:
                del shapes[port.name]
            ports += [port.model_copy(update={"name": one, "value": one}) for one in made]
            shapes |= dict.fromkeys(made, shape)
        changed = self.graph.model_copy(update={"inputs": tuple(ports), "steps": tuple(steps)})
        return WithHypernetworks(changed, shapes, self.weights, frozenset(self.exact))

    def _change(self, projection: Step, index: int, is_text: bool) -> None:
        """Let a projection, to keys or values by index 0 or 1, read what is added to."""
        context = projection.inputs["x"]
        width = self.sizes[context].channels
        found = [
            (number, one.networks[width][index], strength)
            for number, (one, strength) in enumerate(self.hypernetworks)
            if width in one.networks
        ]
        if not found or projection.output in self.instead:
            return
        if is_text:
            self.instead[projection.output] = CONTEXTS[index]
            return
        steps: list[Step] = []
        for number, layers, strength in found:
            source = f"hypernetwork {number}.{width}.{'kv'[index]}"
            steps += self._layers(projection, source, layers, context)
            total = f"{projection.output} of {source}"
            terms = {"a": context, "b": steps[-1].output}
            steps.append(
                Step(kind="add", name=projection.name, inputs=terms, output=total, scale=strength)
            )
            context = total
        self.before[projection.output] = steps
        self.instead[projection.output] = context

    def _layers(
        self, projection: Step, source: str, layers: Sequence[Layer], value: str
    ) -> list[Step]:
        """Return the steps of one network that reads a value."""
        steps: list[Step] = []

        def make(kind: str, what: str, arrays: Sequence[Array] = (), **fields: Any) -> None:
            nonlocal value
            names = [f"{source}.{what}.{role}" for role in ("weight", "bias")]
            self.weights.update(zip(names, arrays, strict=False))
            own = dict(zip(("weight", "bias"), names, strict=True)) if arrays else {}
            output = f"{projection.output} of {source}.{what}"
            steps.append(
                Step(
                    kind=kind, name=projection.name, inputs={"x": value}, weights=own,
                    output=output, **fields,
                )
            )  # fmt: skip
            value = output

        for number, layer in enumerate(layers):
            activation = _NAMES.get(layer.activation, layer.activation)
            along = activation if activation in _TAKEN_ALONG else "none"
            matrix = (layer.weight, layer.bias)
            make("linear", f"{number}", matrix, channels=len(layer.bias), activation=along)
            self.exact.add(value)
            if along == "none" and activation != "linear":
                make("activation", f"{number}.{activation}", activation=activation)
            if layer.norm is not None:
                make("layer_norm", f"{number}.norm", layer.norm)
        return steps
