"""When controls of a request run, what they read and how their residuals count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sdengine.bundle.controls import ControlArchitecture
from sdengine.inputs.mask import Box
from sdengine.pipeline.control_plan import (
    PlannedControl,
    active_evaluations,
    plan_controls,
    read_hint,
    residual_weights,
)
from sdengine.pipeline.inpainting import Inpainting
from sdengine.pipeline.picture_start import StartingPicture, picture_warnings
from sdengine.request.control import Control
from sdengine.request.request import Request

BLACK = np.zeros((8, 8, 3), np.uint8)


def architecture(residuals: int = 13, **changes: Any) -> ControlArchitecture:
    return ControlArchitecture(
        kind="controlnet", residuals=residuals, source="a", sha256="0" * 64, **changes
    )


def control(**fields: Any) -> Control:
    return Control(**{"network": "canny", "image": BLACK, **fields})


def test_the_middle_of_ten_evaluations() -> None:
    assert sorted(active_evaluations(control(start=0.3, end=0.7), 10)) == [3, 4, 5, 6]
    assert sorted(active_evaluations(control(end=0.5), 20)) == list(range(10))
    assert sorted(active_evaluations(control(), 3)) == [0, 1, 2]
    assert active_evaluations(control(start=0.52, end=0.58), 10) == set()


@pytest.mark.parametrize("count", [1, 7, 10, 19, 50])
def test_evaluations_are_those_that_diffusers_keeps(count: int) -> None:
    ends = [0.0, 0.1, 0.25, 0.3, 1 / 3, 0.7, 0.9, 1.0]
    for start in ends:
        for end in (one for one in ends if one > start):
            kept = [
                i for i in range(count) if 1.0 - float(i / count < start or (i + 1) / count > end)
            ]
            assert sorted(active_evaluations(control(start=start, end=end), count)) == kept


def test_weights_of_the_modes() -> None:
    sd = architecture()
    assert residual_weights(control(scale=0.5), sd) == (0.5,) * 13
    soft = residual_weights(control(mode="prompt"), sd)
    assert soft == residual_weights(control(mode="control"), sd)
    assert soft == tuple(0.825 ** (12 - i) for i in range(13))
    guess = residual_weights(control(mode="guess"), sd)
    shown = [round(weight, 4) for weight in guess]
    assert shown[:3] == [0.1, 0.1212, 0.1468] and shown[-2:] == [0.8254, 1.0]
    assert 0.004 < abs(guess[0] / soft[0] - 1) < 0.007  # as far apart as the two are


def test_weights_of_sdxl_differ_grossly() -> None:
    sdxl = architecture(10)
    assert round(residual_weights(control(mode="prompt"), sdxl)[-1], 2) == 0.56
    assert residual_weights(control(mode="guess"), sdxl)[-1] == 1.0
    assert residual_weights(control(mode="guess"), sdxl)[0] == pytest.approx(0.1)


def test_own_weights_take_the_place_of_the_modes() -> None:
    own = [i / 13 for i in range(13)]
    for mode in ("balanced", "prompt", "control", "guess"):
        made = control(mode=mode, layer_weights=own, scale=2)
        assert residual_weights(made, architecture()) == tuple(2 * one for one in own)


def test_a_mode_that_own_weights_leave_nothing_of_is_told() -> None:
    manifest: Any = SimpleNamespace(
        architecture=SimpleNamespace(controls={"canny": architecture()})
    )
    for mode, told in (("prompt", True), ("control", False), ("guess", False), ("balanced", False)):
        asked_for = control(mode=mode, layer_weights=[1.0] * 13)
        _, said = plan_controls(Request("", controls=[asked_for]), manifest, 4)  # type: ignore[arg-type]
        assert [("mode prompt has no effect" in line) for line in said] == [True] * told


def test_the_shuffle_model_keeps_its_scale_and_the_conditional_half() -> None:
    pooled = architecture(global_pool=True)
    assert residual_weights(control(mode="guess"), pooled) == (1.0,) * 13
    assert PlannedControl(control(), pooled, frozenset(), ()).is_conditional_only
    assert not PlannedControl(control(mode="prompt"), architecture(), frozenset(), ())\
        .is_conditional_only  # fmt: skip


def asked(**fields: Any) -> Request:
    return Request("", **fields)


def hint_of(made: Control, request: Request, size: tuple[int, int], **more: Any) -> Any:
    planned = PlannedControl(made, architecture(**more.pop("of", {})), frozenset({0}), ())
    return read_hint(planned, request, size, more.get("picture"))


def test_colours_are_rgb_from_nought_to_one() -> None:
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :, 0], picture[:, :, 2] = 255, 51
    found = hint_of(control(image=picture), Request("", width=16, height=8), (16, 8))
    assert found.shape == (1, 3, 8, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, :, 0, 0], [1.0, 0.0, 0.2])
    grey = hint_of(
        control(image=picture), Request("", width=16, height=8), (16, 8),
        of={"conditioning_channels": 1},
    )  # fmt: skip
    np.testing.assert_allclose(grey[0, :, 0, 0], [0.299 + 0.2 * 0.114], rtol=1e-6)


def test_transparent_pixels_are_black() -> None:
    picture = np.full((8, 8, 4), 255, np.uint8)
    picture[:4, :, 3] = 0
    found = hint_of(control(image=picture), Request("", width=8, height=8), (8, 8))
    assert (found[0, :, :4] == 0).all() and (found[0, :, 4:] == 1).all()


def test_a_padded_computation_repeats_the_last_row_and_column() -> None:
    picture = np.arange(10 * 12 * 3).astype(np.uint8).reshape(10, 12, 3)
    request = asked(width=12, height=10, image=np.zeros((10, 12, 3), np.uint8))
    found = hint_of(control(image=picture), request, (16, 16))
    inside = picture.transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(found[0, :, :10, :12], inside)
    np.testing.assert_array_equal(found[0, :, 15, :12], inside[:, 9])
    np.testing.assert_array_equal(found[0, :, :10, 15], inside[:, :, 11])


def starting(box: Box | None, free: Any, original: Any) -> StartingPicture:
    none = np.zeros((1, 4, 1, 1), np.float32)
    weights = free.astype(np.float32)
    inpainting = Inpainting(weights, weights, free, weights[None, None], original, box, False)
    return StartingPicture(original, none, none, inpainting)


def test_only_masked_crops_the_control_picture_with_the_same_box() -> None:
    """A box of the original's right half, enlarged: the control picture is of other size."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 16:24] = 255  # the left half of the box
    box = Box(left=32, top=0, right=64, bottom=32)
    original = np.zeros((32, 64, 3), np.uint8)
    request = asked(width=64, height=64, image=original, inpaint_area="masked",
                      mask=np.full((32, 64), 255, np.uint8))  # fmt: skip
    whole = starting(box, np.ones((64, 64), bool), original)
    found = hint_of(control(image=picture), request, (64, 64), picture=whole)
    assert (found[..., :32] == 1).all() and (found[..., 32:] == 0).all()


@pytest.mark.parametrize(("width", "is_told"), [(64, True), (96, False)])
def test_a_control_of_the_old_size_is_told_where_pictures_grow(width: int, is_told: bool) -> None:
    request = asked(
        image=np.zeros((64, 64, 3), np.uint8),
        width=96,
        height=64,
        outpaint={"left": 32},
        controls=[control(image=np.zeros((64, width, 3), np.uint8))],
    )
    lines = picture_warnings(request)
    assert len(lines) == is_told
    assert all("64x64, and is resized to the enlarged one, 96x64" in line for line in lines)


def test_a_control_that_takes_a_photograph_for_depth_is_told() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    for picture, preprocess, count in ((red, "depth", 1), (red, "canny", 0), (BLACK, "depth", 0)):
        made = control(image=picture, preprocess=preprocess)
        lines = picture_warnings(Request("a", controls=[made]))  # type: ignore[arg-type]
        assert len(lines) == count
        assert all(line.startswith("control canny: the picture has colours") for line in lines)


def test_masked_pixels_are_minus_one() -> None:
    free = np.zeros((8, 8), bool)
    free[2:4] = True
    original = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    request = asked(width=8, height=8, image=original, mask=mask)
    white = np.full((8, 8, 3), 255, np.uint8)
    made, start = control(image=white, masked=True), starting(None, free, original)
    found = hint_of(made, request, (8, 8), picture=start)
    assert (found[:, :, 2:4] == -1).all() and (found[:, :, 4:] == 1).all()
    plain = hint_of(control(image=white), request, (8, 8), picture=start)
    assert (plain == 1).all()
