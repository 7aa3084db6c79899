"""Layers that err too much in low precision are found, named, and computed plainly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.step import Step
from sdengine.compilers.native.sensitivity import exact_steps, layer_errors


def port(name: str, channels: int) -> Port:
    return Port(name=name, value=name, rank=4, layout="image", dtype="float32", channels=channels)


def graph() -> Graph:
    layers = [
        Step(
            kind="linear",
            name=f"node {name}",
            inputs={"x": source},
            output=name,
            weights={"weight": f"{name}.weight"},
            channels=64,
        )
        for source, name in (("x", "first"), ("first", "loud"), ("loud", "quiet"))
    ]
    return Graph(
        version=1,
        network="n",
        inputs=(port("x", 64),),
        outputs=(port("quiet", 64),),
        steps=tuple(layers),
    )


def test_outlier_channels_are_found() -> None:
    rng = np.random.default_rng(0)
    weights = {
        f"{name}.weight": rng.standard_normal((64, 64), dtype=np.float32) / 8
        for name in ("first", "loud", "quiet")
    }
    # One channel is a thousand times larger than what matters, and what follows ignores it.
    weights["first.weight"][5] *= 1000.0
    weights["loud.weight"][:, 5] = 0.0
    x = rng.standard_normal((1, 64, 16, 16), dtype=np.float32)
    errors = layer_errors(graph(), weights, {"x": x})
    by = {(e.output, e.precision): e for e in errors}
    assert by["loud", "int8"].method == "int8" and by["loud", "int8"].is_exact
    assert by["loud", "int8"].error > 0.5 > 0.05 > by["quiet", "int8"].error
    assert exact_steps(errors) == {"int8": ["loud"]}
    # What reads the network's input is never in eight bits.
    assert by["first", "int8"].method != "int8"
    for layer in ("first", "loud", "quiet"):
        assert by[layer, "bf16"].error < 1e-2


def test_errors_are_those_of_the_layer_alone() -> None:
    rng = np.random.default_rng(1)
    weights = {
        f"{name}.weight": rng.standard_normal((64, 64), dtype=np.float32) / 8
        for name in ("first", "loud", "quiet")
    }
    x = rng.standard_normal((1, 64, 8, 8), dtype=np.float32)
    errors = {(e.output, e.precision): e.error for e in layer_errors(graph(), weights, {"x": x})}
    tokens = torch.from_numpy(x).permute(0, 2, 3, 1)
    weight = torch.from_numpy(weights["first.weight"])
    truth = F.linear(tokens.double(), weight.double())
    low = F.linear(tokens.bfloat16(), weight.bfloat16()).double()
    torchs = float(((low - truth).square().mean() / truth.square().mean()).sqrt())
    assert 0.2 * torchs < errors["first", "bf16"] <= 2 * torchs
