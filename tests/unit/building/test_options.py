"""Build options: checked before any work, and listed once."""

from __future__ import annotations

import inspect
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import sdengine
from sdengine.building.options import BuildKeywords, BuildOptions
from sdengine.cli.build import build as build_command
from sdengine.compilers import COMPILERS
from sdengine.errors import ConfigError

# Of the command: what it calls an option, and those that it has in another unit or type.
COMMAND_NAMES = {
    "controls": "control",
    "gpus": "gpu",
    "workspace_bytes": "workspace",
    "measure_layers": "report",
}
COMMAND_ONLY = {
    "checkpoint",
    "output",
    "variant",
    "base",
    "vae",
    "tiny_vae",
    "family",
    "prediction_type",
    "scheduler",
    "as_json",
}
API_ONLY = {"progress", "cancel"}


def test_keywords_are_the_fields_of_the_options() -> None:
    assert get_type_hints(BuildKeywords) == get_type_hints(BuildOptions)


def test_help_shows_every_option_and_explains_it() -> None:
    shown = inspect.signature(sdengine.build).parameters
    assert [*shown] == ["checkpoint", "output", *(field.name for field in fields(BuildOptions))]
    for field in fields(BuildOptions):
        assert shown[field.name].default == field.default
        assert f"\n        {field.name}: " in (sdengine.build.__doc__ or "")


def test_the_command_has_every_option_with_the_same_default() -> None:
    command = dict(inspect.signature(build_command).parameters)
    for field in fields(BuildOptions):
        if field.name in API_ONLY:
            continue
        default = command.pop(COMMAND_NAMES.get(field.name, field.name)).default
        wanted = None if field.name == "gpus" else field.default
        assert default == wanted, field.name
    assert command.keys() == COMMAND_ONLY


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("target", "cuda", ", ".join(COMPILERS)),
        ("precision", "int8", "fp32, bf16, fp16"),
        ("batch", 0, "1 to 64"),
        ("resolutions", [], "sides, or pairs"),
        ("workspace_bytes", 0, "a positive integer"),
        ("workspace_bytes", 0.5, "a positive integer"),
        ("optimization_level", 6, "an integer from 0 to 5"),
        ("optimization_level", True, "an integer from 0 to 5"),
        ("gpus", ("sm89",), "target native is not built for one.*tensorrt-rtx and tensorrt are"),
        ("kernels", "triton", "for target tensorrt, which alone has plugins"),
        ("timing_cache", "/x", "only target tensorrt has one.*Leave '/x' out"),
    ],
)
def test_an_invalid_option_is_named_before_any_work(option: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{option}: .*{told}"):
        BuildOptions(**{option: value})


def test_only_layers_in_few_bits_are_measured() -> None:
    assert BuildOptions(measure_layers=True).measure_layers
    with pytest.raises(ConfigError, match=r"measure_layers: only .* native.* for torch in fp16"):
        BuildOptions(target="torch", measure_layers=True)
    with pytest.raises(ConfigError, match=r"measure_layers: .* for tensorrt-rtx in bf16"):
        rtx(gpus=["sm89"], precision="bf16", measure_layers=True)
    assert rtx(gpus=["sm89"], precision="fp8", measure_layers=True).measure_layers


def rtx(**options: Any) -> BuildOptions:
    return BuildOptions(target="tensorrt-rtx", **options)


def test_eight_bits_are_for_engines() -> None:
    accepted = (
        r"^precision: 'fp8' is not accepted; expected fp32, bf16, fp16\. .*for targets tensor"
    )
    for target in ("native", "openvino", "torch"):
        with pytest.raises(ConfigError, match=accepted):
            BuildOptions(target=target, precision="fp8")
    options = rtx(gpus=["sm89", "rtx5090"], precision="fp8")
    assert options.float_precision == "fp16"
    assert options.completed([(64, 64)], 1).compile_spec().precision == "fp16"
    assert rtx(gpus=["sm75"], precision="int8").float_precision == "fp16"
    assert rtx(gpus=["sm75"], precision="bf16").float_precision == "bf16"


def test_a_gpu_without_fp8_is_named_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"^precision: 'fp8' .*int8 for sm86 \(.*rtx3090.*sm89"):
        rtx(gpus=["rtx4090", "rtx3090"], precision="fp8")
    for name in ("sm75", "sm80"):
        with pytest.raises(ConfigError, match=f"fp16 or int8 for {name} "):
            rtx(gpus=[name], precision="fp8")


def test_prompts_of_a_calibration_are_read_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    for content, told in (
        (None, "cannot be read: No such file"),
        (b"\n \n", "has 0 prompts; expected 1 to 1000"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"a\n" * 1001, "has 1001 prompts"),
        (b"x" * (1 << 21), ".*in at most 1048576 bytes"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^calibration: .*prompts.txt {told}"):
            rtx(gpus=["sm89"], precision="int8", calibration=path)
    path.write_text(" a cat \n\nzwei Hunde\r\n", encoding="utf-8")
    given = rtx(gpus=["sm89"], precision="int8", calibration=path)
    assert given.prompts() == ("a cat", "zwei Hunde")
    with pytest.raises(ConfigError, match=r"^calibration: only engines in fp8 or"):
        rtx(gpus=["sm89"], calibration=path)


def test_the_compiler_is_told_what_was_asked_for() -> None:
    cancel = threading.Event()
    options = BuildOptions(
        target="tensorrt-rtx", resolutions=(64, (64, 64), (128, 64)), batch=2, precision="bf16",
        gpus=["sm89", "sm86"], cancel=cancel,
    )  # fmt: skip
    assert options.sizes == ((64, 64), (128, 64))
    assert options.capabilities == [86, 89]
    told: list[tuple[str, int, int]] = []
    spec = options.compile_spec(lambda *step: told.append(step))
    assert (spec.precision, spec.sizes, spec.batch) == ("bf16", options.sizes, 2)
    assert spec.cancel is cancel and spec.progress is not None
    spec.progress("unet", 1, 2)
    assert told == [("unet", 1, 2)]
