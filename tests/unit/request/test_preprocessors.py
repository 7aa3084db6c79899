"""Preprocessors: hints of the right size, type and values; what is not accepted has a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

import sdengine
from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.inputs import edges
from sdengine.request.preprocessors import PREPROCESSORS, preprocess

PIXELS = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)
WITHOUT_FILES = sorted(set(PREPROCESSORS) - {"inpaint", "onnx"})


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_a_hint_is_rgb_bytes_of_the_pictures_size_or_as_asked_for(name: str) -> None:
    image = PIXELS[..., 0] if name == "depth" else PIXELS
    for options, shape in (({}, (24, 32, 3)), ({"resolution": 48}, (48, 64, 3))):
        hint = preprocess(image, name, **options)
        assert hint.dtype == np.uint8 and hint.shape == shape
        assert hint.max() > hint.min() and hint.flags.writeable
    assert sdengine.preprocess is preprocess


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_the_smallest_and_the_narrowest_pictures(name: str) -> None:
    for shape in ((1, 1), (1, 40), (40, 1)):
        image = np.full((*shape, 3), 9, np.uint8)
        given = image[..., 0] if name == "depth" else image
        assert preprocess(given, name).shape == image.shape
        with pytest.raises(ConfigError, match=r"resolution: 8192 .* at most 134217728 pixels"):
            preprocess(np.repeat(given, 50, axis=shape.index(max(shape))), name, resolution=8192)


def test_options_reach_the_function() -> None:
    assert np.array_equal(
        preprocess(PIXELS, "canny", low=300, high=900)[..., 1], edges.canny(PIXELS, 300, 900)
    )
    assert np.array_equal(preprocess(PIXELS), preprocess(PIXELS, "canny", low=100, high=200))
    assert not np.array_equal(preprocess(PIXELS, "blur", sigma=1), preprocess(PIXELS, "blur"))
    assert np.array_equal(preprocess(PIXELS, "invert"), 255 - PIXELS)
    assert np.array_equal(preprocess(PIXELS, "none"), PIXELS)


def test_a_picture_is_read_upright_and_lies_on_the_background(tmp_path: Path) -> None:
    clear = np.zeros((16, 20, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(clear).save(tmp_path / "a.png", exif=exif)
    hint = preprocess(tmp_path / "a.png", "none", background="#0a0b0c")
    assert hint.shape == (20, 16, 3) and (hint == (10, 11, 12)).all()


def test_tile_keeps_the_means_and_loses_the_details() -> None:
    hint = preprocess(PIXELS, "tile", factor=8).astype(float)
    assert hint.mean() == pytest.approx(PIXELS.mean(), abs=2)
    assert hint.std() < PIXELS.std() / 3
    assert np.array_equal(preprocess(PIXELS, "tile", factor=1), PIXELS)


def test_inpaint_is_minus_one_where_the_mask_is_white_and_else_the_picture_from_0_to_1() -> None:
    """As diffusers' documentation makes it: masked where the mask is above one half."""
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 10:] = 255
    mask[:, :3] = 127
    hint = preprocess(PIXELS, "inpaint", mask=mask)
    assert hint.dtype == np.float32
    assert (hint[:, 10:] == -1).all()
    np.testing.assert_array_equal(hint[:, :10], PIXELS[:, :10] / np.float32(255))
    with pytest.raises(ConfigError, match="mask: it is missing; inpaint needs"):
        preprocess(PIXELS, "inpaint")
    with pytest.raises(ConfigError, match=r"mask: '9x24 pixels'.*the size of image, 32x24"):
        preprocess(PIXELS, "inpaint", mask=mask[:, :9])


def test_depth_keeps_16_bits_until_it_is_stretched(tmp_path: Path) -> None:
    """A span of 200 values of 65536 is gone where a file is read as 8 bits first."""
    values = np.tile(np.linspace(40000, 40200, 32).astype(np.uint16), (24, 1))
    Image.fromarray(values).save(tmp_path / "deep.png")
    hint = preprocess(tmp_path / "deep.png", "depth")
    assert hint[0, 0, 0] == 0 and hint[0, -1, 0] == 255 and len(np.unique(hint)) == 32
    assert np.array_equal(preprocess(tmp_path / "deep.png", "depth", invert=True), 255 - hint)
    fixed = preprocess(values.astype(np.float32), "depth", low=40100, high=40400)
    assert fixed[0, 0, 0] == 0 and fixed[0, -1, 0] == 85
    assert not preprocess(np.ones((9, 9)), "depth").any()  # not NaN
    assert not preprocess(np.ones((9, 9)), "depth", invert=True).any()


def test_segmentation_mixes_no_colours() -> None:
    for size in (16, 31, 97):
        hint = preprocess(PIXELS, "segmentation", resolution=size)
        known = {tuple(colour) for colour in PIXELS.reshape(-1, 3)}
        assert {tuple(colour) for colour in hint.reshape(-1, 3)} <= known
    twice = preprocess(PIXELS, "segmentation", resolution=48)
    np.testing.assert_array_equal(twice, PIXELS.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hed", {}, "preprocessor: 'hed' is not accepted; expected one of none, invert, canny"),
        (3, {}, "preprocessor: 3"),
        (
            "canny",
            {"sigma": 2},
            "sigma: 2 .* preprocessor canny, which takes low, high, res.* of soft_edge, blur",
        ),
        ("canny", {"low": -1}, "low: -1.0 .* a number from 0 to 2040"),
        ("canny", {"low": 300}, "low: 300.0 .* less than high, which is 200"),
        ("canny", {"high": float("nan")}, "high: nan"),
        ("depth", {"low": 3, "high": 3}, "low: 3.0"),
        ("tile", {"factor": "4"}, "factor: '4'"),
        ("blur", {"resolution": 9}, "resolution: 9 .* from 16 to 8192"),
        ("blur", {"background": "red"}, "background: 'red'"),
        ("onnx", {}, "onnx: it is missing; onnx needs the path of an ONNX file"),
    ],
)
def test_what_is_not_accepted_is_named(name: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        preprocess(PIXELS, name, **options)


def network(
    path: Path,
    shape: list[Any],
    nodes: list[tuple[str, dict[str, Any]]],
    kind: int = TensorProto.FLOAT,
    out: int = TensorProto.FLOAT,
) -> str:
    """Write an ONNX file of nodes of one input each."""
    names = ["x", *(f"t{i}" for i in range(len(nodes)))]
    made = [
        helper.make_node(kind_, [a], [b], **attributes)
        for (kind_, attributes), a, b in zip(nodes, names, names[1:], strict=False)
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(names[-1], out, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return str(path)


FREE: list[Any] = [1, 3, "h", "w"]


def run(path: str, pixels: NDArray[np.uint8] = PIXELS, **options: Any) -> NDArray[Any]:
    return preprocess(pixels, "onnx", onnx=path, **options)


def test_an_onnx_network_reads_0_to_1_and_gives_0_to_1(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", FREE, [("Identity", {})])
    np.testing.assert_array_equal(run(path), PIXELS)
    mean, std = (0.1, 0.2, 0.3), (1.0, 1.0, 2.0)
    expected = ((PIXELS / 255 - mean) / std).clip(0, 1) * 255
    path = network(tmp_path / "r.onnx", FREE, [("Relu", {})])
    np.testing.assert_allclose(run(path, mean=mean, std=std), expected, atol=1)


def test_what_the_file_says_of_layout_type_and_size_counts(tmp_path: Path) -> None:
    last = network(tmp_path / "l.onnx", ["n", "h", "w", 3], [("Identity", {})])
    np.testing.assert_array_equal(run(last), PIXELS)
    half = network(
        tmp_path / "h.onnx", FREE, [("Identity", {})], TensorProto.FLOAT16, TensorProto.FLOAT16
    )
    np.testing.assert_allclose(run(half), PIXELS, atol=1)
    whole = network(
        tmp_path / "u.onnx", FREE, [("Identity", {})], TensorProto.UINT8, TensorProto.UINT8
    )
    stretched = run(whole, range="minmax").astype(float)
    low, high = int(PIXELS.min()), int(PIXELS.max())
    np.testing.assert_allclose(stretched, (PIXELS.astype(float) - low) * 255 / (high - low), atol=1)
    with pytest.raises(ConfigError, match=r"mean and std: .* reads 0 to 255"):
        run(whole, std=(0.5, 0.5, 0.5))
    fixed = network(tmp_path / "f.onnx", [1, 3, 8, 16], [("Identity", {})])
    found = run(fixed)
    assert found.shape == (24, 32, 3) and 0 < found.std() < PIXELS.std()


def test_an_output_of_one_channel_and_another_size_becomes_a_picture(tmp_path: Path) -> None:
    nodes = [("ReduceMean", {"axes": [1], "keepdims": 0})]
    path = network(tmp_path / "n.onnx", FREE, nodes)
    found = run(path, range="minmax")
    assert (found == found[..., :1]).all() and found.min() == 0 and found.max() == 255
    halves = network(
        tmp_path / "s.onnx", FREE, [("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]})]
    )
    assert run(halves).shape == (24, 32, 3)


def test_sides_that_must_be_multiples(tmp_path: Path) -> None:
    """A reshape into blocks of 16 fails on 24 pixels."""
    nodes: list[tuple[str, dict[str, Any]]] = [
        ("SpaceToDepth", {"blocksize": 16}),
        ("DepthToSpace", {"blocksize": 16}),
    ]
    path = network(tmp_path / "n.onnx", FREE, nodes)
    assert run(path, multiple=16).shape == (24, 32, 3)
    with pytest.raises(ConfigError, match=r"'n.onnx' does not run on 32x24 pixels.*give multiple"):
        run(path)


def test_onnx_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, said: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=said):
            run(path, **options)

    refused(str(tmp_path / "no.onnx"), "onnx: .*no.onnx' cannot be read: No such file")
    refused(str(tmp_path), "cannot be read")
    refused("a\0b", "cannot be read")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07not an onnx file")
    refused(str(tmp_path / "bad.onnx"), "'bad.onnx' is no ONNX network that onnxruntime reads")
    plane = network(tmp_path / "p.onnx", [1, 1, "h", "w"], [("Identity", {})])
    refused(plane, r"onnx: x tensor\(float\) \[1, 1, 'h', 'w'\] .* expected a network from one")
    whole = network(
        tmp_path / "i.onnx", FREE, [("Identity", {})], TensorProto.INT64, TensorProto.INT64
    )
    refused(whole, r"tensor\(int64\)")
    classes = network(tmp_path / "c.onnx", FREE, [("ReduceMean", {"axes": [2, 3], "keepdims": 0})])
    refused(classes, r"first output \[1, 3\] .* a map of one or three channels")
    negative = network(tmp_path / "m.onnx", FREE, [("Neg", {})])
    refused(negative, "gave values from -1 to .*, not from 0 to 1. Give range minmax")
    nan = network(tmp_path / "nan.onnx", FREE, [("Neg", {}), ("Log", {})])
    refused(nan, "gave NaN or infinity")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime.*'sdengine\[preprocess\]'"):
        run(negative)


def test_what_an_onnx_network_takes_is_bounded(tmp_path: Path) -> None:
    sizes = helper.make_tensor("s", TensorProto.INT64, [4], [1, 3, 1 << 15, 1 << 15])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["one"], axes=[2, 3]),
        helper.make_node("Expand", ["one", "s"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["most"], axes=[2, 3]),
        helper.make_node("Mul", ["x", "most"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, FREE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [sizes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "wide.onnx")
    with pytest.raises(ConfigError, match=r"'wide.onnx' does not run on 32x24 pixels"):
        run(str(tmp_path / "wide.onnx"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "b",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    loop = network(tmp_path / "loop.onnx", FREE, [("Loop", {"body": body})])
    with pytest.raises(ConfigError, match=r"'loop.onnx' has operator Loop, so that nothing"):
        run(loop)


@pytest.mark.parametrize("place", ["../secret.bin", "absolute"])
def test_no_weights_are_read_outside_of_the_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret.bin").write_bytes(np.ones(1, np.float32).tobytes())
    weight = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    where = place if place != "absolute" else str(tmp_path / "secret.bin")
    weight.external_data.add(key="location", value=where)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, FREE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"'m\.onnx' is no ONNX network"):
        run(str(tmp_path / "in" / "m.onnx"))
