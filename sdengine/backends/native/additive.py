"""Inputs that are only added to what is computed anyway, such as a ControlNet's residuals.

Where all of them are zero, a network without these additions gives the same results sooner.
"""

from __future__ import annotations

from sdengine.backends.native.graph import Graph


def additive_inputs(graph: Graph) -> frozenset[str]:
    """Return the names of the inputs that are read by nothing but additions, as second operand."""
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
