"""Upscalers that users bring: tiles that do not show, alpha, and files that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError, SdengineError
from sdengine.images.metadata import read_metadata
from sdengine.inputs.resize import resized
from sdengine.inputs.upscaler import TILE, UpscalerFile, open_upscaler, upscaled_to
from sdengine.request.request import Request

Nodes = list[onnx.NodeProto]
WEIGHT = np.random.default_rng(0).standard_normal((12, 3, 3, 3)).astype(np.float32) * 0.1
BIAS = np.full(12, 0.4, np.float32)


def network(
    nodes: Nodes | None = None,
    size: tuple[Any, Any] = ("h", "w"),
    dtype: int = TensorProto.FLOAT,
    channels: int = 3,
    inputs: int = 1,
    **constants: Any,
) -> onnx.ModelProto:
    """A convolution and a pixel shuffle, twice as large, or other nodes from x to y."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    constants = constants or {"weight": WEIGHT.astype(kind), "bias": BIAS.astype(kind)}
    nodes = nodes or [
        helper.make_node("Conv", ["x", "weight", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
    ]
    given = [
        helper.make_tensor_value_info("x" * (i + 1), dtype, ["b", channels, *size])
        for i in range(inputs)
    ]
    made = [helper.make_tensor_value_info("y", dtype, None)]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "upscaler", given, made, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def opened(model: onnx.ModelProto) -> Any:
    return open_upscaler("hires_model", UpscalerFile(model.SerializeToString(), "a.onnx"))


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(20, 33), (96, 97), (200, 131)])
def test_tiles_do_not_show(size: tuple[int, int]) -> None:
    pixels = picture(*size)
    values = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    wide = torch.nn.functional.pad(values, (1, 1, 1, 1), mode="replicate")
    found = torch.nn.functional.conv2d(wide, torch.from_numpy(WEIGHT), torch.from_numpy(BIAS))
    expected = torch.nn.functional.pixel_shuffle(found, 2)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    upscaler = opened(network())
    assert upscaler.factor == 2 and upscaler.tile == (TILE, TILE)
    assert np.abs(upscaler(pixels) - expected * 255).max() < 0.51


def test_sizes_that_the_file_fixes_and_half_precision() -> None:
    upscaler = opened(network(size=(48, 32), dtype=TensorProto.FLOAT16))
    assert upscaler.tile == (48, 32)
    whole = opened(network())(picture(70, 90)).astype(int)
    assert np.abs(upscaler(picture(70, 90)) - whole).max() <= 2


def test_alpha_is_resized_apart() -> None:
    alpha = np.zeros((40, 40, 1), np.uint8)
    alpha[10:30] = 255
    found = opened(network())(np.concatenate([picture(40, 40), alpha], axis=2))
    assert found.shape == (80, 80, 4)
    np.testing.assert_array_equal(found[..., :3], opened(network())(picture(40, 40)))
    np.testing.assert_array_equal(found[[0, 40, 79], 5, 3], [0, 255, 0])


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_edges_meet(axes: str) -> None:
    pixels = picture(150, 131)
    both = tuple("yx".index(axis) for axis in axes)
    plain = opened(network())(pixels, axes)
    found = opened(network())(np.roll(pixels, (17,) * len(both), both), axes)
    np.testing.assert_array_equal(found, np.roll(plain, (34,) * len(both), both))


def test_it_runs_until_a_size_is_covered() -> None:
    assert upscaled_to(opened(network()), picture(24, 20), 70, 30).shape == (96, 80, 3)


def external() -> onnx.ModelProto:
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model


def with_branch() -> onnx.ModelProto:
    inner = helper.make_graph([], "inner", [], [])
    return network([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)])


def resizing(scale: float) -> onnx.ModelProto:
    scales = np.array([1, 1, scale, scale], np.float32)
    return network([helper.make_node("Resize", ["x", "", "scales"], ["y"])], scales=scales)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (external(), "weights are in another file"),
        (with_branch(), "If has graphs of its own"),
        (
            network([helper.make_node("Mine", ["x"], ["y"], domain="own")]),
            "own.Mine is not standard",
        ),
        (network(inputs=2), "2 inputs"),
        (network(channels=1, weight=WEIGHT[:, :1], bias=BIAS), r"not \[1,3,h,w\]"),
        (network(size=(8, 8)), "8x8 pixels, not 16"),
        (network(size=(4096, 4096)), "4096x4096 pixels"),
        (network(dtype=TensorProto.INT64), "of floats"),
        (resizing(1.0), r"its output is \[1, 3, 128, 128\], not 2 to 8 times"),
        (resizing(2000.0), "elements"),
        (network([helper.make_node("Relu", ["lost"], ["y"])]), "upscaler"),
        (network([helper.make_node("Unknown", ["x"], ["y"])]), "upscaler"),
    ],
)
def test_what_is_no_upscaler_is_refused(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^hires_model: 'a.onnx' .*{reason}"):
        opened(model)


@pytest.mark.parametrize("cut", range(0, 600, 37))
def test_damaged_files_are_refused(cut: int) -> None:
    content = bytearray(network().SerializeToString())
    for damaged in (content[:cut], content[:cut] + b"\xff\x00\x80" + content[cut + 3 :]):
        try:
            open_upscaler("hires_model", UpscalerFile(bytes(damaged)))
        except SdengineError as error:
            assert str(error).startswith("hires_model: the content")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


def test_a_second_pass_through_it(engine: Engine, tmp_path: Any) -> None:
    path = tmp_path / "twice.onnx"
    onnx.save(network(), path)
    fields: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    found = engine.generate("a red circle", hires=(96, 96), hires_model=path, **fields)
    assert found.request.hires_upscaler == "lanczos"
    first = engine.generate("a red circle", **fields).arrays[0]
    larger = resized(opened(network())(first), 96, 96, "stretch")
    second = engine.generate(
        "a red circle", image=larger, strength=0.7, strength_rule="exact",
        **{**fields, "width": 96, "height": 96},
    )  # fmt: skip
    np.testing.assert_array_equal(found.arrays[0], second.arrays[0])
    assert "Hires upscaler: twice" in found.parameters()

    (file,) = found.save(tmp_path / "a.png")
    again = read_metadata(file).request_fields()
    assert not again["hires_model"].is_given
    with pytest.raises(ConfigError, match=r"^hires_model: only the record of the file .*--hires-m"):
        engine.generate(**again)
    replayed = engine.generate(**{**again, "hires_model": path})
    np.testing.assert_array_equal(replayed.arrays[0], found.arrays[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hires_model": "/nowhere/a.onnx"}, r"^hires_model: .*cannot be read"),
        ({"hires_model": 3}, r"^hires_model: 3 .*path of an ONNX file"),
        ({"hires_model": b"x", "hires_upscaler": "latent"}, r"^hires_upscaler: .*lanczos or near"),
        ({"hires_model": b"x", "hires": None}, r"^hires_model: .*without hires"),
    ],
)
def test_requests_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request("a", **{"hires": 2, **fields})


def test_json_has_the_record_and_opens_no_path() -> None:
    fields: dict[str, Any] = {"hires": 2, "hires_model": b"x", "hires_upscaler": "lanczos"}
    made = Request("a", **fields)
    again = Request.from_json(made.to_json())
    assert again == made and again.hires_model is not None and not again.hires_model.is_given
    text = made.to_json().replace('{"sha256"', '{"path": "/etc/passwd", "sha256"')
    with pytest.raises(ConfigError, match=r"^hires_model: .*sha256"):
        Request.from_json(text)
