"""Passes over a graph: projections of the same tokens joined, additions of zeros left out."""

from __future__ import annotations

from collections.abc import Iterable

from sdengine.backends.native.graph import Graph
from sdengine.backends.native.step import Step

JOINT = "+"  # between the names of tensors that are packed as one matrix


def join_projections(graph: Graph) -> Graph:
    """Return a graph whose attentions read parts of one product where they read the same tokens.

    The tokens are then read, and rounded, once. The steps' methods must have been chosen.
    """
    maker = {step.output: step for step in graph.steps}
    joined: dict[str, Step] = {}  # by the output of the first projection
    parts: dict[str, list[Step]] = {}
    for step in graph.steps:
        if step.kind != "attention":
            continue
        read = [maker[value] for value in step.inputs.values() if value in maker]
        for group in _groups(read):
            if group[0].output not in joined and not any(p.output in parts for p in group):
                joined[group[0].output], cuts = _join(group)
                for projection, cut in zip(group, cuts, strict=True):
                    parts[projection.output] = [cut]
    steps: list[Step] = []
    for step in graph.steps:
        if step.output in joined:
            steps.append(joined[step.output])
        steps += parts.get(step.output, [step])
    return graph.model_copy(update={"steps": tuple(steps)})


def _groups(projections: Iterable[Step]) -> list[list[Step]]:
    """Gather the linear layers of the same tokens that nothing else tells apart."""
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in projections:
        plain = step.kind == "linear" and step.activation == "none" and step.inputs.keys() == {"x"}
        if plain:
            key = (step.inputs["x"], step.weight_kind, tuple(sorted(step.weights)))
            groups.setdefault(key, []).append(step)
    return [group for group in groups.values() if len(group) > 1]


def _join(group: list[Step]) -> tuple[Step, list[Step]]:
    output = JOINT.join(step.output for step in group)
    weights = {role: JOINT.join(s.weights[role] for s in group) for role in group[0].weights}
    channels = sum(step.channels for step in group)
    changes = {"output": output, "weights": weights, "channels": channels}
    product = group[0].model_copy(update=changes)
    cuts = []
    first = 0
    for step in group:
        cut = {"kind": "cut", "inputs": {"x": output}, "weights": {}, "first": first}
        cuts.append(step.model_copy(update=cut))
        first += step.channels
    return product, cuts


def additive_inputs(graph: Graph) -> frozenset[str]:
    """Return the names of the inputs that are read by nothing but additions, as second operand.

    A ControlNet's residuals are such. Where all of them are zero, a network without these
    additions gives the same results sooner.
    """
    others = {
        value
        for step in graph.steps
        for role, value in step.inputs.items()
        if (step.kind, role) != ("add", "b")
    }
    others |= {port.value for port in graph.outputs}
    added = {step.inputs["b"] for step in graph.steps if step.kind == "add"}
    return frozenset(p.name for p in graph.inputs if p.value in added and p.value not in others)


def without_inputs(graph: Graph, names: frozenset[str]) -> Graph:
    """Return a graph without some additive inputs and the additions of them."""
    dropped = {port.value for port in graph.inputs if port.name in names}
    instead: dict[str, str] = {}
    steps = []
    for step in graph.steps:
        inputs = {role: instead.get(value, value) for role, value in step.inputs.items()}
        if step.kind == "add" and inputs["b"] in dropped:
            instead[step.output] = inputs["a"]
        else:
            steps.append(step.model_copy(update={"inputs": inputs}))
    ports = {
        "inputs": tuple(port for port in graph.inputs if port.name not in names),
        "outputs": tuple(
            port.model_copy(update={"value": instead.get(port.value, port.value)})
            for port in graph.outputs
        ),
    }
    return graph.model_copy(update={"steps": tuple(steps), **ports})
