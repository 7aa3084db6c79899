"""Weights that are swapped on loaded networks: the bits of a fresh load, and no trace of others."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from support.adapters import draw, make_demo_lora, write

import sdengine
from sdengine import _native
from sdengine.adapters.changes import merged
from sdengine.adapters.library import AdapterLibrary
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Session, SessionOptions
from sdengine.backends.native import kept_weights, packed_cache
from sdengine.backends.native.backend import NativeBackend, NativeModule
from sdengine.backends.native.packed_cache import PackedWeights
from sdengine.backends.native.packing import pack, sources_of
from sdengine.backends.native.prepare import Prepared, prepare
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import AdapterError
from sdengine.inputs.loras import Strength
from sdengine.pipeline.loaded_networks import Networks
from sdengine.request.weight_fields import Loras

Array = NDArray[Any]
BUNDLE = open_bundle("demo")
NETWORKS = ("text_encoder", "unet")
FIELDS: dict[str, Any] = {"seed": 3, "steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [make_demo_lora(folder / f"{seed}.safetensors", seed) for seed in (1, 5000)]


def weight_set(loras: Mapping[Any, Strength]) -> WeightSet:
    return AdapterLibrary(BUNDLE).weight_set(Loras()("loras", dict(loras)))


def shapes_of(network: str, side: int = 64) -> dict[str, tuple[int, ...]]:
    sides = {"batch": 1, "width": side, "height": side, "sequence": 77}
    return resolve_shapes(network, BUNDLE.network(network).inputs, sides)


def load(session: Session, network: str, weights: WeightSet, side: int = 64) -> NativeModule:
    module = session.load(network, shapes_of(network, side), weights)
    assert isinstance(module, NativeModule)
    return module


def output(module: NativeModule) -> list[bytes]:
    generator = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for spec in module.inputs:
        shape = [int(n) for n in spec.shape]
        if spec.name in module.zero_unless_given():
            continue
        if spec.dtype == "int64":
            inputs[spec.name] = np.full(shape, 3, np.int64)
        else:
            inputs[spec.name] = generator.standard_normal(shape, dtype=np.float32)
    return [array.tobytes() for array in module.run(inputs).values()]


def packed_bytes(packed: PackedWeights) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in packed.tensors.items()}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes sessions from now on share nothing with those before."""

    def forget() -> None:
        monkeypatch.setattr(packed_cache, "_open", WeakValueDictionary())

    return forget


@pytest.mark.parametrize(
    ("precision", "isa"), [("fp32", ""), ("bf16", ""), ("int8", ""), ("bf16", "portable")]
)
def test_a_swap_is_a_fresh_load(
    files: list[Path],
    precision: str,
    isa: str,
    alone: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDENGINE_ISA", isa)
    one, two = files
    sets = {
        "none": PRISTINE,
        "a": weight_set({one: 0.7}),
        "b": weight_set({two: (-0.4, 1.3)}),
        "ab": weight_set({one: 0.7, two: (-0.4, 1.3)}),
        "ba": weight_set({two: (-0.4, 1.3), one: 0.7}),
        "a, 0 b": weight_set({two: 0.0, one: 0.7}),
    }
    options = SessionOptions(precision, low_memory=True)  # under which nothing is kept
    is_plain = (precision, isa) == ("fp32", "")
    if not is_plain:  # what follows from the order of merging alone is the same in all
        sets = {name: sets[name] for name in ("none", "a", "ab")}
    for network in NETWORKS if is_plain else ("unet",):
        wanted: dict[str, Any] = {}
        for name, weights in sets.items():
            alone()
            module = load(NativeBackend().open(BUNDLE, options), network, weights)
            wanted[name] = output(module), packed_bytes(module._packed)
        alone()
        if is_plain:
            assert wanted["ab"] == wanted["ba"] and wanted["a"] == wanted["a, 0 b"]
        outputs = {tuple(wanted[n][0]) for n in ("none", "a", "b", "ab") if n in sets}
        assert len(outputs) == (4 if is_plain else 3)
        session = NativeBackend().open(BUNDLE, options)
        module, other_size = (load(session, network, PRISTINE, side) for side in (64, 128))
        large = output(other_size)
        for name in [n for n in ("a", "b", "a", "ab", "none", "ba") if n in sets]:
            module = load(session, network, sets[name])
            assert (output(module), packed_bytes(module._packed)) == wanted[name], name
            assert output(other_size) == large  # which keeps what it was loaded with
        swapped = output(load(session, network, sets["a"], 128))
        alone()
        fresh = load(NativeBackend().open(BUNDLE, options), network, sets["a"], 128)
        assert swapped == output(fresh)


def prepared_of(network: str, precision: str = "bf16") -> Prepared:
    return prepare(BUNDLE, network, shapes_of(network), precision, _native.instruction_sets()[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_only_what_changes_is_laid_out_again(files: list[Path], network: str) -> None:
    it = prepared_of(network)
    weights = weight_set({files[0]: 0.7, files[1]: 0.2})
    changes = weights.changes(network)
    base = packed_cache.packed_weights(network, it.source, it.packing, it.weights)
    told: list[int] = []
    found = packed_cache.merged_weights(
        network, it.packing, base, it.source, it.packing, it.weights, weights, told.append
    )
    assert told == [found.own_bytes]
    own = {n for n, array in found.tensors.items() if array is not base.tensors[n]}
    read = {n: {*sources_of(packed)} for packed in it.packing for n in packed.kinds()}
    assert own == {n for n, sources in read.items() if sources & changes.keys()}
    assert any(len(read[n]) > 1 for n in own) and len(own) < len(read)  # joined projections too
    assert found.own_bytes == sum(found.tensors[n].nbytes for n in own)
    # As if the merged weights were the bundle's.
    plain = {n: merged(w, changes.get(n, ())) for n, w in it.weights.items()}
    wanted = {n: array.tobytes() for n, array in pack(it.packing, plain)}
    assert packed_bytes(found) == wanted


def test_constants_of_a_graph_are_swapped_too() -> None:
    """The table of positions, which no operation reads where it lies."""
    name = "text_model.embeddings.position_embedding.weight"
    it = prepared_of("text_encoder", "fp32")
    session = NativeBackend().open(BUNDLE, SessionOptions("fp32"))
    module = load(session, "text_encoder", PRISTINE)
    plain = output(module)
    constant = next(p.name for p in it.packing if sources_of(p) == [name])
    tensors = module._packed.tensors
    other = {**tensors, constant: tensors[constant] * np.float32(2)}
    assert module._laid_out is not None
    changed = NativeModule("text_encoder", module._laid_out, PackedWeights(other))
    assert output(changed) != plain
    assert output(module) == plain


def test_two_hundred_swaps_take_no_more_memory(files: list[Path]) -> None:
    session = NativeBackend().open(BUNDLE, SessionOptions("bf16", low_memory=True))
    sets = [weight_set({file: strength}) for strength in (0.5, 0.8) for file in files]
    process = psutil.Process()
    module = load(session, "text_encoder", sets[0])
    assert module._packed.own_bytes > 500_000
    taken = []
    for swap in range(200):
        module = load(session, "text_encoder", sets[swap % len(sets)])
        assert module._laid_out is not None
        module._laid_out.bound(module._packed.tensors, False, frozenset())
        taken.append(process.memory_info().rss)
    assert max(taken[100:]) - max(taken[20:60]) < 16 * module._packed.own_bytes


def test_the_memory_of_a_set_becomes_the_next_ones_unless_somebody_has_it(
    files: list[Path], alone: Callable[[], None]
) -> None:
    options = SessionOptions("bf16", low_memory=True)
    first, second = (weight_set({file: 1.0}) for file in files)
    wanted = {}
    for weights in (first, second):
        alone()
        wanted[weights] = output(load(NativeBackend().open(BUNDLE, options), "unet", weights))
    alone()
    networks = Networks(BUNDLE, NativeBackend().open(BUNDLE, options))

    def loaded(weights: WeightSet) -> NativeModule:
        module = networks.get("unet", 1, 64, 64, weights=weights)
        assert isinstance(module, NativeModule)
        return module

    def place(module: NativeModule) -> int:
        own = [t for n, t in module._packed.tensors.items() if t is not base[n]]
        return min(int(t.ctypes.data) for t in own if t.dtype == np.uint8)

    base = loaded(PRISTINE)._packed.tensors
    before = place(loaded(first))
    held = loaded(second)
    assert place(held) == before
    assert output(held) == wanted[second]
    module = loaded(first)
    assert place(module) != before
    assert output(module) == wanted[first] and output(held) == wanted[second]
    networks.close()


def test_what_a_failed_swap_leaves_does_not_live_as_long_as_its_error(
    files: list[Path], tmp_path: Path
) -> None:
    huge = make_demo_lora(tmp_path / "huge.safetensors", 3, size=1e38)
    networks = Networks(BUNDLE, NativeBackend().open(BUNDLE, SessionOptions(low_memory=True)))
    networks.get("unet", 1, 64, 64, weights=weight_set({files[0]: 1.0}))
    with pytest.raises(AdapterError) as kept:
        networks.get("unet", 1, 64, 64, weights=weight_set({huge: 100}))
    frames = [entry.frame.f_locals for entry in kept.traceback]
    assert not any(isinstance(f.get("rest"), tuple) for f in frames)
    module = networks.get("unet", 1, 64, 64, weights=weight_set({files[0]: 1.0}))
    assert isinstance(module, NativeModule)
    networks.close()


def test_sets_are_kept_while_there_is_memory(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, alone: Callable[[], None]
) -> None:
    alone()
    sets = [weight_set({files[0]: strength}) for strength in (0.1, 0.2, 0.3)]
    session = NativeBackend().open(BUNDLE, SessionOptions("bf16"))
    module = load(session, "unet", sets[0])
    size = module._packed.own_bytes
    # A quarter of it holds two sets, whatever these have taken of it.
    whole = 4 * 2 * size + 100
    kept = session._kept  # type: ignore[attr-defined]
    monkeypatch.setattr(
        kept_weights, "free_memory_bytes", lambda: whole - sum(k.own_bytes for k in kept._kept)
    )
    first = id(module._packed)
    module = load(session, "unet", sets[1])
    module = load(session, "unet", sets[0])
    assert id(module._packed) == first
    asked: list[int] = []
    with monkeypatch.context() as patch:
        make_room = kept.make_room

        def before(own_bytes: int) -> None:
            make_room(own_bytes)
            asked.append(len(kept._kept))

        patch.setattr(kept, "make_room", before)
        module = load(session, "unet", sets[2])
    assert asked == [1, 2]  # one that has to go goes before the new one is made
    assert len(kept._kept) == 2 and kept._kept[-1] is module._packed
    monkeypatch.setattr(kept_weights, "free_memory_bytes", lambda: 0)
    module = load(session, "unet", sets[1])
    assert kept._kept == []
    session.close()


def pixels(engine: sdengine.Engine, **more: Any) -> bytes:
    array: Array = engine.generate("a red circle", **FIELDS, **more).arrays[0]
    return array.tobytes()


@pytest.fixture(scope="module")
def wanted(files: list[Path]) -> Iterator[dict[Any, bytes]]:
    """Pictures of engines that were loaded with one weight set each."""
    found = {}
    sets: dict[Any, Mapping[Any, Strength]]
    sets = {None: {}, 0: {files[0]: 1.0}, 1: {files[1]: (0.3, -1.0)}}
    for key, loras in sets.items():
        with sdengine.load("demo", loras=loras) as engine:
            found[key] = pixels(engine)
    assert len(set(found.values())) == 3
    yield found


def test_threads_with_weights_of_their_own_get_their_pictures(
    files: list[Path], wanted: dict[Any, bytes]
) -> None:
    sets: dict[Any, Any] = {None: {}, 0: {files[0]: 1.0}, 1: {files[1]: (0.3, -1.0)}}
    found: list[tuple[Any, bytes]] = []
    with sdengine.load("demo") as engine:

        def work(first: int) -> None:
            for turn in range(3):
                key = [None, 0, 1][(first + turn) % 3]
                found.append((key, pixels(engine, loras=sets[key])))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 12
    assert all(made == wanted[key] for key, made in found)


def test_a_failed_swap_leaves_the_old_weights(
    files: list[Path], wanted: dict[Any, bytes], tmp_path: Path
) -> None:
    huge = make_demo_lora(tmp_path / "huge.safetensors", 3, size=1e38)
    broken = {"lora_unet_conv_in.diff_b": draw(64) * np.float32(np.nan)}
    nan = write(tmp_path / "nan.safetensors", broken)
    with sdengine.load("demo", loras={files[0]: 1.0}) as engine:
        stream = engine.stream("a red circle", **{**FIELDS, "steps": 2})
        next(stream)
        with pytest.raises(AdapterError, match="it is NaN or infinite"):
            pixels(engine, loras={huge: 100})
        with pytest.raises(AdapterError, match="holds NaN or infinity"):
            engine.set_weights(loras={nan: 1.0})
        assert [one.name for one in engine.loras] == [files[0].stem]
        *_, last = stream
        assert pixels(engine) == wanted[0]
        assert pixels(engine, loras={}) == wanted[None]
        assert last.result is not None
        expected = engine.generate("a red circle", **{**FIELDS, "steps": 2}).arrays[0]
        assert last.result.arrays[0].tobytes() == expected.tobytes()


_KILLED = """
import sys, time
import sdengine
from sdengine import _native
pack, calls = _native.pack, 0

def held(kind, tile, sources, gated, to):
    global calls
    calls += any(bool(terms) == (sys.argv[2] == "swap") for _, terms in sources)
    if calls == 20:
        print("here", flush=True)
        time.sleep(600)
    return pack(kind, tile, sources, gated, to=to)

_native.pack = held
with sdengine.load("demo", loras={sys.argv[1]: 1.0}) as engine:
    engine.generate("a red circle", seed=3, steps=1, width=64, height=64)
"""


@pytest.mark.parametrize("stage", ["pack", "swap"])
def test_what_is_killed_leaves_nothing_half_done(
    stage: str,
    files: list[Path],
    wanted: dict[Any, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: Callable[[], None],
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    command = [sys.executable, "-c", _KILLED, str(files[0]), stage]
    # Elsewhere than where the tests run: a folder of sources would be found before the package.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        os.kill(child.pid, signal.SIGKILL)
    gc.collect()
    alone()
    with sdengine.load("demo") as engine:
        assert pixels(engine) == wanted[None]
        assert pixels(engine, loras={files[0]: 1.0}) == wanted[0]
    kept = sorted(path.name.split("-")[0] for path in tmp_path.rglob("*.weights"))
    assert kept == ["text_encoder", "unet", "vae_decoder"]


def test_the_bundles_own_weights_are_read_once(
    files: list[Path], alone: Callable[[], None]
) -> None:
    """They stay with what is merged into them, also where nobody computes with them alone."""
    alone()
    session = NativeBackend().open(BUNDLE, SessionOptions("fp32"))
    packed = []
    for strength in (0.5, 0.6):
        packed.append(load(session, "text_encoder", weight_set({files[0]: strength}))._packed)
        gc.collect()
    first, second = (one.tensors for one in packed)
    shared = [name for name in first if first[name] is second[name]]
    own_bytes = sum(array.nbytes for name, array in first.items() if name not in shared)
    assert shared and own_bytes == packed[0].own_bytes
    session.close()
