"""Training against diffusers: the loss of a batch, and what is trained as its readers read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import difference, tiny_modules
from support.tiny_checkpoints import make_tiny
from support.tuning import options, pictures
from tolerances import assert_close

from sdengine.adapters.adapter import read_adapter
from sdengine.checkpoints import load_checkpoint, save_network
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.training.loop import Draw
from sdengine.training.tuning.files import save_embedding, save_lora, save_whole
from sdengine.training.tuning.kinds import Prepared
from sdengine.training.tuning.lora import Lora
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.pictures import find_examples
from sdengine.training.tuning.task import TuningTask
from sdengine.training.tuning.tune import _Work

diffusers: Any = pytest.importorskip("diffusers", reason="diffusers is not installed")
FAMILIES = ["tiny", "tiny-sd21", "tiny-sdxl"]
SHALLOW = ["shallow", "shallow-sdxl"]  # for PEFT, whose time grows with the layers' square


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make_tiny(name, folder / name) for name in (*FAMILIES, *SHALLOW)}


def networks_of(folder: Path) -> Networks:
    return Networks.load(load_checkpoint(folder), precision="fp32", device=torch.device("cpu"))


def pipeline_of(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)


def prepared(folder: Path, run: Path, kind: str = "lora") -> tuple[TuningTask, Prepared]:
    data = pictures(run / "data")
    work = _Work(kind, options(kind), networks_of(folder), run / "x", run / "run", lambda *_: None)
    task, _ = work.prepare(find_examples(data))
    return task, work.prepared


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_that_of_diffusers(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    task, _ = prepared(checkpoints[family], tmp_path)
    found = task.loss(Draw.at(0, 0), 0.0)[0]
    draw = Draw.at(0, 0)
    batch = task.dataset.batch(0, draw)
    pipe = pipeline_of(checkpoints[family])
    x0 = batch.latents * pipe.vae.config.scaling_factor
    noise = torch.randn(x0.shape, generator=draw.torch)
    spread = torch.arange(len(x0)) + torch.rand(len(x0), generator=draw.torch)
    timestep = (spread / len(x0) * 1000).long()
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    is_v = scheduler.config.prediction_type == "v_prediction"
    assert is_v == (family == "tiny-sd21")
    wanted = scheduler.get_velocity(x0, noise, timestep) if is_v else noise
    encoded = pipe.encode_prompt(
        batch.captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = None
    if family == "tiny-sdxl":
        added = {"text_embeds": encoded[2], "time_ids": batch.sizes}
    predicted = pipe.unet(
        scheduler.add_noise(x0, noise, timestep),
        timestep,
        encoder_hidden_states=encoded[0],
        added_cond_kwargs=added,
    ).sample
    assert_close("training loss", "float32", found, (predicted - wanted).square().mean())


def filled(networks: Networks, **sizes: Any) -> Lora:
    """Return a LoRA of both kinds of network, with numbers that are not those of its beginning."""
    lora = Lora({**networks.text_encoders, "unet": networks.unet}, rank=4, alpha=2.0, **sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", SHALLOW)
def test_a_lora_does_in_diffusers_and_in_our_reader_what_it_did_in_training(
    family: str, names: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    networks = networks_of(checkpoints[family])
    conv = {"conv_rank": 2, "conv_alpha": 1.0} if names == "diffusers" else {}
    lora = filled(networks, **conv)
    path = tmp_path / "thing.safetensors"
    save_lora(path, lora, networks.checkpoint, names, {"ss_steps": "7"})

    read = read_adapter(path, tiny_modules(family))  # refuses keys that nothing takes
    assert sum(map(len, read.changes.values())) == len(lora.places)
    for network, place, layer in lora.tensors():
        up, down = (w.detach().numpy() for w in (layer.up.weight, layer.down.weight))
        product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        shape = networks.checkpoint.shapes(network)[f"{place}.weight"]
        wanted = (product * (layer.alpha / layer.rank)).reshape(shape)
        found = difference(read, f"{place}.weight", np.zeros(shape, np.float32), network)
        assert_close("adapter", "float32", found, wanted)

    pipe = pipeline_of(checkpoints[family])
    pipe.load_lora_weights(str(path))
    generator = torch.Generator().manual_seed(1)
    width = networks.unet.config.cross_attention_dim
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, width)
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if family == "shallow-sdxl":
        added = {"text_embeds": torch.randn(1, 24), "time_ids": torch.rand(1, 6) * 64}
        ours, theirs = added, {"added_cond_kwargs": added}
    timestep = torch.tensor([300])
    with torch.no_grad():
        found_unet = networks.unet(x, timestep, context, **ours)
        wanted_unet = pipe.unet(x, timestep, context, **theirs).sample
        ids = torch.tensor([[49406, 320, 736, *[49407] * 74]])
        for part, encoder in networks.text_encoders.items():
            states, _, _ = encoder.forward_ids(ids, torch.tensor([3]))
            own = getattr(pipe, part)(ids, output_hidden_states=True).hidden_states
            assert_close("unet with a LoRA", "float32", states[-1], own[-1])
    assert_close("unet with a LoRA", "float32", found_unet, wanted_unet)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_an_embedding_is_read_by_diffusers_and_by_us(
    ending: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(checkpoints["tiny"])
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"thing{ending}"
    save_embedding(path, {"text_encoder": vectors}, "thing", 7, checkpoint)
    (read,) = read_embeddings(path)
    assert read.name == "thing" and np.array_equal(read.parts[""], vectors.numpy())
    pipe = pipeline_of(checkpoints["tiny"])
    pipe.load_textual_inversion(str(path), token="<thing>")
    ids = pipe.tokenizer.convert_tokens_to_ids(["<thing>", "<thing>_1", "<thing>_2"])
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], vectors)


def test_an_embedding_of_sdxl_has_vectors_for_both_encoders(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(checkpoints["tiny-sdxl"])
    vectors = {part: torch.randn(2, 32) for part in ("text_encoder", "text_encoder_2")}
    save_embedding(tmp_path / "thing.safetensors", vectors, "thing", 7, checkpoint)
    (read,) = read_embeddings(tmp_path / "thing.safetensors")
    for part, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        assert np.array_equal(read.parts[key], vectors[part].numpy())


def test_networks_are_read_by_diffusers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    task, made = prepared(checkpoints["tiny"], tmp_path, "controlnet")
    save_network(tmp_path / "control", made.model, torch.float32)  # type: ignore[arg-type]
    control = diffusers.ControlNetModel.from_pretrained(tmp_path / "control")
    for name, value in control.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    unet = task.networks.unet
    with torch.no_grad():
        unet.conv_in.weight.add_(1.0)
    save_whole(tmp_path / "whole", task.networks.checkpoint, {"unet": unet}, "fp32")
    pipe = pipeline_of(tmp_path / "whole")
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name]), name
    before = load_checkpoint(checkpoints["tiny"])
    after = load_checkpoint(tmp_path / "whole")
    assert after.tokenizer_files() == before.tokenizer_files()
    assert after.scheduler_config == before.scheduler_config
