"""What is put together for a training: its loss, its gradients, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tuning import FEW, options, pictures, place

from sdengine.checkpoints import load_checkpoint
from sdengine.inputs.hypernetworks import read_hypernetwork
from sdengine.training.loop import Draw
from sdengine.training.tuning.kinds import Prepared, trained_networks
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.pictures import find_examples
from sdengine.training.tuning.task import TuningTask
from sdengine.training.tuning.tune import _Work

KINDS = sorted(FEW)


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
