"""Units of the ControlNet extension as controls: names, numbers, older names, and refusals."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdengine.bundle.controls import ControlArchitecture
from sdengine.errors import ConfigError
from sdengine.request.control import Control
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.payload import InBase64
from sdengine.serving.web_ui.controlnet_modules import MODULES, find_module
from sdengine.serving.web_ui.controlnet_units import controls_of, detected_map
from sdengine.serving.web_ui.fields import Txt2Img, checked

SHA256 = "0123456789abcdef" * 4


def architecture(**options: Any) -> ControlArchitecture:
    return ControlArchitecture(
        **{"kind": "controlnet", "residuals": 13, "source": "x", "sha256": SHA256, **options}
    )


class Bundle:
    """What controls_of asks of an engine."""

    def __init__(self, controls: dict[str, ControlArchitecture]) -> None:
        self.bundle = self.manifest = self.architecture = self
        self.controls = controls


KNOWN = {"edges": architecture(), "union": architecture(kind="controlnet_union", control_types=8)}


def png(color: Any = (255, 255, 255), size: tuple[int, int] = (32, 24)) -> str:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def read(
    *units: Any, name: str = "ControlNet", image: bytes | None = None, **fields: Any
) -> tuple[list[Control], list[bool], list[str]]:
    found = checked(Txt2Img, {"alwayson_scripts": {name: {"args": list(units)}}, **fields})
    warnings: list[str] = []
    bundle: Any = Bundle(KNOWN)
    controls, shows = controls_of(found, bundle, InBase64(1 << 20), image, warnings)
    return controls, shows, warnings


def unit(**fields: Any) -> dict[str, Any]:
    return {"enabled": True, "model": "edges", "image": png(), **fields}


def test_a_unit_as_a_client_sends_it() -> None:
    (control,), shows, warnings = read(
        unit(
            module="canny",
            model="edges [01234567]",
            weight=0.5,
            resize_mode="Resize and Fill",
            low_vram=False,
            processor_res=512,
            threshold_a=64,
            threshold_b=64,
            guidance_start=0.1,
            guidance_end=0.9,
            control_mode="My prompt is more important",
            pixel_perfect=False,
            hr_option="Both",
            mask=None,
        )
    )
    assert control.network == "edges" and control.scale == 0.5
    assert (control.start, control.end) == (0.1, 0.9)
    assert (control.mode, control.resize) == ("prompt", "fill")
    assert dict(control.preprocess_options) == {"low": 64, "high": 64, "resolution": 512}
    assert shows == [True] and warnings == []


def test_defaults_of_a_unit() -> None:
    (control,), _, _ = read(unit())
    assert (control.mode, control.resize, control.preprocess) == ("balanced", "crop", "none")
    assert (control.scale, control.start, control.end) == (1, 0, 1)
    assert control.preprocess_options == ()


@pytest.mark.parametrize("name", ["controlnet", "CONTROLNET", "ControlNet"])
def test_empty_arguments_and_scripts_in_any_case(name: str) -> None:
    assert read(name=name) == ([], [], [])
    assert read(False, name=name) == ([], [], [])


def test_units_that_are_not_enabled_do_nothing_and_say_so() -> None:
    assert read({"model": "edges", "image": png()})[2] == [
        "controlnet[0]: it is not enabled, and has no effect."
    ]
    assert read(unit(enabled=False)) == ([], [], [])
    assert read({"enabled": False, "module": "nobody knows"}) == ([], [], [])


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (0, "balanced"),
        (1, "prompt"),
        ("2", "control"),
        ("Balanced", "balanced"),
        ("ControlNet is more important", "control"),
    ],
)
def test_control_modes(value: Any, mode: str) -> None:
    assert read(unit(control_mode=value))[0][0].mode == mode


@pytest.mark.parametrize(
    ("value", "resize"),
    [
        (0, "stretch"),
        (1, "crop"),
        (2, "fill"),
        ("Just Resize", "stretch"),
        ("Scale to Fit (Inner Fit)", "crop"),
        ("Envelope (Outer Fit)", "fill"),
    ],
)
def test_resize_modes(value: Any, resize: str) -> None:
    assert read(unit(resize_mode=value))[0][0].resize == resize


def test_older_names() -> None:
    given = {"enabled": True, "model": "edges", "input_image": png(), "guidance": 0.5}
    (control,), _, _ = read({**given, "lowvram": True, "mask_image": None})
    assert control.end == 0.5
    with pytest.raises(ConfigError, match=r"controlnet\[0\].mask"):
        read({**given, "mask_image": png()})


def test_pictures_of_units() -> None:
    red = base64.b64decode(png((255, 0, 0)))
    for empty in ("", None):
        (control,), _, _ = read(unit(image=empty), image=red)
        assert control.image.pixels[0, 0].tolist() == [255, 0, 0]
        with pytest.raises(ConfigError, match=r"controlnet\[1\].image: it is missing"):
            read(unit(), unit(image=empty))
    for given in (
        {"image": png((0, 255, 0)), "mask": None},
        "data:image/png;base64," + png((0, 255, 0)),
    ):
        assert read(unit(image=given))[0][0].image.pixels[0, 0].tolist() == [0, 255, 0]


def test_thresholds_out_of_range_are_the_defaults() -> None:
    canny = find_module("module", "Canny")
    assert canny.options(-1, -1, 1000, pixel_perfect=False) == {
        "low": 100, "high": 200, "resolution": 512,
    }  # fmt: skip
    assert canny.options(300, 200, 100, pixel_perfect=True) == {"low": 100, "high": 200}
    xdog = find_module("module", "scribble_xdog")
    assert xdog.options(256, 64, 0, pixel_perfect=False) == {"level": 64, "resolution": 256}
    assert (
        find_module("module", "invert (from white bg & black line)").options(
            512, -1, -1, pixel_perfect=False
        )
        == {}
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_module_makes_a_control(name: str) -> None:
    (control,), _, _ = read(unit(module=name))
    assert control.masked == name.startswith("inpaint")
    made = detected_map(control, 48, 32)
    assert made.shape == (32, 48, 3) and made.dtype == np.uint8


def test_kinds_of_union_networks() -> None:
    given = {"model": "union"}
    assert read(unit(**given, module="canny"))[0][0].control_type == "canny"
    assert read(unit(**given, union_control_type="OpenPose"))[0][0].control_type == "openpose"
    assert read(unit(**given, union_control_type="depth"))[0][0].control_type == "depth"
    assert read(unit(module="canny"))[0][0].control_type is None
    with pytest.raises(ConfigError, match="union_control_type"):
        read(unit(**given, union_control_type="smell"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("module", "openpose_full"),
        ("model", "None"),
        ("model", "edges [ffffffff]"),
        ("weight", "much"),
        ("control_mode", 3),
        ("control_mode", "Mine"),
        ("resize_mode", -1),
        ("image", "http://localhost/a.png"),
        ("image", "not base64"),
        ("effective_region_mask", png()),
        ("ipadapter_input", ["x"]),
        ("input_mode", "batch"),
        ("inpaint_crop_input_image", False),
    ],
)
def test_refusals_name_unit_and_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^controlnet\[1\]\.{field}"):
        read(unit(), unit(**{field: value}))


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match=r"controlnet\[0\].hr_option"):
        read(unit(hr_option="Low res only"), enable_hr=True)
    assert read(unit(hr_option="Low res only"))[0]
    with pytest.raises(ConfigError, match=r"control\.start"):
        read(unit(guidance_start=0.8, guidance_end=0.2))
    with pytest.raises(ConfigError, match=r"alwayson_scripts\.controlnet"):
        read(*[unit(enabled=False)] * 17)
    with pytest.raises(ConfigError, match=r"controlnet\[0\]"):
        read("a unit")
    with pytest.raises(HTTPError, match="'ADetailer' not found") as caught:
        read(name="ADetailer")
    assert caught.value.status == 422
