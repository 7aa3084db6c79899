"""LoRAs have their effect end to end on the demo bundle, and leave no trace with none."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from support.adapters import Array, draw, make_demo_lora, write
from tolerances import assert_close

import sdengine
from sdengine.adapters.changes import merged
from sdengine.adapters.library import AdapterLibrary
from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import AdapterError, ConfigError
from sdengine.inputs.loras import Strength
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.request.request import Request
from sdengine.request.weight_fields import Loras
from sdengine.storage.tensor_file import map_tensors, to_float32

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BUNDLE = open_bundle("demo")


def weights(network: str) -> dict[str, Array]:
    return map_tensors(BUNDLE.path(f"{network}.safetensors"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [make_demo_lora(folder / f"{seed}.safetensors", seed) for seed in (1, 5000)]


def picture(loras: Mapping[Any, Strength] | None) -> Any:
    with sdengine.load("demo", precision="fp32", loras=loras) as engine:
        return engine.generate("a red circle", seed=3, steps=2, width=64, height=64)


def pixels(loras: Mapping[Any, Strength] | None) -> bytes:
    array: Array = picture(loras).arrays[0]
    return array.tobytes()


def test_paths_of_any_type_are_given(files: list[Path]) -> None:
    """A type checker reads this test too: keys of one type are as good as keys of several."""
    strings: dict[str, float] = {str(files[0]): 0.5}
    paths: dict[Path, tuple[float, float]] = {files[0]: (0.5, 0.5)}
    several: dict[str | os.PathLike[str], Strength] = {files[0]: 0.5}
    with sdengine.load("demo", loras=strings) as engine:
        wanted = engine.loras
        assert [lora.text for lora in wanted] == [0.5]
        for given in (paths, several):
            engine.set_weights()
            engine.set_weights(loras=given)
            assert engine.loras == wanted
        shares: dict[str, float] = {"bundle": 1.0}
        engine.set_weights(model=shares, loras={files[0]: 0.5, str(files[1]): 1})
        assert len(engine.loras) == 2
        numbers: dict[int, float] = {1: 0.5}
        with pytest.raises(ConfigError, match="loras"):
            engine.set_weights(loras=numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_file_that_is_overwritten_is_not_read(tmp_path: Path, is_cut: bool) -> None:
    path, replaced = (
        make_demo_lora(tmp_path / name, 11) for name in ("a.safetensors", "b.safetensors")
    )
    other = make_demo_lora(tmp_path / "c.safetensors", 12).read_bytes()
    fields: dict[str, Any] = {"seed": 3, "steps": 1, "width": 64, "height": 64}
    with sdengine.load("demo", loras={path: 0.7}) as engine:
        if is_cut:  # as at the beginning of a copy over it; reading on would end the process
            os.truncate(path, 100)
        else:
            with open(path, "r+b") as file:
                file.write(other)
        with pytest.raises(AdapterError, match=r"a\.safetensors' was overwritten after it was"):
            engine.generate("a red circle", **fields)
    with sdengine.load("demo", loras={replaced: 0.7}) as engine:
        (tmp_path / "c.safetensors").replace(replaced)  # what is mapped stays as it was
        engine.generate("a red circle", **fields)


def test_pictures_with_loras(files: list[Path], tmp_path: Path) -> None:
    one, two = files
    plain = pixels(None)
    first = pixels({one: 0.8})
    assert first != plain
    assert pixels({one: (0.8, 0.0)}) not in (plain, first)  # in the text encoder alone
    both = pixels({one: 0.8, two: -0.5})
    assert pixels({two: -0.5, one: 0.8}) == both and both != first
    assert pixels({one: 0.8, two: 0}) == first
    with sdengine.load("demo", precision="fp32", loras={one: 0.8}, low_memory=True) as engine:
        for _ in range(2):
            again = engine.generate("a red circle", seed=3, steps=2, width=64, height=64)
            assert again.arrays[0].tobytes() == first
    assert pixels({one: 0.0}) == pixels({}) == plain


def test_weights_belong_to_the_request(files: list[Path]) -> None:
    one, two = files
    fields: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    wanted = {name: pixels(loras) for name, loras in (("", {}), ("1", {one: 1}), ("2", {two: 1}))}
    with sdengine.load("demo", precision="fp32") as engine:

        def made(**weights: Any) -> bytes:
            array: Array = engine.generate("a red circle", **fields, **weights).arrays[0]
            return array.tobytes()

        assert made(loras={one: 1}) == wanted["1"]
        assert made() == wanted[""]
        engine.set_weights(loras={two: 1})
        assert made() == wanted["2"] and made(loras={}) == wanted[""]
        with pytest.raises(AdapterError, match="missing"):
            engine.set_weights(loras={one.with_name("missing.pt"): 1})
        assert made() == wanted["2"]
        request = engine.request("a red circle", loras={one: 1}, **fields)
        again = Request.from_json(request.to_json())
        assert engine.run(again).arrays[0].tobytes() == wanted["1"]  # its file was given before
        engine.set_weights()
        assert made() == wanted[""]
        streams = [
            engine.stream("a red circle", loras=one_set, **fields)
            for one_set in ({one: 1}, {}, {two: 1})
        ]
        steps = [list(step) for step in zip(*streams, strict=True)]
        results = [step.result for step in steps[-1]]
        found = [result.arrays[0].tobytes() for result in results if result is not None]
        assert found == [wanted["1"], wanted[""], wanted["2"]]
    with sdengine.load("demo") as engine, pytest.raises(ConfigError, match="only known by its"):
        engine.run(again)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_native_unet_with_loras_is_that_of_the_merged_weights(
    files: list[Path], precision: str
) -> None:
    given = Loras()("loras", {files[0]: 0.7, files[1]: (0.0, -0.4)})
    applied = AdapterLibrary(BUNDLE).weight_set(given)
    changes = applied.changes("unet")
    plain = weights("unet")
    unet = UNet2DConditionModel(UNetConfig.from_dict(BUNDLE.manifest.architecture.unet.config))
    state = {
        n: torch.from_numpy(np.array(to_float32(merged(plain[n], changes.get(n, ())))))
        for n in unet.state_dict()
    }
    unet.load_state_dict(state)
    inputs = {
        "sample": draw(1, 4, 8, 8) * 10,
        "timestep": np.full(1, 500, np.float32),
        "encoder_hidden_states": draw(1, 77, 128, seed=2) * 10,
    }
    with torch.no_grad():
        wanted = unet.eval()(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    session = NativeBackend().open(BUNDLE, SessionOptions(precision))
    entry = BUNDLE.network("unet")
    sides = {"batch": 1, "width": 64, "height": 64, "sequence": 77}
    shapes = resolve_shapes("unet", entry.inputs, sides)
    module = session.load("unet", shapes, applied)
    (found,) = module.run(inputs).values()
    if precision == "fp32":
        assert_close("native network", "float32", found, wanted)
    else:
        error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
        assert error < 0.05
    module.close()


def test_prompts_may_name_what_is_inside_a_lora(files: list[Path], tmp_path: Path) -> None:
    tensors = {**load_file(files[0]), "bundle_emb.sparkle.emb_params": draw(2, 128)}
    path = write(tmp_path / "with.safetensors", tensors)
    with sdengine.load("demo", loras={path: 0.8}) as engine:
        assert [embedding.name for embedding in engine.embeddings] == ["sparkle"]
    with sdengine.load("demo", loras={path: 0}) as engine:
        assert not engine.embeddings


def test_packed_weights_with_loras_are_in_memory_alone(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    pixels({files[0]: 0.8})
    kept = sorted(path.name.split("-")[0] for path in tmp_path.rglob("*.weights"))
    assert kept == ["text_encoder", "unet", "vae_decoder"]  # the bundle's own


def test_metadata_names_the_loras(files: list[Path], tmp_path: Path, run: Run) -> None:
    (saved,) = picture({files[0]: (0.5, 0.8)}).save(tmp_path / "a.png")
    with Image.open(saved) as image:
        (told,) = json.loads(image.info["sdengine"])["request"]["loras"]
    assert told.items() >= {"name": "1", "text": 0.5, "unet": 0.8}.items()
    other = run("generate", "--from", "a.png", "-o", "other.png")
    assert other.returncode == 0
    assert "made with 1:0.5:0.8 (" in other.stderr and "not with no LoRA" in other.stderr
    again = run("generate", "--from", "a.png", "-o", "b.png", "--lora", f"{files[0]}:0.5:0.8")
    assert again.returncode == 0 and "LoRA" not in again.stderr
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_the_command_says_what_a_lora_for_few_steps_wants(tmp_path: Path, run: Run) -> None:
    make_demo_lora(tmp_path / "lcm-lora.safetensors", 9, size=0.01)
    size = ["--width", "64", "--height", "64", "--steps", "1"]
    done = run("generate", "a red circle", *size, "--lora", "lcm-lora.safetensors:0.5")
    assert done.returncode == 0
    assert "lcm-lora is a LoRA for few steps (LCM): it wants steps 4 and not 1." in done.stderr


@pytest.mark.parametrize(
    "loras", [{"x.pt": "1"}, {"x.pt": float("nan")}, {"x.pt": (1.0,)}, {"x.pt": 101}, {1: 1.0}]
)
def test_arguments_are_checked_first(loras: Any) -> None:
    with pytest.raises(ConfigError, match="loras"):
        sdengine.load("demo", loras=loras)


def test_what_cannot_be_applied_is_refused_at_load(tmp_path: Path, tiny: Path) -> None:
    good = make_demo_lora(tmp_path / "good.safetensors", 3)
    with pytest.raises(AdapterError, match=r"none of its .* belongs to this bundle"):
        sdengine.load(tiny, loras={good: 1.0})
    with pytest.raises(AdapterError, match="missing"):
        sdengine.load("demo", loras={tmp_path / "missing.safetensors": 1.0})
    write(tmp_path / "odd.safetensors", {"lora_unet_nowhere.lora_up.weight": draw(2, 2)})
    with pytest.raises(AdapterError, match="nowhere"):
        sdengine.load("demo", loras={tmp_path / "odd.safetensors": 1.0})


def test_output_embeddings_inside_are_refused_by_the_files_field(tmp_path: Path) -> None:
    tensors = load_file(make_demo_lora(tmp_path / "plain.safetensors", 1))
    vectors = np.zeros((2, 128), np.float32)
    inside = {f"bundle_emb.cat.{key}": vectors for key in ("clip_l", "clip_l_out")}
    both = write(tmp_path / "both.safetensors", {**tensors, **inside})
    told = r"^loras: '.*both\.safetensors', embedding 'cat': tensor 'clip_l_out' is added to what"
    with sdengine.load("demo") as engine, pytest.raises(ConfigError, match=told):
        engine.generate("a red circle", loras={both: 1.0}, steps=1)
