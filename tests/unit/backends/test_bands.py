"""The VAE in bands: the result of whole maps, in less memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import sdengine
from sdengine.adapters.weight_set import PRISTINE
from sdengine.backends.base import SessionOptions
from sdengine.backends.device_protocols import wraps_edges
from sdengine.backends.native import banded_module
from sdengine.backends.native.backend import NativeBackend, NativeModule
from sdengine.backends.native.banded_module import BandedModule, Moments
from sdengine.backends.native.bands import BandPlan, Pass, plan_bands
from sdengine.backends.native.graph import parse_graph
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.backends.native.prepare import prepare
from sdengine.backends.native.units import split_units
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.engine import Engine
from sdengine.errors import BundleError, ConfigError, DeviceError, OutOfMemoryError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.decoding import decode
from sdengine.pipeline.loaded_networks import WeightedNetworks

INPUTS = {"vae_decoder": ("latents", 4, 1), "vae_encoder": ("images", 3, 8)}
PROMPT: dict[str, Any] = {"prompt": "a star", "steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return open_bundle("demo")


def shapes_at(network: str, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of the input for a size in latent cells."""
    name, channels, pixels = INPUTS[network]
    return {name: (1, channels, height * pixels, width * pixels)}


def plan_at(
    bundle: Bundle,
    network: str,
    height: int,
    width: int,
    limit: int | None,
    wraps: str = "none",
) -> BandPlan:
    shapes = shapes_at(network, height, width)
    prepared = prepare(bundle, network, shapes, "bf16", chosen_isa(), wraps=wraps)
    plan = plan_bands(prepared, limit)
    assert plan is not None
    return plan


def whole_bytes(bundle: Bundle, network: str, height: int, width: int) -> int:
    shapes = shapes_at(network, height, width)
    return prepare(bundle, network, shapes, "bf16", chosen_isa()).program().arena_bytes


# A band less a row, a band, a band and a row; not square; the last band moved far back.
SIZES = [(16, 16), (8, 24), (9, 8), (33, 17), (40, 24)]


@pytest.mark.parametrize("network", INPUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wraps", ["none", "x", "y", "xy"])
def test_bands_give_what_whole_maps_do(
    demo: Bundle, network: str, precision: str, size: tuple[int, int], wraps: str
) -> None:
    shapes = shapes_at(network, *size)
    made = {}
    for tiles, kind in (("never", NativeModule), ("always", BandedModule)):
        options = SessionOptions(precision, 2, vae_tiles=tiles)
        session = NativeBackend().open(demo, options)
        assert wraps_edges(session)
        module = session.load_wrapping(network, shapes, PRISTINE, wraps)
        assert isinstance(module, kind)
        generator = np.random.default_rng(0)
        values = {n: generator.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
        ((_, found),) = module.run(values).items()
        made[tiles] = found.copy()
        assert module.outputs[0].shape == found.shape
        if tiles == "always":  # nothing is left of one run for the next
            again = module.run({n: v + 1 for n, v in values.items()})
            ((_, twice),) = module.run(values).items()
            assert next(iter(again.values())).shape == twice.shape
            np.testing.assert_array_equal(twice, found)
            module.close()
            with pytest.raises(DeviceError, match="closed"):
                module.run(values)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert_close("native bands", dtype, made["always"], made["never"])


def test_bands_of_few_rows_never_take_more_than_whole_maps(demo: Bundle) -> None:
    found = {}
    for height, width in ((8, 24), (12, 8), (16, 8)):
        shapes = shapes_at("vae_decoder", height, width)
        prepared = prepare(demo, "vae_decoder", shapes, "bf16", chosen_isa())
        found[height] = plan_bands(prepared, 1)
    assert found[8] is None and found[12] is None
    assert found[16] is not None
    assert found[16].planned_bytes < whole_bytes(demo, "vae_decoder", 16, 8)


@pytest.mark.parametrize("network", INPUTS)
@pytest.mark.parametrize("wraps", ["none", "y"])
def test_each_row_is_made_once_and_no_band_is_smaller(
    demo: Bundle, network: str, wraps: str
) -> None:
    for height in (16, 17, 31, 40, 64):
        plan = plan_at(demo, network, height, 8, None, wraps)
        passes = [run for run in plan.runs if isinstance(run, Pass)]
        assert passes
        for run in passes:
            rows = plan.sizes[run.unit.source].height
            reaches = run.unit.reaches()
            assert reaches is not None
            inside = all(w.first >= 0 and w.first + run.rows <= rows for w in run.windows)
            assert inside == (wraps == "none")
            reach, end = reaches[run.target], 0
            for window in run.windows:
                first, last = window.owned[run.target]
                assert first == end < last
                begin = window.first * reach.scale
                assert first >= begin + reach.margin or (first == 0 and wraps == "none")
                behind = begin + run.rows * reach.scale
                assert last <= behind - reach.margin or (last == behind and wraps == "none")
                end = last
            assert end == plan.sizes[run.target].height


def test_bands_take_less_memory_the_larger_the_picture(demo: Bundle) -> None:
    for network in INPUTS:
        shares = []
        for side in (64, 128, 256):
            plan = plan_at(demo, network, side, side, None)
            shares.append(plan.planned_bytes / whole_bytes(demo, network, side, side))
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] < 0.48  # of this network, whose maps are not much larger than pictures


@pytest.mark.parametrize("network", INPUTS)
@pytest.mark.parametrize("wraps", ["none", "xy"])
def test_a_run_takes_what_was_planned(
    demo: Bundle, network: str, wraps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of the kernels' arena and of arrays, counted before and behind each run of them."""
    taken = []

    class Counted(LaidOutNetwork):
        def write(self, inputs: Any) -> None:
            super().write(inputs)
            taken.append(tracemalloc.get_traced_memory()[0] + self.network.arena_bytes)

    monkeypatch.setattr(banded_module, "LaidOutNetwork", Counted)
    shapes = shapes_at(network, 64, 40)
    options = SessionOptions("bf16", 1, vae_tiles="always")
    session = NativeBackend().open(demo, options)
    assert wraps_edges(session)
    module = session.load_wrapping(network, shapes, PRISTINE, wraps)
    assert isinstance(module, BandedModule)
    values = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    tracemalloc.start()
    module.run(values)
    tracemalloc.stop()
    planned = module.plan.planned_bytes
    assert 0.8 * planned < max(taken) < 1.1 * planned
    assert max(taken) < 0.6 * whole_bytes(demo, network, 64, 40)


def test_a_limit_takes_as_few_bands_as_it_needs(demo: Bundle) -> None:
    least = plan_at(demo, "vae_decoder", 64, 64, None)
    whole = whole_bytes(demo, "vae_decoder", 64, 64)
    runs = []
    for limit in (whole, (whole + least.planned_bytes) // 2, least.planned_bytes):
        plan = plan_at(demo, "vae_decoder", 64, 64, limit)
        assert plan.planned_bytes <= limit
        runs.append(sum(isinstance(run, Pass) for run in plan.runs))
    assert runs == sorted(runs)
    assert runs[0] < runs[-1]


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal((100, 6)) + np.arange(6) * 50
    moments = Moments()
    for first, last in ((0, 3), (3, 60), (60, 100)):
        part = values[first:last]
        moments.add(last - first, np.stack([part.mean(0), part.var(0) * len(part)]))
    (step,) = [s for s in _norms() if s.groups == 2]
    scale, shift = np.split(moments.factors(step, np.ones(6), np.zeros(6))[0], 2)
    groups = values.reshape(100, 2, 3)
    deviation = np.sqrt(groups.var(axis=(0, 2)) + step.epsilon)
    np.testing.assert_allclose(scale, np.repeat(1 / deviation, 3), rtol=1e-6)
    expected = np.repeat(-groups.mean(axis=(0, 2)) / deviation, 3)
    np.testing.assert_allclose(shift, expected, rtol=1e-6)


def _norms() -> list[Any]:
    prepared = prepare(
        open_bundle("demo"), "vae_decoder", shapes_at("vae_decoder", 8, 8), "fp32", chosen_isa()
    )
    return [step for step in prepared.graph.steps if step.kind == "group_norm"][:1]


def test_a_unet_is_not_cut_and_attention_stays_whole(demo: Bundle) -> None:
    unet = demo.network("unet")
    shapes = {
        t.name: tuple(2 if n == "batch" else 16 if isinstance(n, str) else n for n in t.shape)
        for t in unet.inputs
        if "residual" not in t.name
    }
    shapes |= {
        t.name: (2, int(t.shape[1]), *(128 // int(str(n).split("/")[1]) for n in t.shape[2:]))
        for t in unet.inputs
        if "residual" in t.name
    }
    assert plan_bands(prepare(demo, "unet", shapes, "bf16", chosen_isa()), None) is None
    plan = plan_at(demo, "vae_decoder", 32, 32, None)
    units = split_units(plan.prepared.graph, plan.sizes)
    assert units is not None
    attending = [u for u in units if any(step.kind == "attention" for step in u.steps)]
    assert len(attending) == 1
    assert attending[0].reaches() is None


def test_files_hold_no_maps(demo: Bundle) -> None:
    (file,) = (f for f in demo.network("vae_decoder").files if f.endswith(".graph.json"))
    content = demo.path(file).read_bytes()
    parse_graph(content, "it")
    with pytest.raises(BundleError, match="layout 'map', which no file has"):
        parse_graph(content.replace(b'"layout": "image"', b'"layout": "map"'), "it")


def test_whole_requests_give_the_same_pictures(demo: Bundle, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (136, 200, 3), dtype=np.uint8)
    for given in ({"width": 192, "height": 256}, {"image": pixels, "strength": 0.5}):
        made = []
        for tiles in ("never", "always"):
            with sdengine.load("demo", precision="fp32", vae_tiles=tiles) as engine:
                made.append(engine.generate(**PROMPT, **given).arrays[0].astype(int))
        assert np.abs(made[0] - made[1]).max() <= 1
        assert made[0].std() > 5


def test_bands_are_taken_where_a_limit_asks_for_them() -> None:
    """What was refused fits, and the same limit refuses it where bands are not wanted."""
    size: dict[str, Any] = {"width": 320, "height": 320}
    precision = "bf16"
    with sdengine.load("demo", precision=precision, memory_bytes=10**9) as engine:
        needs = engine.session.budget._plan(320, 320)  # type: ignore[attr-defined]
        assert isinstance(loaded(engine), NativeModule)
    limit = needs.total_bytes(False) - 1_000_000
    with sdengine.load("demo", precision=precision, memory_bytes=limit) as engine:
        picture = engine.generate(**PROMPT, **size).arrays[0]
        decoder = loaded(engine)
        assert type(decoder) is BandedModule
        assert decoder.plan.planned_bytes < whole_bytes(engine.bundle, "vae_decoder", 40, 40)
        # Another request's size says nothing of this one's.
        assert engine.generate(**PROMPT).provenance.vae_bands == ()
    with (
        sdengine.load("demo", precision=precision, memory_bytes=limit, vae_tiles="never") as engine,
        pytest.raises(OutOfMemoryError, match="320x320 takes"),
    ):
        engine.generate(**PROMPT, **size)
    with sdengine.load("demo", precision=precision) as engine:
        plain = engine.generate(**PROMPT, **size).arrays[0]
    assert np.abs(plain.astype(int) - picture).mean() < 0.5


def test_bands_of_previews_leave_no_trace_in_the_result() -> None:
    size: dict[str, Any] = {"width": 256, "height": 192, "steps": 2}
    with sdengine.load("demo", precision="bf16", vae_tiles="always") as engine:
        plain = engine.generate(**{**PROMPT, **size})
        seen = engine.generate(**{**PROMPT, **size}, preview_every=1, preview="vae")
    assert plain.provenance.vae_bands
    assert (seen.provenance, seen.notes) == (plain.provenance, plain.notes)


def test_bands_of_a_result_are_computed_again_without_the_limit() -> None:
    size: dict[str, Any] = {"width": 320, "height": 320}
    with sdengine.load("demo", precision="bf16", memory_bytes=10**9) as engine:
        needs = engine.session.budget._plan(320, 320)  # type: ignore[attr-defined]
    limit = needs.total_bytes(False) - 1_000_000
    with sdengine.load("demo", precision="bf16", memory_bytes=limit) as engine:
        first = engine.generate(**PROMPT, **size)
        ((network, width, height, _),) = first.provenance.vae_bands
        assert (network, width, height) == ("vae_decoder", 320, 320)
        assert any("vae_decoder at 320x320 was computed in bands" in n for n in first.notes)
        count = loaded(engine).plan.runs
    for memory_bytes in (None, 10**9):
        with sdengine.load(
            "demo",
            precision="bf16",
            memory_bytes=memory_bytes,
            vae_bands=first.provenance.vae_bands,
        ) as engine:
            again = engine.generate(**PROMPT, **size)
            assert len(loaded(engine).plan.runs) == len(count)
        assert again.provenance == first.provenance
        assert np.array_equal(again.arrays[0], first.arrays[0])
    with sdengine.load("demo", precision="bf16") as engine:
        plain = engine.generate(**PROMPT, **size)
    assert plain.provenance.vae_bands == () and plain.notes == ()


def test_every_plan_is_found_again_by_what_it_takes(demo: Bundle) -> None:
    for network in INPUTS:
        whole = whole_bytes(demo, network, 48, 48)
        for limit in (None, *range(whole // 4, whole, whole // 8)):
            plan = plan_at(demo, network, 48, 48, limit)
            again = plan_at(demo, network, 48, 48, plan.planned_bytes)
            assert [run.unit for run in again.runs] == [run.unit for run in plan.runs]


def loaded(engine: Engine) -> Any:
    """Return the decoder for 320 pixels a side as the engine would have it."""
    engine.session.budget.check(320, 320)
    return engine._networks.get("vae_decoder", 1, 320, 320)


def test_the_encoder_counts_where_there_is_a_picture(demo: Bundle) -> None:
    with sdengine.load("demo", precision="bf16", memory_bytes=10**9) as engine:
        budget: Any = engine.session.budget
        without, with_it = (budget._plan(256, 256, more) for more in ((), ("vae_encoder",)))
        assert with_it.weight_bytes.keys() - without.weight_bytes.keys() == {"vae_encoder"}
        assert with_it.arena_bytes > without.arena_bytes
    limit = without.total_bytes(False) + 100_000
    with sdengine.load("demo", precision="bf16", memory_bytes=limit, vae_tiles="never") as engine:
        engine.session.budget.check(256, 256)
        with pytest.raises(OutOfMemoryError):
            engine.session.budget.check(256, 256, ["vae_encoder"])


def test_what_nothing_can_be_done_with_is_refused(tmp_path: Path) -> None:
    from support.tiny_bundle import make_tiny_bundle

    with pytest.raises(ConfigError, match=r"vae_tiles: 'yes'.*auto, always, never"):
        sdengine.load("demo", vae_tiles="yes")
    with pytest.raises(ConfigError, match=r"vae_bands: 5.*result's provenance"):
        sdengine.load("demo", vae_bands=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"vae_tiles: 'always'.*target openvino"):
        sdengine.load(make_tiny_bundle(tmp_path / "tiny"), vae_tiles="always")


def test_decoding_gives_one_picture_for_each(demo: Bundle) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 24, 16), dtype=np.float32)
    with sdengine.load("demo", vae_tiles="always") as engine:
        networks = WeightedNetworks(engine._networks)
        first, second = decode(latents, networks, StageClock())
        assert not np.array_equal(first, second)
        assert np.array_equal(decode(latents[1:], networks, StageClock())[0], second)
