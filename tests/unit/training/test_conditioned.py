"""What variants of the demo model are told: masks, depth maps and edges of drawn scenes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from sdengine.training import conditioned
from sdengine.training.conditioned import DepthTask, Example, InpaintingTask
from sdengine.training.demo_parts import DemoParts
from sdengine.training.layered import layered_scene, object_mask
from sdengine.training.loop import Draw
from sdengine.training.masks import KINDS, random_mask
from sdengine.training.scenes import COLORS, Scene, render
from sdengine.training.vae import to_tensor


@pytest.fixture(scope="module")
def parts() -> DemoParts:
    return DemoParts.load()


def test_masks_of_every_kind_are_drawn() -> None:
    rng = random.Random(0)
    drawn = [random_mask(rng, 64) for _ in range(400)]
    shares = {kind: count / 400 for kind, count in Counter(kind for kind, _ in drawn).items()}
    assert set(shares) == set(KINDS)
    assert all(abs(shares[kind] - share) < 0.06 for kind, share in KINDS.items())
    for kind, mask in drawn:
        assert mask.shape == (64, 64) and mask.dtype == bool
        assert mask.all() == (kind == "everything") and mask.any()
    # A stroke is thinner than a rectangle, so it covers less of the box around it.
    filled = {kind: np.mean([_share_of_box(m) for k, m in drawn if k == kind]) for kind in KINDS}
    assert filled["rectangle"] == 1 > filled["blobs"] > filled["strokes"] > 0.2


def _share_of_box(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> float:
    ys, xs = np.nonzero(mask)
    return float(mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].mean())


def test_a_mask_of_nine_channels_hides_the_picture(parts: DemoParts) -> None:
    task = InpaintingTask(parts.unet, parts)
    draw = Draw.at(0, 0)
    example = task.example(draw, 128)
    free = np.zeros((128, 128), bool)
    free[17:18, 30:31] = True  # a single pixel, whose whole cell may change
    free[64:] = True
    mixed = Example(example.scene, example.picture, free)
    everything = Example(example.scene, example.picture, np.ones_like(free))
    found = task.condition([mixed, everything])
    assert found.shape == (2, 5, 16, 16)
    assert found[0, 0, 2, 3] == 1 and found[0, 0, :8].sum() == 1 and found[0, 0, 8:].all()
    assert found[1, 0].all()
    # Hidden pixels are 0 in [-1,1]: neither black nor what was there.
    left = to_tensor([example.picture])
    left[:, :, torch.from_numpy(free)] = 0
    both = parts.encode(torch.cat([left, torch.zeros(1, 3, 128, 128)]))
    torch.testing.assert_close(found[:, 1:], both, rtol=0, atol=0)
    black = parts.encode(-torch.ones(1, 3, 128, 128))
    assert (both[1:] - black).abs().mean() > 0.1


def test_depth_is_read_as_the_engine_reads_it(parts: DemoParts) -> None:
    task = DepthTask(parts.unet, parts)
    examples = [task.example(Draw.at(0, i), 128) for i in range(8)]
    found = task.condition(examples)
    assert found.shape == (8, 1, 16, 16)
    for example, told in zip(examples, found, strict=True):
        assert told.min() == -1 and told.max() == 1
        background = np.asarray(COLORS[example.scene.background])
        distance = np.abs(example.picture[4::8, 4::8].astype(int) - background).max(axis=2)
        # Where there is nothing the map is lowest.
        assert (told[0].numpy()[distance < 8] < -0.5).mean() > 0.97


def test_depth_is_learned_of_both_orders_at_once(parts: DemoParts) -> None:
    given: list[Tensor] = []

    class Watched(DepthTask):
        def predict(
            self, model: nn.Module, x: Tensor, timestep: Tensor, context: Tensor, condition: Tensor
        ) -> Tensor:
            given[:] = x, timestep, context, condition
            return x

    task = Watched(parts.unet, parts, 8)
    timesteps = []
    for i in range(20):
        task.loss(Draw.at(0, i), 0.0)
        x, timestep, context, condition = given
        for one in (timestep, context):
            assert torch.equal(one[::2], one[1::2])
        timesteps += timestep.tolist()
        # Where maps agree so do latents, but for what the encoder makes of the rest, and the noise.
        moved = (x[::2] - x[1::2]).abs().amax(dim=1)
        assert not torch.equal(condition[::2], condition[1::2]) and moved.max() > 0.1
        assert moved[:, 0, 0].max() < 0.2
    assert np.mean(timesteps) > 700  # mostly while the order is decided
    known = list(task._known.values())
    assert {one.covered.max().item() for one in known} == {0, 1}
    covering = [one for one in known if len(one.scene.objects) == 2]
    assert 0.8 < len(covering) / len(known) < 1
    again = Watched(parts.unet, parts, 8)._orders(*next(iter(task._known))[::-1])
    assert torch.equal(again.latents, known[0].latents)  # a resumed training sees the same


def test_a_wrong_order_counts_where_it_is_seen_and_can_be_known(
    parts: DemoParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Saying(DepthTask):
        text = ""

        def _caption(self, scene: Scene, rng: random.Random) -> str:
            return self.text

    found: list[Tensor] = []

    def watched(*given: Any, apart: Tensor, **options: Any) -> tuple[Tensor, dict[str, float]]:
        found.append(apart)
        return torch.zeros(()), {}

    monkeypatch.setattr(conditioned, "v_loss", watched)
    for text in ("a red circle", ""):
        task = Saying(parts.unet, parts, 16)
        task.text = text
        task.loss(Draw.at(0, 0), 0.0)
    told, untold = found
    assert told.shape == (16, 16, 16) and not untold.any()
    assert torch.equal(told[::2], told[1::2]) and (told.amax(dim=(1, 2)) > 0).sum() >= 12
    assert 0 < (told > 0).float().mean() < 0.2


def test_the_nearer_object_covers_the_other() -> None:
    rng = random.Random(1)
    covered = 0
    for i in range(40):
        layered = layered_scene(rng, num_objects=2, held_out=i % 2 == 1)
        assert layered.scene.held_out == (i % 2 == 1)
        masks = [object_mask(o, 128) for o in layered.scene.objects]
        both = masks[0] & masks[1]
        core = ndimage.binary_erosion(both)  # without what the outlines blend
        covered += bool(core.any())
        for one in (layered, layered.reversed):
            near = one.scene.objects[one.nearest]
            pixels = one.render(np.random.default_rng(0))[core].astype(int)
            assert np.abs(pixels - np.asarray(COLORS[near.color])).max(initial=0) <= 6
            depth = one.depth()
            assert (depth[both] == max(one.nearness)).all()
            assert (depth[~masks[0] & ~masks[1]] == 0).all()
    assert 20 <= covered < 40


def test_moved_objects_stay_in_the_picture_and_where_captions_say() -> None:
    rng = random.Random(2)
    for _ in range(200):
        scene = layered_scene(rng).scene
        for o in scene.objects if scene.place is None else ():
            mask = object_mask(o, 64)
            assert not (mask[[0, -1]].any() or mask[:, [0, -1]].any())
        if scene.relation is not None:
            dx, dy = (getattr(scene.objects[1], a) - getattr(scene.objects[0], a) for a in "xy")
            along, across = (dx, dy) if scene.relation in ("left", "right") else (dy, dx)
            assert abs(along) > 2 * abs(across)
            assert (along > 0) == (scene.relation in ("left", "above"))


def test_a_scene_in_layers_is_drawn_as_it_would_be_without() -> None:
    layered = layered_scene(random.Random(3), num_objects=1)
    drawn = layered.render(np.random.default_rng(5), 64)
    assert (drawn == render(layered.scene, np.random.default_rng(5), size=64)).all()
