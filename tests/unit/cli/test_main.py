from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sdengine.cli import checks
from sdengine.cli.main import SUBCOMMANDS, main
from sdengine.errors import BundleError, Cancelled, ConfigError


def fail_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name.startswith("sdengine.cli."):
            raise error
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_help_imports_no_subcommand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_import(monkeypatch, AssertionError("imported"))
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in SUBCOMMANDS:
        assert command.name in shown and command.summary in shown


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [("build", "torch", "build"), ("build", "onnx.helper", "build"), ("train", "torch", "train")],
)
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    package: str,
    extra: str,
) -> None:
    fail_import(monkeypatch, ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert main([command, "--help"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"pip install 'sdengine[{extra}]'" in captured.err


def test_broken_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_import(monkeypatch, ModuleNotFoundError("No module named 'numpy'", name="numpy"))
    assert main(["samplers"]) == 1
    assert "installation is incomplete: No module named 'numpy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("steps: 0"), 2),
        (BundleError("altered"), 1),
        (Cancelled("stopped"), 130),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 1),
    ],
)
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    def samplers() -> None:
        raise error

    monkeypatch.setattr("sdengine.cli.samplers.samplers", samplers)
    assert main(["samplers"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1


@pytest.mark.parametrize(
    "option",
    [
        ["--lora", "no.safetensors:0.5"],
        ["--hypernetwork", "no.pt"],
        ["--model", "no.safetensors"],
        ["--model", "no-folder"],
        ["--ip-adapter", "no.bin=picture.png"],
        ["--embedding", "no.pt"],
        ["--region", "no.png"],
    ],
)
def test_a_file_that_is_not_there_is_wrong_usage(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a red circle", *option]) == 2
    assert option[1][:5] in capsys.readouterr().err


def test_doctor_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    found = {check.name: check for check in checks.run_checks()}
    for name in ("openvino", "torch", "onnx", "onnxruntime", "tensorrt_rtx", "tensorrt", "triton"):
        assert not found[name].present and found[name].cost and found[name].remedy
    assert not found["openvino"].required and not found["torch"].required


def test_doctor_finds_what_is_there() -> None:
    found = {check.name: check for check in checks.run_checks()}
    assert found["python"].present and found["memory"].present
    assert found["openvino"].present == (find_spec("openvino") is not None)
    assert found["cpu"].found


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--cfg", "--guidance"),
        ("--cfg-scale", "--guidance"),
        ("--cfg_scale", "--guidance"),
        ("--scale", "--guidance"),
        ("--sampler-name", "--sampler"),
        ("--subseed", "--variation-seed"),
        ("--ddim-steps", "--steps"),
        ("--stepz", "--steps"),
    ],
)
def test_options_of_other_tools_are_recognised(
    option: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a", option, "7"]) == 2
    expected = f"error: No such option: {option}; did you mean {meant}. See"
    assert capsys.readouterr().err.startswith(expected)


def test_an_option_that_is_like_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--qqq", "7"]) == 2
    assert capsys.readouterr().err == (
        "error: No such option: --qqq. See `sdengine generate --help`.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a", "--bundle", "{}"),
        ("generate", "a", "--image", "{}.png"),
        ("generate", "a", "--lora", "{}.safetensors"),
        ("inspect", "{}"),
        ("verify", "{}"),
        ("build", "{}", "-o", "out"),
        ("build", "demo", "-o", "out", "--vae", "{}"),
        ("build", "demo", "-o", "out", "--control", "edges={}"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_wrong_usage(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    assert main([one.format(absent) for one in arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())
