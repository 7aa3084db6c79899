"""`sdengine preprocess`: a picture in, a hint out, and an option for each that there is."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdengine.cli.main import main
from sdengine.cli.preprocess import preprocess as command
from sdengine.request.preprocessors import PREPROCESSORS, preprocess


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_the_hint_is_the_functions(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("out.png")
    words = ["--low", "300", "--high", "900", "--resolution", "48"]
    assert main(["preprocess", "canny", str(source), "-o", str(out), *words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = preprocess(source, "canny", low=300, high=900, resolution=48)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)
    assert main(["preprocess", "invert", str(source), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{source.with_name('out-1.png')}\n"  # none is overwritten


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ["canny", "in.png", "--sigma", "3"],
            2,
            "sigma: 3.0 is not accepted; expected nothing with",
        ),
        (["canny", "in.png", "--low", "201"], 2, "low: 201.0"),
        (["canny", "none.png"], 2, "none.png' cannot be read"),
        (["hed", "in.png"], 2, "preprocessor: 'hed'"),
        (["inpaint", "in.png"], 2, "no picture holds"),
        (["onnx", "in.png", "--onnx", "n", "--mean", "1,b"], 2, "--mean: '1,b'"),
        (["onnx", "in.png", "--onnx", "n", "--mean", "1,2"], 2, "mean: (1.0, 2.0)"),
        (["onnx", "in.png", "--onnx", "n.onnx"], 2, "onnx: 'n.onnx' cannot be read"),
        (["canny", "in.png", "-o", "out.jpg"], 2, "output: 'out.jpg'"),
        (["canny", "in.png", "-o", "no/out.png"], 1, "folder 'no' does not exist"),
    ],
)
def test_errors_leave_nothing_behind(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(source.parent)
    output = [] if "-o" in words else ["-o", "out.png"]
    assert main(["preprocess", *words, *output]) == status
    assert said in capsys.readouterr().err
    assert [path.name for path in source.parent.iterdir()] == ["in.png"]


def test_a_photograph_is_no_depth_map(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", "depth", str(source), "-o", str(source.with_name("o.png"))]) == 0
    assert "warning: image: the picture has colours" in capsys.readouterr().err


def test_a_hint_of_one_colour_is_warned_of(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9), "gray").save(source)
    assert main(["preprocess", "canny", str(source), "-o", str(source.with_name("o.png"))]) == 0
    assert "warning: the hint has one colour" in capsys.readouterr().err


def test_every_option_of_every_preprocessor_is_one_of_the_command() -> None:
    known = {name for one in PREPROCESSORS.values() for name in one.options} - {"mask"}
    own = {"preprocessor", "image", "output", "overwrite"}
    assert set(inspect.signature(command).parameters) == known | own
    described = str(inspect.signature(command).parameters["preprocessor"].annotation)
    assert all(name in described for name in set(PREPROCESSORS) - {"inpaint"})
