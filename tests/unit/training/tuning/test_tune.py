"""Trainings of every kind: what they change, that they go on as if uninterrupted, and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny_checkpoints import make_tiny
from support.tuning import FEW, losses, options, pictures, place

from sdengine.building import architecture
from sdengine.checkpoints import Checkpoint, load_checkpoint
from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError, OutputError
from sdengine.inputs.hypernetworks import read_hypernetwork
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.loop import Draw, Report
from sdengine.training.run_folder import RunFolder
from sdengine.training.tuning import texts
from sdengine.training.tuning.kinds import Prepared, trained_networks
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.pictures import find_examples
from sdengine.training.tuning.task import TuningTask
from sdengine.training.tuning.tune import _Work, tune

KINDS = sorted(FEW)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny-sdxl", tmp_path_factory.mktemp("sdxl") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module", autouse=True)
def _tokenizers_are_read_once() -> Iterator[None]:
    """Reading CLIP's vocabulary takes longer than a step of these models."""
    known: dict[tuple[Path, str], ClipTokenizer] = {}
    read = architecture.tokenizer_of

    def tokenizer_of(checkpoint: Checkpoint, part: str) -> ClipTokenizer:
        key = checkpoint.root, part
        if key not in known:
            known[key] = read(checkpoint, part)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (architecture, texts):
            patch.setattr(module, "tokenizer_of", tokenizer_of)
        yield


def prepared(
    kind: str, checkpoint: Path, data: Path, folder: Path, **changes: Any
) -> tuple[TuningTask, Prepared, Networks]:
    """Put together what is trained, as `tune` does."""
    chosen = options(kind, **changes)
    source = load_checkpoint(checkpoint)
    networks = Networks.load(
        source,
        precision=chosen.precision,
        device=torch.device("cpu"),
        trained=trained_networks(chosen, tuple(source.text_encoder_configs)),
    )
    work = _Work(kind, chosen, networks, place(kind, folder), folder / "run", lambda *_: None)
    task, _ = work.prepare(find_examples(data))
    return task, work.prepared, networks


def state_of(networks: Networks) -> dict[str, torch.Tensor]:
    """Return a copy of every tensor that could be trained by mistake."""
    modules: dict[str, torch.nn.Module] = {"unet": networks.unet, **networks.text_encoders}
    return {
        f"{name} {key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def step(task: TuningTask, rate: float = 0.05) -> float:
    """Take one step of plain descent; return the loss before it."""
    loss, _ = task.loss(Draw.at(0, 0), 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
                parameter.grad = None
    return loss.item()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_to_learn_gets_a_gradient_and_the_loss_falls(
    kind: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    task, made, networks = prepared(kind, tiny, data, tmp_path)
    before = state_of(networks)
    torch.manual_seed(0)
    first = step(task, 1.0 if kind == "embedding" else 0.05)
    torch.manual_seed(0)
    step(task)
    torch.manual_seed(0)
    assert task.loss(Draw.at(0, 0), 0.0)[0].item() < first
    after = state_of(networks)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    table = "text_encoder text_model.embeddings.token_embedding.weight"
    if kind in ("finetune", "dreambooth"):
        assert moved >= {"unet conv_in.weight", "unet conv_out.bias"}
        assert table not in moved
        assert (kind == "dreambooth") == any(name.startswith("text_encoder") for name in moved)
    else:  # every row of the token table too
        assert not moved
        assert not any(p.requires_grad for p in networks.unet.parameters())
        assert any(p.requires_grad for p in made.model.parameters())


def test_before_its_first_step_nothing_is_changed(sdxl: Path, data: Path, tmp_path: Path) -> None:
    """LoRA and ControlNet give the untouched model's loss to the bit."""
    found = {}
    for kind in ("finetune", "lora", "controlnet"):
        (tmp_path / kind).mkdir()
        task, _, _ = prepared(kind, sdxl, data, tmp_path / kind, dropout=0.0)
        found[kind] = task.loss(Draw.at(0, 0), 0.0)[0].item()
        if kind == "controlnet":
            step(task, 1.0)
            assert task.loss(Draw.at(0, 0), 0.0)[0].item() != found[kind]
    assert found["lora"] == found["controlnet"] == found["finetune"]


@pytest.mark.parametrize("kind", ["hypernetwork", "controlnet"])
def test_activations_that_are_computed_again_change_nothing(
    kind: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    gradients = []
    for again in (False, True):
        (tmp_path / str(again)).mkdir()
        task, made, _ = prepared(
            kind, tiny, data, tmp_path / str(again), gradient_checkpointing=again
        )
        step(task)  # zeros feel nothing before
        torch.manual_seed(7)
        task.loss(Draw.at(0, 1), 0.0)[0].backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in made.model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_halves_of_dreambooth_are_weighted_apart(tiny: Path, data: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "class", [(64, 64)] * 3, captions=False)
    found = {}
    for weight in (1.0, 0.25):
        place_of = tmp_path / str(weight)
        place_of.mkdir()
        task, _, _ = prepared(
            "dreambooth",
            tiny,
            data,
            place_of,
            class_prompt="a circle",
            class_folder=str(folder),
            class_pictures=3,
            prior_weight=weight,
        )
        loss, figures = task.loss(Draw.at(0, 0), 0.0)
        assert loss.item() == pytest.approx(figures["subject"] + weight * figures["prior"])
        found[weight] = figures
    assert found[1.0] == found[0.25]
    alone, _, _ = prepared("dreambooth", tiny, data, tmp_path, class_prompt="")
    assert alone.loss(Draw.at(0, 0), 0.0)[0].item() == found[1.0]["subject"]


def test_pictures_of_the_class_keep_their_own_captions(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "class", [(64, 64)] * 3, captions=False)
    first = min(folder.glob("*.png"))
    first.with_suffix(".txt").write_text("a {blue} star")
    task: Any = prepared(
        "dreambooth",
        tiny,
        data,
        tmp_path,
        class_prompt="a {circle}",
        class_folder=str(folder),
        class_pictures=3,
    )[0]
    assert task.class_dataset.captions - {""} == {"a {blue} star", "a {circle}"}
    assert len(list(folder.glob("*.png"))) == 3  # the captions are not taken for pictures


def test_pictures_of_the_class_count_wherever_they_lie_in_its_folder(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    inner = pictures(folder / "inner", [(64, 64)] * 2, captions=False)
    for one in inner.glob("*.png"):
        one.with_suffix(".txt").write_text(f"a star {one.stem}")
    (folder / "class-00007.png").write_bytes(next(inner.glob("*.png")).read_bytes())
    own = {f"a star {one.stem}" for one in inner.glob("*.png")}
    for count, wanted in ((1, own), (2, own), (3, own | {"a circle"})):
        chosen = {"class_prompt": "a circle", "class_folder": str(folder), "class_pictures": count}
        place_of = tmp_path / str(count)
        place_of.mkdir()
        task: Any = prepared("dreambooth", tiny, data, place_of, **chosen)[0]
        assert task.class_dataset.captions - {""} == wanted


class Interrupted(Exception):
    """Stand in for a kill in the middle of a run."""


def stop_at(number: int) -> Report:
    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == number:
            raise Interrupted

    return report


# Between them they have every kind of state; LoRA is killed below.
@pytest.mark.parametrize("kind", ["embedding", "hypernetwork", "dreambooth", "controlnet"])
def test_a_training_that_goes_on_gives_the_same_file(
    kind: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    chosen = options(kind, steps=3, save_every=1, ema_decay=0.9, mirror=True)
    output, run = place(kind, tmp_path), tmp_path / f"{place(kind, tmp_path).name}.training"
    tune(kind, tiny, data, output, chosen)
    whole, curve = contents(output), losses(run)
    output.rename(tmp_path / "before")
    (run / "state-000003.pt").unlink()
    tune(kind, tiny, data, output, chosen, resume=True)
    assert losses(run) == curve and len(curve) == 3
    assert contents(output) == whole


def test_a_training_that_was_killed_goes_on_where_it_is_asked_to(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    chosen = options("lora", steps=3, save_every=1)
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    tune("lora", tiny, data, whole, chosen)
    with pytest.raises(Interrupted):
        tune("lora", tiny, data, cut, chosen, report=stop_at(2))
    assert not cut.exists()
    with pytest.raises(OutputError, match=r"holds a run.*--resume"):
        tune("lora", tiny, data, cut, chosen)
    tune("lora", tiny, data, cut, chosen, resume=True)
    runs = (tmp_path / f"{name}.safetensors.training" for name in ("whole", "cut"))
    assert [*map(losses, runs)] == [losses(tmp_path / "whole.safetensors.training")] * 2
    found, wanted = (load_file(path) for path in (cut, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in files}


def test_other_data_or_options_are_another_run(tiny: Path, data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    output = place("lora", tmp_path)
    chosen = options("lora", save_every=1)
    with pytest.raises(Interrupted):
        tune("lora", tiny, copied, output, chosen, report=stop_at(2))
    assert RunFolder(tmp_path / "thing.safetensors.training").checkpoints().keys() == {1}
    with pytest.raises(CheckpointError, match="rank was 4, is now 8"):
        tune("lora", tiny, copied, output, options("lora", rank=8), resume=True)
    (copied / "0.txt").write_text("another caption")
    with pytest.raises(CheckpointError, match="data was"):
        tune("lora", tiny, copied, output, chosen, resume=True)


def test_a_hypernetwork_adds_what_its_numpy_reader_adds(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    task, made, networks = prepared("hypernetwork", tiny, data, tmp_path, layer_norm=True)
    step(task)
    made.save(tmp_path / "thing.pt", 1, {})
    read = read_hypernetwork(tmp_path / "thing.pt")
    made.model.eval()
    attention: Any = networks.unet.get_submodule(
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    )
    context = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    keys, values = read.added_to(context.numpy(), context.numpy())
    for layer, changed in ((attention.to_k, keys), (attention.to_v, values)):
        with torch.no_grad():
            found = layer(context)
            wanted = torch.nn.functional.linear(torch.from_numpy(changed), layer.weight)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_bf16_and_fp16_hold_what_is_trained_in_fp32(tiny: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for precision in ("bf16", "fp16"):
        (tmp_path / precision).mkdir()
        task, made, networks = prepared(
            "lora", tiny, data, tmp_path / precision, precision=precision
        )
        assert networks.unet.conv_in.weight.dtype != torch.float32
        assert networks.vae.encoder.conv_in.weight.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in made.model.parameters())
        found.append(step(task))
    exact, _, _ = prepared("lora", tiny, data, tmp_path)
    wanted = exact.loss(Draw.at(0, 0), 0.0)[0].item()
    assert found == pytest.approx([wanted] * 2, rel=0.02)


def test_class_pictures_and_sheets_are_made_by_the_engine(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    import sdengine

    chosen = options(
        "dreambooth",
        class_prompt="a circle",
        class_pictures=1,
        sample=("a square",),
        sample_every=2,
        seed=3,
    )
    tune("dreambooth", tiny, data, tmp_path / "thing", chosen)
    run = tmp_path / "thing.training"
    sheet = np.asarray(Image.open(run / "sheet-000002.png"))
    assert sheet.shape == (64, 256, 3)
    size: dict[str, Any] = {"width": 64, "height": 64}
    with sdengine.load(run / "bundle", "torch", "fp32") as engine:
        wanted = engine.generate("a circle", seed=3, **size).arrays[0]
        before = engine.generate("a square", seed=1, **size).arrays[0]
    made = np.asarray(Image.open(run / "class" / "class-00000.png"))
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert not np.array_equal(sheet[:, 64:128], before)  # two steps later


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"conv_rank": 0, "conv_alpha": 2.0}, r"conv_alpha.*--conv-rank"),
        ("lora", {"restarts": 2}, "restarts"),
        ("lora", {"sample_every": 3}, r"sample_every.*--sample"),
        ("lora", {"templates": ("{x}",)}, "template"),
        ("embedding", {"templates": ("a thing",)}, r"\{name\}"),
        ("embedding", {"templates": ("{caption}",)}, r"template.*captions that name 'thing'"),
        ("embedding", {"vectors": 76}, "vectors"),
        ("embedding", {"name": "a\nb"}, "name"),
        ("hypernetwork", {"structure": (1, 2)}, "structure"),
        ("hypernetwork", {"structure": "1,0,1"}, "structure"),
        ("hypernetwork", {"widths": (31,)}, r"widths.*\[16, 32, 48\]"),
        ("hypernetwork", {"activation": "prelu"}, "activation"),
        ("hypernetwork", {"activation": "linear", "activate_output": True}, "activate_output"),
        ("dreambooth", {"prior_weight": 2.0}, r"prior_weight.*--class-prompt"),
        ("controlnet", {"preprocessor": ""}, r"hints.*--preprocessor"),
        ("controlnet", {"hints": "x"}, r"preprocessor.*no --hints"),
        ("lora", {"resolution": 60}, r"resolution.*a multiple of 64"),
        ("lora", {"device": "cuda"}, r"device.*no GPU"),
        ("lora", {"precision": "fp16", "optimiser": "adafactor"}, "optimiser"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    kind: str, changes: dict[str, Any], said: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=said):
        tune(kind, tiny, data, place(kind, tmp_path), options(kind, **changes))
    assert not place(kind, tmp_path).exists()


@pytest.mark.parametrize(
    ("vectors", "shares"), [(1, [[0, 1, 2]]), (2, [[0, 1], [2]]), (5, [[0], [1], [2], [0], [1]])]
)
def test_an_embedding_begins_as_the_means_of_its_tokens(
    vectors: int, shares: list[list[int]], tiny: Path, data: Path, tmp_path: Path
) -> None:
    initial = "red circle cat"
    _, made, networks = prepared(
        "embedding", tiny, data, tmp_path, vectors=vectors, initial=initial
    )
    table = networks.text_encoders["text_encoder"].text_model.embeddings.token_embedding.weight
    ids = made.texts.tokens("text_encoder", initial)
    assert len(ids) == 3
    wanted = [table[[ids[i] for i in share]].mean(dim=0) for share in shares]
    (found,) = made.model.parameters()
    torch.testing.assert_close(found.detach(), torch.stack(wanted))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_damaged_picture_leaves_nothing_of_a_new_run(
    is_new: bool, tiny: Path, data: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(data, tmp_path / "data")
    (damaged / "zz.png").write_bytes(b"damaged")
    target = place("lora", tmp_path)
    run = target.with_name(f"{target.name}.training")
    if not is_new:
        run.mkdir()
    with pytest.raises(ConfigError, match=r"zz\.png"):
        tune("lora", tiny, damaged, target, options("lora", templates=("a cat",)))
    assert run.exists() is not is_new
    assert is_new or any((run / "latents").iterdir())


def test_places_and_checkpoints_are_looked_at_first(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output.*ends in \.safetensors"):
        tune("lora", tiny, data, tmp_path / "thing.ckpt", options("lora"))
    (tmp_path / "thing").mkdir()
    with pytest.raises(OutputError, match="exists"):
        tune("finetune", tiny, data, tmp_path / "thing", options("finetune"))
    with pytest.raises(ConfigError, match="kind"):
        tune("pose", tiny, data, tmp_path / "new", options("lora"))
    for family, said in (("tiny-sdxl-refiner", "refiner"), ("tiny-lcm", "distilled")):
        other = make_tiny(family, tmp_path / family)
        with pytest.raises(ConfigError, match=rf"checkpoint.*{said}"):
            tune("lora", other, data, tmp_path / "x.safetensors", options("lora"))
    with pytest.raises(ConfigError, match=r"checkpoint.*9 input channels"):
        tune("lora", "demo-inpainting", data, tmp_path / "x.safetensors", options("lora"))
    assert not list(tmp_path.glob("*.training"))


def test_the_command_trains_what_it_is_told(
    tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "thing.pt"
    command = ["train", "embedding", str(tiny), "--data", str(data), "-o", str(output)]
    few = ["--steps", "1", "--resolution", "64", "--vectors", "3", "--name", "toy"]
    assert main([*command, *few, "--template", "{name}, {caption}"]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    content = torch.load(output, weights_only=True)
    assert content["name"] == "toy" and content["string_to_param"]["*"].shape == (3, 32)
    assert main([*command, *few]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["train", "lora", str(tiny), "--data", str(data), "-o", "x.pt"]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
