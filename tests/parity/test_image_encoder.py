"""Image encoder against transformers': preprocessing, the network, its files, the native one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.ip_adapters import IMAGE, PATCH, image_processor, picture, save_encoder
from tolerances import assert_close

from sdengine.checkpoints.image_encoder import open_image_encoder
from sdengine.compilers.base import CompileSpec
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.clip_pictures import clip_pixels, patches
from sdengine.inputs.picture import Picture, read_picture


def read(pixels: Any) -> Picture:
    found = read_picture("image", pixels)
    assert isinstance(found, Picture)
    return found


@pytest.mark.parametrize(("width", "height"), [(50, 41), (41, 50), (28, 28), (9, 30), (300, 301)])
def test_pictures_are_prepared_as_by_transformers(width: int, height: int) -> None:
    pixels = picture(1, width, height)
    found = clip_pixels(read(pixels), IMAGE)
    wanted = image_processor()(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(found, wanted)


def test_a_very_long_picture_takes_little_memory() -> None:
    pixels = np.repeat(picture(1, 2, 2), 10_000, axis=1)
    assert clip_pixels(read(pixels), 224).shape == (3, 224, 224)


@torch.no_grad()
def test_states_and_embeddings_are_the_same(tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    folder = save_encoder(tmp_path / "image_encoder")
    theirs: Any = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    pixels = np.stack([clip_pixels(read(picture(seed)), IMAGE) for seed in (0, 1)])
    wanted = theirs(torch.from_numpy(pixels), output_hidden_states=True)
    given = torch.from_numpy(np.concatenate([patches(one, PATCH) for one in pixels]))
    for place in (folder, tmp_path):  # the folder itself, or one that it is in
        source = open_image_encoder(place)
        states, embeds = source.load("image_encoder")(given)
        assert_close("text_encoder", "float32", states, wanted.hidden_states[-2])
        assert_close("text_encoder", "float32", embeds[:, 0], wanted.image_embeds)
        assert source.ignored == {}


@torch.no_grad()
def test_the_native_network_is_the_same(tmp_path: Path) -> None:
    from sdengine.backends.native.graph import read_graph
    from sdengine.backends.native.laid_out_network import LaidOutNetwork
    from sdengine.backends.native.layout import lay_out
    from sdengine.backends.native.map_sizes import map_sizes
    from sdengine.backends.native.methods import choose_methods
    from sdengine.backends.native.packing import pack, plan_packing
    from sdengine.compilers.native.compile import compile_native
    from sdengine.export.network import export_network
    from sdengine.storage.tensor_file import map_tensors

    module = open_image_encoder(save_encoder(tmp_path / "encoder")).load("image_encoder")
    exported = export_network("image_encoder", module, tmp_path)
    compile_native(exported, tmp_path, CompileSpec(precision="fp32", sizes=((64, 64),), batch=1))
    graph = read_graph(tmp_path / "image_encoder.graph.json")
    given = patches(clip_pixels(read(picture()), IMAGE), PATCH)
    shapes = {"patches": given.shape}
    sizes = map_sizes(graph, shapes)
    weights = map_tensors(tmp_path / "image_encoder.safetensors")
    chosen, packing = plan_packing(choose_methods(graph, sizes, "fp32"), sizes, weights)
    packed = dict(pack(packing, weights))
    network = LaidOutNetwork(lay_out(chosen, shapes, "float32"), packed, 1)
    network.write({"patches": given})
    network.network.run()
    for name, wanted in zip(("states", "embeds"), module(torch.from_numpy(given)), strict=True):
        assert_close("native network", "float32", network.outputs[name], wanted)


def test_what_is_no_image_encoder_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")

    def told(match: str, tensors_: Any = tensors, **changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        save_file(tensors_, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=match):
            list(open_image_encoder(folder).tensors("image_encoder"))

    told(r"it is of \['CLIPTextModel'\]; expected CLIPVis", architectures=["CLIPTextModel"])
    told(r"image_encoder\.patch_size: 32 .*encoders of 14", patch_size=32, image_size=64)
    told(r"image_encoder\.hidden_act: 'mish'", hidden_act="mish")
    told(r"image_encoder\.image_size: 29", image_size=29)
    told(r"image_encoder\.rotary: 1 .* a key that is known", rotary=1)
    told(r"position_embedding.weight' has shape \[17, 32\]; .*\[26, 32\]", image_size=35)
    token = "vision_model.embeddings.class_embedding"
    without = {name: one for name, one in tensors.items() if name != token}
    told(r"1 of 1 tensors are missing, first 'vision_model.embeddings.class_emb", without)
    told(r"class_embedding' has shape \[3\]", {**tensors, token: torch.zeros(3)})
    for odd in (tmp_path / "none", folder / "config.json", "a\0b"):
        with pytest.raises(CheckpointError, match=r"image_encoder: .* is no folder. Give one as"):
            open_image_encoder(odd)
    with pytest.raises(ConfigError, match="image_encoder: 3"):
        open_image_encoder(3)  # type: ignore[arg-type]


def test_only_the_native_target_takes_one(tmp_path: Path) -> None:
    import sdengine

    with pytest.raises(ConfigError, match=r"image_encoder: .*target torch, .*Build for target nat"):
        sdengine.build("demo", tmp_path / "x", target="torch", image_encoder=tmp_path)
