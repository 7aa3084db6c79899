"""Other checkpoints on the demo bundle make the pictures that a bundle built of them makes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.checkpoint_folders import TEXT, UNET, VAE
from support.model_sources import held

import sdengine
from sdengine.bundle.manifest import TOKEN_TABLE_TENSOR
from sdengine.bundle.reader import DEMO_BUNDLE
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.errors import CheckpointError, ConfigError
from sdengine.storage.tensor_file import Kinds, map_tensors, write_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
REQUEST: Any = {"prompt": "a red circle", "seed": 3, "steps": 3}
_TABLE = "text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint with every tensor changed a little."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    for number, name in enumerate((UNET, VAE, TEXT)):
        state = load_file(folder / name)
        (folder / name).unlink()  # it is mapped
        scale = 1 + 0.02 * (number + 1)
        changed = {key: (value.float() * scale).half() for key, value in state.items()}
        save_file(changed, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with the other checkpoint's numbers, as the build's reader gives them."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    shutil.copytree(DEMO_BUNDLE, folder)
    parts = held(other)
    manifest = json.loads((folder / "manifest.json").read_text())
    places = {"unet": "unet", "text_encoder": "text_encoder"}
    places |= {"vae_decoder": "vae", "vae_encoder": "vae"}
    for network, part in places.items():
        file = folder / f"{network}.safetensors"
        own = {name: np.array(tensor) for name, tensor in map_tensors(file).items()}
        changed = {name: parts[part].get(name, tensor) for name, tensor in own.items()}
        _write(file, changed)
    _write(folder / "token_table.safetensors", {TOKEN_TABLE_TENSOR: parts["text_encoder"][_TABLE]})
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write(path: Path, tensors: dict[str, Any]) -> None:
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    kinds: Kinds = {n: (names[str(t.dtype)], t.shape) for n, t in tensors.items()}
    kinds = dict(sorted(kinds.items(), key=lambda item: item[1][0] != "F32"))
    path.unlink()
    write_tensors(path, kinds, tensors.items())


def test_the_pictures_are_those_of_a_bundle_built_of_it(other: Path, built: Path) -> None:
    with sdengine.load(built) as engine:
        wanted = engine.generate(**REQUEST)
    with sdengine.load("demo") as engine:
        before = engine.generate(**REQUEST)
        found = engine.generate(**REQUEST, model=other)
        assert np.array_equal(found.arrays[0], wanted.arrays[0])
        assert not np.array_equal(found.arrays[0], before.arrays[0])
        assert found.provenance.model == "other"
        assert f"Model hash: {found.provenance.model_hash[:10]}, Model: other" in found.parameters()
        # Weights belong to the request: the next one has the bundle's, and their own caches.
        assert np.array_equal(engine.generate(**REQUEST).arrays[0], before.arrays[0])
        engine.set_weights(model={other: 1, "bundle": 0})
        assert np.array_equal(engine.generate(**REQUEST).arrays[0], wanted.arrays[0])
        assert np.array_equal(engine.run(before.request).arrays[0], wanted.arrays[0])
        own = engine.generate(**REQUEST, model="bundle")
        assert np.array_equal(own.arrays[0], before.arrays[0])
        latents = engine.encode(before.arrays[0])
        engine.set_weights()
        with pytest.raises(ConfigError, match="model"):
            engine.decode(latents)


def test_requests_are_recorded_and_made_again(other: Path) -> None:
    with sdengine.load("demo", model={other: 0.5, "bundle": 0.5}) as engine:
        result = engine.generate(**REQUEST)
        assert result.provenance.model == "0.5 other + 0.5 bundle"
        text = result.request.to_json()
        assert str(other) not in text
        again = sdengine.Request.from_json(text)
        assert again == result.request
        assert np.array_equal(engine.run(result.request).arrays[0], result.arrays[0])
    with (
        sdengine.load("demo") as fresh,
        pytest.raises(ConfigError, match=r"'other', with SHA-256 .*only known by its record"),
    ):
        fresh.run(again)


def test_what_does_not_fit_changes_nothing(other: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    with sdengine.load("demo", model=other) as engine:
        before = engine.generate(**REQUEST)
        wrong = shutil.copytree(other, tmp_path / "wrong")
        scheduler = json.loads((wrong / "scheduler/scheduler_config.json").read_text())
        changed = json.dumps({**scheduler, "prediction_type": "epsilon"})
        (wrong / "scheduler/scheduler_config.json").write_text(changed)
        with pytest.raises(CheckpointError, match="prediction_type"):
            engine.set_weights(model=wrong)
        for given, error in ((tmp_path / "text.txt", CheckpointError), ({other: 0.5}, ConfigError)):
            with pytest.raises(error, match="model"):
                engine.generate(**REQUEST, model=given)
        assert np.array_equal(engine.generate(**REQUEST).arrays[0], before.arrays[0])


def test_the_command(other: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.png"
    shares = ["--model", f"{other}:0.25", "--model", "bundle:0.75"]
    done = run("generate", "a red circle", *shares, "--steps", "2", "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "0.25 other + 0.75 bundle"
    again = run("generate", "--from", str(out), "-o", str(tmp_path / "again.png"))
    assert "was made with the model 0.25 other" in again.stderr
    assert "not with the bundle's" in again.stderr
    for wrong in ([str(other), f"{other}:2"], ["", ""], [f"{other}:0.5"]):
        options = [text for one in wrong for text in ("--model", one)]
        failed = run("generate", "a red circle", *options)
        assert failed.returncode == 2 and "model" in failed.stderr
