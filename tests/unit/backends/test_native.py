"""The native backend's own decisions: buffers, methods, packed weights, what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import sdengine
from sdengine import _native
from sdengine.backends.base import SessionOptions
from sdengine.backends.native import packed_cache
from sdengine.backends.native.backend import NativeBackend
from sdengine.backends.native.graph import Graph, Port, parse_graph, read_graph, write_graph
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import choose_methods
from sdengine.backends.native.operations import OPERATIONS
from sdengine.backends.native.packing import interleave_gated, packed_kinds, plan_packing
from sdengine.backends.native.prepare import prepare
from sdengine.backends.native.projections import additive_inputs, without_inputs
from sdengine.backends.native.size_rules import Size
from sdengine.backends.native.step import Step
from sdengine.bundle.manifest import NetworkOptions
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BundleError, ConfigError, DeviceError, OutOfMemoryError
from sdengine.storage.tensor_file import map_tensors

SIZES = {"batch": 2, "sequence": 77, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("demo")


@pytest.fixture(scope="module")
def unet(bundle: Bundle) -> Graph:
    return read_graph(bundle.path("unet.graph.json"))


def shapes_of(bundle: Bundle, network: str = "unet") -> dict[str, tuple[int, ...]]:
    return resolve_shapes(network, bundle.network(network).inputs, SIZES)


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_graphs_are_written_as_they_are_read(bundle: Bundle, network: str, tmp_path: Path) -> None:
    path = bundle.path(f"{network}.graph.json")
    write_graph(read_graph(path), tmp_path / "a.graph.json")
    assert (tmp_path / "a.graph.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "version"),
        ('"kind": "sinusoid"', '"kind": "exec"', "kind"),
        ('"inputs": {"x": "timestep"}', '"inputs": {"x": "later"}', "no step before"),
        ('"value": "noise_pred"', '"value": "nothing"', "never made"),
        ('"kind": "conv"', '"kind": "winograd"', "kind that is not one of linear"),
        ('"inputs": {"x": "timestep"}', '"inputs": {}', "has the inputs .*expected x"),
        ('"inputs": {"x": "timestep"}', '"inputs": {"x": "timestep", "b": "sample"}', "inputs"),
        ('"weights": {"frequencies"', '"weights": {"sizes"', "weights .*expected frequencies"),
        ('"groups": 8', '"groups": 8, "heads": 2', "has heads, which its kind"),
        ('"groups": 8', '"groups": 8, "tile": 2', "has tile"),
        ('"groups": 8', '"groups": 0', "groups"),
        ('"groups": 8', '"groups": "8"', "groups"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(
    bundle: Bundle, old: str, new: str, message: str
) -> None:
    text = bundle.path("unet.graph.json").read_text().replace(old, new, 1)
    with pytest.raises(BundleError, match=f"made up.*{message}"):
        parse_graph(text.encode(), "made up")
    with pytest.raises(BundleError, match="not JSON"):
        parse_graph(b"[" * 100_000, "made up")


@pytest.mark.parametrize("kind", [k for k, row in OPERATIONS.items() if not row.is_view])
def test_every_operation_of_the_table_has_a_kernel(kind: str) -> None:
    record: dict[str, Any] = {"kind": kind, "name": "n"}
    record |= {part: {} for part in ("maps", "weights", "numbers", "words", "lists")}
    with pytest.raises(BundleError, match=rf"'n' \({kind}\) lacks the map"):
        _native.Network([record], {}, 1, "")
    with pytest.raises(BundleError, match="is of kind 'no such', which is unknown"):
        _native.Network([{**record, "kind": "no such"}], {}, 1, "")


def test_methods_follow_the_precision(bundle: Bundle, unet: Graph) -> None:
    sizes = map_sizes(unet, shapes_of(bundle))

    def kinds(precision: str, **options: Any) -> set[tuple[str, str, int]]:
        graph = choose_methods(unet, sizes, precision, **options)
        return {
            (s.kind, s.weight_kind, s.tile) for s in graph.steps if s.kind in ("linear", "conv")
        }

    assert kinds("fp32") == {
        ("linear", "float32", 0),
        ("conv", "float32", 0),
        ("conv", "float32", 4),
    }
    assert kinds("bf16") == {
        ("linear", "bfloat16", 0),
        ("conv", "bfloat16", 0),
        ("conv", "int16", 4),
    }
    int16 = {("linear", "int16", 0), ("conv", "int16", 0), ("conv", "int16", 4)}
    assert kinds("bf16", int16=True) == int16
    assert kinds("int8", int16=True) == {*int16, ("linear", "int8", 0)}


def test_queries_keys_and_values_are_one_product(bundle: Bundle, unet: Graph) -> None:
    graph = choose_methods(unet, map_sizes(unet, shapes_of(bundle)), "bf16")
    before = sum(step.kind == "linear" for step in unet.steps)
    attentions = sum(step.kind == "attention" for step in unet.steps)
    # Of self-attention three become one, of cross-attention keys and values do.
    assert sum(s.kind == "linear" for s in graph.steps) == before - attentions // 2 * (2 + 1)
    map_sizes(graph, shapes_of(bundle))


@pytest.mark.parametrize("side", [64, 96, 128])
def test_small_maps_of_many_channels_take_small_tiles(side: int) -> None:
    # The second lowest level of Stable Diffusion 1's U-Net, and the one above it.
    def conv(x: str, output: str, **options: Any) -> Step:
        return Step(
            kind="conv", name=output, inputs={"x": x}, output=output, weights={"weight": "w"},
            channels=1280, kernel=3, padding=1, **options,
        )  # fmt: skip

    steps = (conv("fine", "a"), conv("low", "b"), conv("low", "c", upsample=True))
    port = Port(name="sample", value="sample", rank=4, layout="image", dtype="float32", channels=4)
    graph = Graph(version=1, network="unet", inputs=(port,), outputs=(), steps=steps)
    low, fine = side // 4, side // 2
    sizes = {
        "sample": Size(2, side, side, 4), "fine": Size(2, fine, fine, 1280),
        "low": Size(2, low, low, 1280), "a": Size(2, fine, fine, 1280),
        "b": Size(2, low, low, 1280), "c": Size(2, fine, fine, 1280),
    }  # fmt: skip
    chosen = choose_methods(graph, sizes, "bf16")
    assert [step.tile for step in chosen.steps] == [4, 2, 4]


def test_weights_shrink_to_a_limit(bundle: Bundle, unet: Graph) -> None:
    sizes = map_sizes(unet, shapes_of(bundle))
    weights = map_tensors(bundle.path("unet.safetensors"))

    def size_and_tiles(limit: int | None) -> tuple[int, set[int]]:
        graph, packing = plan_packing(
            choose_methods(unet, sizes, "bf16", weight_bytes=limit), sizes, weights
        )
        total = sum(
            np.prod(shape) for kind, shape in packed_kinds(packing).values() if kind == "U8"
        )
        return int(total), {step.tile for step in graph.steps if step.kind == "conv"}

    most, tiles = size_and_tiles(None)
    assert tiles == {0, 4}
    less, tiles = size_and_tiles(most * 6 // 10)
    assert less <= most * 6 // 10 and 2 in tiles
    least, tiles = size_and_tiles(1)
    assert tiles == {0} and least < most / 2


def test_steps_that_a_build_found_loud_are_computed_plainly(bundle: Bundle, unet: Graph) -> None:
    loud = [s.output for s in unet.steps if s.kind in ("linear", "conv")][5:9]
    entry = bundle.manifest.networks["unet"]
    changed = entry.model_copy(update={"options": NetworkOptions(exact={"int8": loud})})
    networks = {**bundle.manifest.networks, "unet": changed}
    manifest = bundle.manifest.model_copy(update={"networks": networks})
    other = Bundle(manifest, bundle.root, "")
    graph = prepare(other, "unet", shapes_of(bundle), "int8", "avx2").graph
    kinds = {s.output: (s.weight_kind, s.tile) for s in graph.steps}
    assert {kinds[name] for name in loud if name in kinds} == {("int16", 0)}
    with pytest.raises(ValidationError, match="exact"):
        NetworkOptions.model_validate({"exact": {"int8": "all"}})


def test_a_tensor_of_another_shape_is_named(bundle: Bundle, unet: Graph) -> None:
    sizes = map_sizes(unet, shapes_of(bundle))
    weights = dict(map_tensors(bundle.path("unet.safetensors")))
    graph = choose_methods(unet, sizes, "bf16")
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :3]
    with pytest.raises(BundleError, match=r"conv_in.*'conv_in.weight' is \[64, 3, 3, 3\]"):
        plan_packing(graph, sizes, weights)
    del weights["conv_in.weight"]
    with pytest.raises(BundleError, match=r"'conv_in\.weight'; there is none"):
        plan_packing(graph, sizes, weights)


def test_gates_lie_beside_their_values() -> None:
    order = interleave_gated(np.arange(64))
    assert order.tolist() == [*range(16), *range(32, 48), *range(16, 32), *range(48, 64)]


def test_only_residuals_can_be_left_out(unet: Graph) -> None:
    names = additive_inputs(unet)
    assert names == {p.name for p in unet.inputs if "_residual" in p.name}
    smaller = without_inputs(unet, names)
    assert len(smaller.steps) == len(unet.steps) - len(names)
    assert [p.name for p in smaller.inputs] == ["sample", "timestep", "encoder_hidden_states"]


def test_wrong_inputs_and_closed_networks_are_refused(bundle: Bundle) -> None:
    shapes = shapes_of(bundle, "vae_decoder")
    module = NativeBackend().open(bundle, SessionOptions("fp32")).load("vae_decoder", shapes)
    with pytest.raises(ConfigError, match="'latents' is not given"):
        module.run({})
    with pytest.raises(ConfigError, match=r"'latents' is \[1\].*loaded for \[2, 4, 8, 8\]"):
        module.run({"latents": np.zeros(1, np.float32)})
    module.close()
    module.close()
    with pytest.raises(DeviceError, match="closed"):
        module.run({"latents": np.zeros(shapes["latents"], np.float32)})


def test_weights_give_way_to_a_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))

    def kept_bytes_and_image(limit: int | None) -> tuple[int, Any]:
        packed_cache.KEPT.clear()
        with sdengine.load("demo", precision="bf16", memory_bytes=limit) as engine:
            image = engine.generate("a large red circle on a blue background", steps=4, seed=7)
            kept = sum(file.size_bytes for file in packed_cache.KEPT.files())
        return kept, np.asarray(image.arrays[0], np.float64)

    free, expected = kept_bytes_and_image(None)
    tight, found = kept_bytes_and_image(50_000_000)
    assert tight < 50_000_000 < free
    assert 10 * np.log10(255**2 / np.mean((found - expected) ** 2)) > 40
    with pytest.raises(OutOfMemoryError, match=r"128x128 takes .*20 MB may be used"):
        sdengine.load("demo", precision="bf16", memory_bytes=20_000_000)
