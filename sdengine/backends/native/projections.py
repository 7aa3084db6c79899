"""Projections of the same tokens, computed as one linear layer: queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable

from sdengine.backends.native.graph import Graph, Step

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
