"""Tiles of the U-Net: where they lie, how they are averaged, and what each of them reads."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdengine.bundle.architecture import UNetArchitecture
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import Cancelled
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.loaded_controls import load_steerings
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.steering import HINT
from sdengine.pipeline.tile_grid import TileGrid, starts
from sdengine.pipeline.tiled_unet import TiledUNet
from sdengine.pipeline.trajectory import Trajectory
from sdengine.pipeline.unet_inputs import MicroConditioning, UNetInputs
from sdengine.prompt.conditioning import Conditioning
from sdengine.request.request import Request
from sdengine.samplers import NoiseSchedule, SamplerOptions, build_program
from sdengine.samplers.noise import NoiseSource

RNG = np.random.default_rng(0)
CONDITIONING = Conditioning(RNG.standard_normal((3, 77, 5)).astype(np.float32), None)
# Two images, their unconditional rows first.
GUIDED = RowPlan((0, 0, 1, 2), np.ones((1, 2), np.float32), has_negative=True)
Array = NDArray[Any]


class UNet:
    """What it predicts of a cell depends on the cell's place and on all that it sees."""

    def __init__(self, rows: int, height: int, width: int, channels: int = 4) -> None:
        sample = TensorSpec("sample", (rows, channels, height, width), "float32")
        self.inputs = (
            sample,
            TensorSpec("timestep", (rows,), "float32"),
            TensorSpec("encoder_hidden_states", (rows, 77, 5), "float32"),
        )
        self.outputs = (TensorSpec("noise_pred", (rows, 4, height, width), "float32"),)
        self.read: list[Array] = []

    def run(self, inputs: Any) -> Any:
        self.read.append(np.array(inputs["sample"]))
        return {"noise_pred": predicted(inputs["sample"], inputs["encoder_hidden_states"])}

    def close(self) -> None: ...


def predicted(sample: Array, embeds: Array) -> Array:
    x, e = sample.astype(np.float64), embeds.astype(np.float64).mean(axis=(1, 2))
    place = np.arange(sample.shape[3]) / 10 + np.arange(sample.shape[2])[:, None] / 7
    seen = x[:, 4:].sum(axis=1, keepdims=True) + np.tanh(x.mean(axis=(1, 2, 3), keepdims=True))
    found: Array = np.sin(x[:, :4] + place) + seen + e[:, None, None, None]
    return found.astype(np.float32)


def unet_inputs(unet: Any, extra: Array | None = None) -> UNetInputs:
    rows, channels, *sides = unet.inputs[0].shape
    return UNetInputs(
        unet,
        UNetArchitecture(in_channels=channels, cross_attention_dim=5),
        CONDITIONING,
        (rows, 4, *sides),
        2.0,
        MicroConditioning.of(Request("")),
        extra,
    )


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("canvas", "tile", "overlap"),
    [((16, 32), (16, 16), 8), ((17, 45), (16, 16), 4), ((9, 40), (16, 12), 9), ((7, 5), (8, 8), 4)],
)
def test_weights_sum_to_one_and_every_tile_is_whole(
    canvas: tuple[int, int], tile: tuple[int, int], overlap: int
) -> None:
    grid = TileGrid(canvas, tile, overlap, 8)
    total, times = np.zeros(canvas), np.zeros(canvas, int)
    for one in grid:
        part = one.of(total)
        assert part.shape == one.weights.shape == tuple(map(min, tile, canvas))
        part += one.weights
        one.of(times)[...] += 1
        assert (one.weights >= 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert grid.count == len(grid.tiles) and (times >= 1).all()
    for one in grid:  # what no other tile covers is its own to the bit
        assert (one.weights[one.of(times) == 1] == 1).all()


def test_the_last_tile_is_shifted_inward() -> None:
    assert starts(45, 16, 12) == [0, 12, 24, 29]
    assert starts(16, 16, 8) == [0]
    assert starts(32, 16, 8) == [0, 8, 16]
    assert starts(17, 16, 8) == [0, 1]


def test_weights_are_those_of_the_reference() -> None:
    first, second = TileGrid((4, 12), (4, 8), 4, 8).tiles
    assert (first.columns, second.columns) == (slice(0, 8), slice(4, 12))
    bell = np.exp(-(((np.arange(8) - 3.5) / 8) ** 2) / 0.02)
    expected = bell[4:] / (bell[4:] + bell[:4])
    np.testing.assert_allclose(first.weights[0, 4:], expected, rtol=1e-6)
    np.testing.assert_allclose(second.weights[2, :4], 1 - expected, rtol=1e-5)


def test_one_evaluation_is_the_weighted_mean_of_the_tiles() -> None:
    grid, extra = TileGrid((9, 21), (8, 8), 4, 8), draw(1, 2, 9, 21)
    unet = UNet(4, 8, 8, channels=6)
    inputs = unet_inputs(unet, grid.tiles[0].of(extra))
    inputs.use(GUIDED)
    scaled, clock = draw(2, 4, 9, 21), StageClock()
    found = TiledUNet(grid, extra).predict(0, scaled, inputs, GUIDED, clock, None)
    weighted, weights = np.zeros((4, 4, 9, 21)), np.zeros((9, 21))
    bell = np.exp(-(((np.arange(8) - 3.5) / 8) ** 2) / 0.02)
    embeds = CONDITIONING.prompt_embeds[list(GUIDED.rows)]
    for top in (0, 1):
        for left in (0, 4, 8, 12, 13):
            box = np.s_[..., top : top + 8, left : left + 8]
            read = np.concatenate([scaled, np.repeat(extra, 2, axis=0)], axis=1)[box]
            weighted[box] += np.outer(bell, bell) * predicted(np.concatenate([read, read]), embeds)
            weights[box] += np.outer(bell, bell)
    np.testing.assert_allclose(found, weighted / weights, atol=2e-6)
    assert clock.timings().stages["unet"].calls == len(unet.read) == 10


def trajectory(tiles: TiledUNet | None, sides: tuple[int, int], sampler: str) -> list[Array]:
    options = SamplerOptions()
    schedule = NoiseSchedule.from_config(
        {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
        }
    )
    program = build_program(sampler, "karras", 4, noise_schedule=schedule, options=options)
    unet: Any = UNet(4, *sides)
    run = Trajectory(
        {4: unet_inputs(unet)}, program, [GUIDED] * 4, 2.0, guidance_rescale=0.5, tiles=tiles
    )
    canvas = sides if tiles is None else tiles.grid.canvas
    noise = NoiseSource([1, 2], (4, *canvas))
    return [np.array(one.latents) for one in run.run(noise, StageClock())]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_one_tile_is_no_tiling_bit_for_bit(sampler: str) -> None:
    one = TiledUNet(TileGrid((8, 12), (8, 12), 4, 8))
    plain = trajectory(None, (8, 12), sampler)
    for found, wanted in zip(trajectory(one, (8, 12), sampler), plain, strict=True):
        np.testing.assert_array_equal(found, wanted)
    more = trajectory(TiledUNet(TileGrid((8, 12), (8, 8), 4, 8)), (8, 8), sampler)
    assert more[-1].shape == plain[-1].shape and not np.array_equal(more[-1], plain[-1])


def test_a_tile_is_the_last_when_the_caller_cancels() -> None:
    cancel = threading.Event()

    class Cancelling(UNet):
        def run(self, inputs: Any) -> Any:
            cancel.set()
            return super().run(inputs)

    unet = Cancelling(4, 8, 8)
    inputs = unet_inputs(unet)
    inputs.use(GUIDED)
    with pytest.raises(Cancelled):
        TiledUNet(TileGrid((8, 32), (8, 8), 4, 8)).predict(
            0, draw(2, 4, 8, 32), inputs, GUIDED, StageClock(), cancel
        )
    assert len(unet.read) == 1


class Control:
    """A control that keeps what it read."""

    def __init__(self) -> None:
        self.inputs = (
            TensorSpec("sample", (4, 4, 8, 8), "float32"),
            TensorSpec(HINT, (4, 3, 64, 64), "float32"),
        )
        self.outputs = ()
        self.read: list[dict[str, Array]] = []

    def run(self, inputs: Any) -> Any:
        self.read.append({name: np.array(value) for name, value in inputs.items()})
        return {}


def test_controls_read_each_tiles_part() -> None:
    grid, hint, control = TileGrid((8, 12), (8, 8), 4, 8), draw(1, 3, 64, 96), Control()
    asked = []

    def get(network: str, rows: int, height: int, width: int, **_: Any) -> Any:
        asked.append((network, rows, height, width))
        return control

    planned = SimpleNamespace(
        network="control_a",
        active={0},
        runs_once=False,
        is_conditional_only=False,
        weights=(),
        architecture=SimpleNamespace(control_types=0, global_pool=False),
    )
    program = SimpleNamespace(step=np.array([0]))
    plan: Any = SimpleNamespace(
        controls=(planned,),
        tiles=grid,
        unet_size=grid.pixels,
        unet_wraps="none",
        is_shifted=False,
        program=program,
        request=Request(""),
    )
    prepared: Any = SimpleNamespace(conditioning=CONDITIONING, hints=(hint,), features={})
    networks: Any = SimpleNamespace(get=get)
    steerings = load_steerings(plan, prepared, [GUIDED], networks, StageClock())
    assert asked == [("control_a", 4, 64, 64)] and len(steerings) == 2
    unet, scaled = UNet(4, 8, 8), draw(2, 4, 8, 12)
    inputs = unet_inputs(unet)
    inputs.use(GUIDED)
    for _ in range(2):
        TiledUNet(grid, None, steerings).predict(0, scaled, inputs, GUIDED, StageClock(), None)
    for index, read in enumerate(control.read):
        left = 4 * (index % 2)
        np.testing.assert_array_equal(read["sample"], unet.read[index])
        np.testing.assert_array_equal(read["sample"][:2], scaled[..., left : left + 8])
        part = hint[..., 8 * left : 8 * (left + 8)]
        np.testing.assert_array_equal(read[HINT], np.repeat(part, 4, axis=0))


def test_each_image_is_read_where_it_was_shifted_to() -> None:
    grid, hint, extra = TileGrid((8, 12), (8, 8), 4, 8), draw(1, 3, 64, 96), draw(1, 2, 8, 12)
    moves = [(0, 4), (2, 10)]
    shown: list[Any] = []
    shifts: Any = SimpleNamespace(at=lambda k: moves)
    unet = UNet(4, 8, 8, channels=6)
    inputs = unet_inputs(unet, grid.tiles[0].of(extra))
    inputs.use(GUIDED)
    steerings: Any = [
        SimpleNamespace(show=shown.append, arrays=lambda k, inputs, plan, clock: inputs.arrays)
    ] * 2
    scaled = draw(2, 4, 8, 12)
    found = TiledUNet(grid, extra, steerings, [hint], shifts).predict(
        0, scaled, inputs, GUIDED, StageClock(), None
    )
    whole = np.zeros((4, 4, 8, 12))
    for tile, read, ((part,),) in zip(grid, unet.read, zip(shown, strict=True), strict=True):
        for row in range(4):
            down, right = moves[row % 2]
            moved = np.roll(np.concatenate([scaled[row % 2], extra[0]]), (down, right), (1, 2))
            np.testing.assert_array_equal(read[row], tile.of(moved))
        for image, (down, right) in enumerate(moves):
            moved = np.roll(hint[0], (8 * down, 8 * right), (1, 2))
            np.testing.assert_array_equal(part[image], tile.of(moved, 8))
        embeds = CONDITIONING.prompt_embeds[list(GUIDED.rows)]
        tile.of(whole)[...] += tile.weights * predicted(read, embeds)
    for row in range(4):
        down, right = moves[row % 2]
        np.testing.assert_allclose(
            found[row], np.roll(whole[row], (-down, -right), (1, 2)), atol=2e-6
        )
