"""Units of a network: runs of steps that only one map leads into, and how far their rows reach.

A unit whose steps work along pixels and rows can be computed band by band. What its norms need of
the whole map, means and deviations, is found beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.size_rules import Sizes
from sdengine.backends.native.step import Step

_ROW_BY_ROW = ("conv", "linear", "group_norm", "affine", "add", "activation")


@dataclass(frozen=True)
class Reach:
    """What a band of a unit's source makes of another value.

    Args:
        scale: rows for each row of the source.
        margin: rows at each end of a band that would be others with more of the source around.
    """

    scale: Fraction
    margin: int


@dataclass(frozen=True)
class Unit:
    """Some steps in a row.

    Args:
        steps: in their order.
        source: the only value that they read of others.
        target: the only value of theirs that others read.
    """

    steps: tuple[Step, ...]
    source: str
    target: str

    @property
    def norms(self) -> list[Step]:
        """Those that need to know the whole map."""
        return [step for step in self.steps if step.kind == "group_norm"]

    def reaches(self) -> dict[str, Reach] | None:
        """Return the reach of every value, or None where bands of the source do not tell it."""
        found = {self.source: Reach(Fraction(1), 0)}
        for step in self.steps:
            if step.kind not in _ROW_BY_ROW or "per_image" in step.inputs:
                return None
            inputs = [found[value] for role, value in step.inputs.items() if role != "factors"]
            through = found[step.inputs["x" if "x" in step.inputs else "a"]]
            made = _through(step, through)
            if made is None:
                return None
            others = [one for one in inputs if one is not through]
            if any(one.scale != made.scale for one in others):
                return None
            margin = max([made.margin, *(one.margin for one in others)])
            found[step.output] = Reach(made.scale, margin)
        return found

    def graph(self, whole: Graph, sizes: Sizes, target: str, factors: Mapping[str, str]) -> Graph:
        """Return a network of the steps that a value follows from.

        Args:
            whole: the network that the unit is part of.
            sizes: of its values.
            target: a value of the unit.
            factors: by the output of each norm before it, the input of its scales and shifts.
        """
        needed, steps = {target}, []
        ports = [_port(whole.inputs, self.source, sizes)]
        for step in reversed(self.steps):
            if step.output not in needed:
                continue
            needed |= set(step.inputs.values())
            if step.output in factors:
                name = factors[step.output]
                inputs = {**step.inputs, "factors": name}
                step = step.model_copy(update={"kind": "affine", "weights": {}, "inputs": inputs})
                ports.append(_factors_port(name, 2 * sizes[step.output].channels))
            steps.append(step)
        return whole.model_copy(
            update={
                "inputs": tuple(ports),
                "outputs": (_port(whole.outputs, target, sizes),),
                "steps": tuple(reversed(steps)),
            }
        )


def _through(step: Step, x: Reach) -> Reach | None:
    if step.kind != "conv":
        return x
    scale, margin = (x.scale * 2, x.margin * 2) if step.upsample else (x.scale, x.margin)
    around = step.kernel - 1
    if step.stride == 1 and (step.padding * 2, step.padding_after) == (around, 0):
        return Reach(scale, margin + step.padding)
    if step.stride == 2 and step.kernel == 3 and step.padding + step.padding_after == 1:
        return Reach(scale / 2, -(-(margin + 1) // 2))
    return None


def _port(ports: tuple[Port, ...], value: str, sizes: Sizes) -> Port:
    """Return the network's own port of a value, or one that hands the map over as it lies."""
    own = next((port for port in ports if port.value == value), None)
    channels = sizes[value].channels
    return own or Port(
        name=value, value=value, rank=4, layout="map", dtype="float32", channels=channels
    )


def _factors_port(name: str, channels: int) -> Port:
    return Port(name=name, value=name, rank=2, layout="rows", dtype="float32", channels=channels)


def split_units(graph: Graph, sizes: Sizes) -> list[Unit] | None:
    """Cut a network of one input and one output wherever only one map leads on.

    Two parts stay one where the map between them is larger than those before and behind it, which
    is what upsampling makes: it is cheaper to compute its bands again than to keep it. A norm
    stays with what reads it.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return None
    (first,), (last,) = graph.inputs, graph.outputs
    last_use = {value: i for i, step in enumerate(graph.steps) for value in step.inputs.values()}
    last_use[last.value] = len(graph.steps)
    alive, cuts = {first.value}, []
    for index, step in enumerate(graph.steps):
        alive.add(step.output)
        alive = {value for value in alive if last_use.get(value, -1) > index}
        if alive == {step.output} and step.kind != "group_norm":
            cuts.append(index)
    elements = [sizes[first.value].elements, *(sizes[graph.steps[i].output].elements for i in cuts)]
    kept = [
        index
        for place, index in enumerate(cuts, 1)
        if place == len(cuts) or not elements[place - 1] < elements[place] > elements[place + 1]
    ]
    units, begin, source = [], 0, first.value
    for index in kept:
        target = graph.steps[index].output
        units.append(Unit(graph.steps[begin : index + 1], source, target))
        begin, source = index + 1, target
    return units if begin == len(graph.steps) else None
