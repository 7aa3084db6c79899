"""Image prompts in a native graph: a second attention of the same queries beside one over the text.

What it gives is added before the projection to the output. No weight is read, so that the packed
weights, and every step that is there without pictures, stay what they are.

Source: "IP-Adapter" (Ye et al. 2023), equation 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.step import Step
from sdengine.bundle.image_prompts import parse_prompt_input, prompt_inputs
from sdengine.errors import BundleError

# Of the projection that reads a cross-attention, packed or not.
_OUT = re.compile(r"(.+)\.attn2\.to_out\.0\.weight(?::.*)?")


def with_image_prompts(graph: Graph, names: Iterable[str]) -> Graph:
    """Return a graph that reads keys and values of pictures too.

    Args:
        graph: a U-Net, whose methods may have been chosen and weights packed.
        names: the inputs that it shall read, as `prompt_inputs` names them, in pairs.

    Raises:
        BundleError: the U-Net has no such cross-attention.
    """
    adapters: dict[str, list[int]] = {}
    for name in names:
        parsed = parse_prompt_input(name)
        if parsed is not None and parsed[2]:
            adapters.setdefault(parsed[1], []).append(parsed[0])
    ports: list[Port] = []
    instead: dict[str, tuple[str, list[Step]]] = {}  # by what an attention makes
    attentions = _cross_attentions(graph)
    for layer, numbers in adapters.items():
        if layer not in attentions:
            raise BundleError(f"{graph.network}: it has no cross-attention {layer!r}.")
        attention, channels = attentions[layer]
        made, steps = attention.output, []
        for number in sorted(numbers):
            keys, values = prompt_inputs(number, layer)
            ports += [_port(name, channels) for name in (keys, values)]
            seen = f"{attention.output} of picture {number}"
            total = f"{attention.output} with picture {number}"
            reads = {"q": attention.inputs["q"], "k": keys, "v": values}
            steps.append(attention.model_copy(update={"inputs": reads, "output": seen}))
            steps.append(
                Step(kind="add", name=attention.name, inputs={"a": made, "b": seen}, output=total)
            )
            made = total
        instead[attention.output] = made, steps
    return _spliced(graph, instead, ports)


def _spliced(
    graph: Graph, instead: Mapping[str, tuple[str, list[Step]]], ports: list[Port]
) -> Graph:
    """Return a graph with steps behind some values, and their readers reading what these make."""
    renamed = {value: made for value, (made, _) in instead.items()}
    steps: list[Step] = []
    for step in graph.steps:
        inputs = {role: renamed.get(value, value) for role, value in step.inputs.items()}
        steps.append(step if inputs == step.inputs else step.model_copy(update={"inputs": inputs}))
        if step.output in instead:
            steps += instead[step.output][1]
    update = {"inputs": (*graph.inputs, *ports), "steps": tuple(steps)}
    return graph.model_copy(update=update)


def _cross_attentions(graph: Graph) -> dict[str, tuple[Step, int]]:
    """Return the attentions over the text, and their channels, by transformer block."""
    maker = {step.output: step for step in graph.steps}
    found = {}
    for step in graph.steps:
        match = _OUT.fullmatch(step.weights.get("weight", ""))
        attention = maker.get(step.inputs.get("x", ""))
        if match is not None and attention is not None and attention.kind == "attention":
            found[match[1]] = attention, step.channels
    return found


def _port(name: str, channels: int) -> Port:
    return Port(name=name, value=name, rank=3, layout="rows", dtype="float32", channels=channels)
