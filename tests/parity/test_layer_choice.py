"""A text encoder's graph that hands over one layer, against the graph that hands over all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support import tiny_architectures

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.export.fusion import fuse
from sdengine.export.layer_choice import choose_layer
from sdengine.export.lowering import to_standard
from sdengine.export.network import ExportedNetwork, export_network
from sdengine.models.text_encoder import CLIPTextEncoder


def session_of(model: onnx.ModelProto, network: ExportedNetwork) -> onnxruntime.InferenceSession:
    assert network.onnx_path is not None
    path = network.onnx_path.with_name("chosen.onnx")  # beside its weights
    onnx.save(model, path)
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_each_layer_is_that_of_all(tmp_path: Path, precision: str, fused: bool) -> None:
    (_, config) = tiny_architectures.TINY["tiny-sdxl"].text_encoders
    encoder = CLIPTextEncoder(config).eval()
    seed_weights(encoder, seed=1)
    network = export_network("text_encoder_2", encoder, tmp_path, precision=precision, check=False)
    assert network.onnx_path is not None
    model = onnx.load(network.onnx_path, load_external_data=False)
    before = model.SerializeToString()
    graph, chosen = choose_layer(model, network)
    assert model.SerializeToString() == before
    if fused:
        graph = to_standard(fuse(graph)[0])
    assert [spec.name for spec in chosen.inputs] == ["inputs_embeds", "eos_index", "layer"]
    assert [spec.name for spec in chosen.outputs] == ["states", "pooled"]
    session = session_of(graph, chosen)
    for port, spec in zip(session.get_outputs(), chosen.outputs, strict=True):
        assert (port.name, len(port.shape)) == (spec.name, len(spec.shape))
    rng = np.random.default_rng(0)
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    width, length = config.hidden_size, config.max_position_embeddings
    inputs = {
        "inputs_embeds": rng.standard_normal((2, length, width)).astype(dtype),
        "eos_index": np.array([3, 60]),
    }
    stacks = onnxruntime.InferenceSession(network.onnx_path).run(
        ["hidden_states", "normed_hidden_states", "pooled"], inputs
    )
    count = config.num_hidden_layers + 1
    tolerance = 0.0 if not fused else 2e-2 if precision == "fp16" else 1e-5
    for layer, expected in enumerate(np.concatenate(stacks[:2])):
        states, pooled = session.run(None, {**inputs, "layer": np.full(2, layer)})
        for found, wanted in ((states, expected), (pooled, stacks[2])):
            scale = np.abs(wanted.astype(np.float64)).max()
            difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
            assert found.shape == wanted.shape and difference <= tolerance * scale
    assert layer == 2 * count - 1


def test_other_networks_stay_as_they_are() -> None:
    model = onnx.ModelProto()
    network = ExportedNetwork("unet", None, (), (), None, None)
    assert choose_layer(model, network) == (model, network)
