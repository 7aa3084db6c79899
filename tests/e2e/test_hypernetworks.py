"""Hypernetworks have their effect end to end on the demo bundle, and leave no trace with none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from sdengine.benchmarks.seeded_hypernetworks import Hooked, save, write
from sdengine.bundle.reader import open_bundle
from sdengine.engine import Engine
from sdengine.errors import AdapterError, ConfigError
from sdengine.images.provenance import Provenance
from sdengine.images.web_ui_text import parameters_text, parse_parameters
from sdengine.request.request import Request
from sdengine.storage.tensor_file import map_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "a red circle"
FIELDS: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}
LEAST_PSNR_DB = 40.0
CHECKPOINT = Path(sdengine.__file__).parent / "checkpoints" / "demo"
_SHAPES = {
    name: tensor.shape
    for name, tensor in map_tensors(open_bundle("demo").path("unet.safetensors")).items()
}
TEXT_WIDTH = open_bundle("demo").manifest.architecture.unet.cross_attention_dim
WIDTHS = sorted({s[1] for name, s in _SHAPES.items() if name.endswith(".to_k.weight")})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nets")
    options: list[dict[str, Any]] = [
        {"activation": "swish", "norm": True},
        {"activation": "leakyrelu", "activate_output": False},
    ]
    return [
        write(folder / f"net {i}.pt", WIDTHS, seed=i, std=0.05, **own)[0]
        for i, own in enumerate(options)
    ]


@pytest.fixture(scope="module")
def engine() -> Any:
    with sdengine.load("demo", precision="fp32", threads=1) as engine:
        yield engine


def pixels(engine: Engine, nets: Mapping[Any, float] | None = None, **options: Any) -> bytes:
    array = engine.generate(PROMPT, hypernetworks=nets, **FIELDS, **options).arrays[0]
    return array.tobytes()


def test_they_belong_to_the_request(engine: Engine, files: list[Path]) -> None:
    one, two = files
    plain = pixels(engine)
    first = pixels(engine, {one: 0.8})
    assert first != plain and pixels(engine, {one: 0}) == plain == pixels(engine, {})
    both = pixels(engine, {one: 0.8, two: -0.5})
    assert len({plain, first, both, pixels(engine, {two: -0.5, one: 0.8})}) == 4  # order counts
    assert pixels(engine, {one: 0.8, two: 0}) == first
    engine.set_weights(hypernetworks={one: 0.8})
    assert pixels(engine) == first and pixels(engine, {}) == plain
    with pytest.raises(AdapterError, match=r"missing\.pt' cannot be read"):
        engine.set_weights(hypernetworks={one.with_name("missing.pt"): 1})
    assert pixels(engine) == first
    engine.set_weights()
    assert pixels(engine) == plain
    request = engine.request(PROMPT, hypernetworks={one: 0.8}, **FIELDS)
    again = Request.from_json(request.to_json())
    assert engine.run(again).arrays[0].tobytes() == first  # its file was given before
    with (
        sdengine.load("demo", precision="fp32", low_memory=True, hypernetworks={one: 0.8}) as other,
    ):
        assert pixels(other) == pixels(other) == first
    with sdengine.load("demo") as other, pytest.raises(ConfigError, match="only known by its"):
        other.run(again)


def test_with_everything_else(engine: Engine, files: list[Path]) -> None:
    nets = {files[0]: 1.0}
    regions = [sdengine.Region((0, 0, 0.5, 1)), sdengine.Region((0.5, 0, 1, 1))]
    changes: list[dict[str, Any]] = [
        {"tiled_diffusion": True, "tile_size": (64, 64), "tile_overlap": 32, "width": 128},
        {"hires": 2.0},
        {"seamless": "x"},
        {"batch_size": 2},
        {"prompt": "a red circle AND a blue square", "regions": regions},
        {"prompt": "a [red|blue] circle BREAK on white"},
    ]
    for change in changes:
        options = {"prompt": PROMPT, **FIELDS, **change}
        found, plain = (engine.generate(hypernetworks=n, **options) for n in (nets, {}))
        assert not np.array_equal(found.arrays[0], plain.arrays[0])
        if "batch_size" in change:
            alone = engine.generate(PROMPT, hypernetworks=nets, **{**FIELDS, "seed": 4})
            assert np.abs(found.arrays[1].astype(int) - alone.arrays[0]).max() <= 1


def test_pictures_are_diffusers_with_the_web_uis_hooks(engine: Engine, tmp_path: Path) -> None:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    pipeline = library.StableDiffusionPipeline.from_pretrained(CHECKPOINT).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = library.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    path, nets = write(tmp_path / "a.pt", WIDTHS, std=0.07, activation="mish")
    pipeline.unet.set_attn_processor(Hooked([(nets, 0.7)]))
    expected = pipeline(
        PROMPT, negative_prompt="green", num_inference_steps=4, guidance_scale=3.0, width=64,
        height=64, generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    options = {**FIELDS, "steps": 4, "guidance_scale": 3.0, "sampler": "euler"}
    found = engine.generate(
        PROMPT, "green", schedule="normal", hypernetworks={path: 0.7}, **options
    ).arrays[0]
    error = np.square(found / 255.0 - expected).mean()
    assert -10 * np.log10(error) >= LEAST_PSNR_DB
    plain = engine.generate(PROMPT, "green", schedule="normal", **options).arrays[0]
    assert np.square(plain / 255.0 - expected).mean() > 10 * error


def test_the_command_metadata_and_replay(files: list[Path], tmp_path: Path, run: Run) -> None:
    sizes = ["--width", "64", "--height", "64", "--steps", "2", "--seed", "3"]
    given = ["--hypernetwork", f"{files[0]}:0.5"]
    assert run("generate", PROMPT, *sizes, *given, "-o", "a.png").returncode == 0
    with Image.open(tmp_path / "a.png") as image:
        texts = dict(image.info)
    (told,) = json.loads(texts["sdengine"])["request"]["hypernetworks"]
    assert told.items() >= {"name": "net 0", "strength": 0.5}.items() and len(told["sha256"]) == 64
    assert texts["parameters"].startswith(f"{PROMPT} <hypernet:net 0:0.5>\n")
    other = run("generate", "--from", "a.png", "-o", "other.png")
    assert other.returncode == 0
    assert "made with net 0:0.5 (" in other.stderr and "not with no hypernetwork" in other.stderr
    again = run("generate", "--from", "a.png", "-o", "b.png", *given)
    assert again.returncode == 0 and "hypernetwork" not in again.stderr
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_the_web_uis_text_of_several(files: list[Path]) -> None:
    nets = {files[0]: 1.0, files[1]: -0.5}
    text = parameters_text(Request("a", hypernetworks=nets), Provenance())  # type: ignore[arg-type]
    assert text.startswith("a <hypernet:net 0:1> <hypernet:net 1:-0.5>\n")
    read = parse_parameters("a\nSteps: 3, Hypernet: fog, Hypernet strength: 0.5")
    assert read.fields["prompt"] == "a <hypernet:fog:0.5>" and not read.not_understood
    read = parse_parameters("a\nSteps: 3, Hypernet: fog")
    assert read.fields["prompt"] == "a <hypernet:fog:1>"


def test_prompts_name_them_in_tags(files: list[Path], tmp_path: Path, run: Run) -> None:
    with sdengine.load("demo", precision="fp32", hypernetworks_folder=files[0].parent) as engine:
        wanted = engine.generate(PROMPT, hypernetworks={files[0]: 0.5, files[1]: 1.0}, **FIELDS)
        tags = "<hypernet:net 0:0.5> <hypernet:NET 1>"
        found = engine.generate(f"{PROMPT} {tags}", **FIELDS)
        assert found.arrays[0].tobytes() == wanted.arrays[0].tobytes()
        assert found.request.prompt == PROMPT and not found.warnings
        assert found.request.hypernetworks == wanted.request.hypernetworks
        other = engine.generate(f"{PROMPT} <hypernet:none>", **FIELDS)
        assert "<hypernet:none> is not applied" in other.warnings[0]
        (path,) = found.save(tmp_path / "a.png")
    again = run("generate", "--from", path, "--hypernetworks", files[0].parent, "-o", "b.png")
    assert again.returncode == 0 and "warning" not in again.stderr
    assert (tmp_path / "b.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "nets", [{"x.pt": "1"}, {"x.pt": float("nan")}, {"x.pt": (1.0, 1.0)}, {"x.pt": 101}, 3]
)
def test_arguments_are_checked_first(nets: Any) -> None:
    with pytest.raises(ConfigError, match="hypernetworks"):
        sdengine.load("demo", hypernetworks=nets)


def test_what_cannot_be_applied_is_refused(
    engine: Engine, files: list[Path], tmp_path: Path, tiny: Path
) -> None:
    with pytest.raises(ConfigError, match=r"hypernetworks: 'openvino' is not .*target native"):
        sdengine.load(tiny, hypernetworks={files[0]: 1.0})
    foreign, _ = write(tmp_path / "sd1.pt", [48, 768])
    with pytest.raises(AdapterError, match=r"widths 48, 768; this model's attention reads .*\b128"):
        pixels(engine, {foreign: 1.0})
    more, _ = write(tmp_path / "more.pt", [*WIDTHS, 1000])  # what it has beside is of no harm
    pixels(engine, {more: 1.0})
    for name, content in (("empty", {}), ("other", {"a": torch.ones(2)})):
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(AdapterError, match="it is no hypernetwork"):
            pixels(engine, {tmp_path / f"{name}.pt": 1.0})
    save(tmp_path / "hollow.pt", {TEXT_WIDTH: [torch.nn.Sequential(), torch.nn.Sequential()]})
    with pytest.raises(AdapterError, match="it has no parameters"):
        pixels(engine, {tmp_path / "hollow.pt": 1.0})
    changed = tmp_path / "changed.pt"
    changed.write_bytes(files[0].read_bytes())
    request = engine.request(PROMPT, hypernetworks={changed: 0.3}, **FIELDS)
    changed.write_bytes(files[1].read_bytes())
    with sdengine.load("demo") as other, pytest.raises(AdapterError, match="was overwritten"):
        other.run(request)


@pytest.mark.parametrize("bad", ['"a"', '[{"name": "a", "sha256": "0", "strength": 1}]'])
def test_json_from_whomever(bad: str) -> None:
    with pytest.raises(ConfigError, match="hypernetworks"):
        Request.from_json(f'{{"version": 1, "prompt": "a", "hypernetworks": {bad}}}')
