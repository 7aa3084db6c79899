"""Quantised graphs: what onnxruntime makes of them is what the formats say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.quantised_network import calibration, write_network
from tolerances import assert_close

from sdengine.compilers.tensorrt.quantisation.formats import FORMATS, NumberFormat
from sdengine.compilers.tensorrt.quantisation.graph import written_beside
from sdengine.compilers.tensorrt.quantisation.layers import LayerScales, smoothed
from sdengine.errors import EngineBuildError
from sdengine.export.comparison import open_session


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=str)
def test_layers_compute_with_what_is_left_of_their_inputs(
    number_format: NumberFormat, tmp_path: Path
) -> None:
    path, weights = write_network(tmp_path)
    factors = np.array([0.5, 2.0] * 16, np.float32)
    layers = {
        "conv.weight": LayerScales(float(number_format.scale(4.0))),
        "a.weight": LayerScales(float(number_format.scale(9.0)), factors),
        "b.weight": LayerScales(float(number_format.scale(9.0)), factors),
    }
    x = np.random.default_rng(1).standard_normal((1, 16, 4, 4)).astype(np.float16)
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString()
    with written_beside(path, model, calibration(number_format, layers)) as place:
        quantised = onnx.load(place, load_external_data=False)
        tokens, *found = open_session(place, "unet").run(["tokens", "a", "b", "c"], {"x": x})
    assert model.SerializeToString() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["unet.onnx", "unet.onnx.data"]

    def rounded(values: np.ndarray, name: str) -> np.ndarray:
        return number_format.rounded(np.float32(values), np.float32(layers[name].scale))

    kernel = number_format.rounded_weight(np.float32(weights["conv.weight"]))[:, :, 0, 0]
    pixels = rounded(x[0].transpose(1, 2, 0), "conv.weight")
    made = pixels @ kernel.T + np.float32(weights["conv.bias"])
    assert_close("quantised layer", number_format.name, tokens[0], made)
    quiet = rounded(np.float16(tokens * np.float16(factors)), "a.weight")
    for name, got in zip(("a", "b"), found, strict=False):
        weight = number_format.rounded_weight(smoothed(weights[f"{name}.weight"], factors))
        assert_close("quantised layer", number_format.name, got, quiet @ weight.T)
    plain = np.float32(tokens) @ np.float32(weights["c.weight"]).T  # it is not in the calibration
    assert_close("quantised layer", number_format.name, found[2], plain)
    # Both readers of the tokens share what is left of them.
    ops = [node.op_type for node in quantised.graph.node]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (2, 5)
    assert {t.name for t in quantised.graph.initializer} >= {"conv.bias", "c.weight"}
    assert not {"conv.weight", "a.weight"} & {t.name for t in quantised.graph.initializer}


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    path, _ = write_network(tmp_path)
    model = onnx.load(path, load_external_data=False)
    layers = {"no.weight": LayerScales(1.0)}
    with (
        pytest.raises(EngineBuildError, match=r"no layer of the graph reads 'no\.weight'"),
        written_beside(path, model, calibration(FORMATS["fp8"], layers)),
    ):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["unet.onnx", "unet.onnx.data"]
