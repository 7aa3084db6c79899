"""Layer choice: a text encoder's graph that hands over the one layer that is asked for."""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from sdengine.bundle.tensors import CHOSEN_STATES, LAYER, TensorSpec
from sdengine.export.network import ExportedNetwork

_STACKS = ("hidden_states", "normed_hidden_states")


def choose_layer(
    model: onnx.ModelProto, network: ExportedNetwork
) -> tuple[onnx.ModelProto, ExportedNetwork]:
    """Return a text encoder's graph and description with one layer's states as its output.

    A request reads one layer of the L+1, normed or not. Handing over all of them takes 2 (L+1)
    times the bytes from the GPU. The graph gets an input `layer` [batch] int64, equal in all rows:
    0 to L for the states as they are, L+1 to 2L+1 for the normed ones; `states` [batch,S,D] takes
    the place of both stacks.

    Args:
        model: of the network; it is left as it is.
        network: any; others than text encoders are returned as they are.
    """
    outputs = {spec.name: spec for spec in network.outputs}
    if not all(name in outputs for name in _STACKS):
        return model, network
    chosen = onnx.ModelProto()
    chosen.CopyFrom(model)
    graph = chosen.graph
    _, rows, *rest = outputs[_STACKS[0]].shape
    places = {value.name: value for value in graph.output}
    elem_type = places[_STACKS[0]].type.tensor_type.elem_type
    given = next(value for value in graph.input if value.name == "eos_index")
    layer = onnx.ValueInfoProto()
    layer.CopyFrom(given)
    layer.name = LAYER
    graph.input.append(layer)
    for name, value in (("first", 0), ("second", 1)):
        graph.initializer.append(
            helper.make_tensor(f"layer_choice.{name}", TensorProto.INT64, [1], [value])
        )
    first, second = "layer_choice.first", "layer_choice.second"
    graph.node.extend(
        [
            helper.make_node("Concat", list(_STACKS), ["layer_choice.all"], "layer_choice", axis=0),
            helper.make_node(
                "Slice", [LAYER, first, second, first], ["layer_choice.index"], "layer_choice.slice"
            ),
            helper.make_node(
                "Gather",
                ["layer_choice.all", "layer_choice.index"],
                ["layer_choice.one"],
                "layer_choice.gather",
                axis=0,
            ),
            helper.make_node(
                "Squeeze", ["layer_choice.one", first], [CHOSEN_STATES], "layer_choice.squeeze"
            ),
        ]
    )
    shape = places[_STACKS[0]].type.tensor_type.shape.dim[1:]
    states = helper.make_tensor_value_info(
        CHOSEN_STATES, elem_type, [dim.dim_param or dim.dim_value for dim in shape]
    )
    others = [value for name, value in places.items() if name not in _STACKS]
    del graph.output[:]
    graph.output.extend([states, *others])
    dtype = outputs[_STACKS[0]].dtype
    return chosen, replace(
        network,
        inputs=(*network.inputs, TensorSpec(LAYER, (rows,), "int64")),
        outputs=(
            TensorSpec(CHOSEN_STATES, (rows, *rest), dtype),
            *(spec for name, spec in outputs.items() if name not in _STACKS),
        ),
    )
