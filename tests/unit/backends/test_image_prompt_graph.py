"""Image prompts in a native U-Net: the demo model's attends to keys and values beside text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend, NativeModule
from sdengine.backends.native.graph import read_graph
from sdengine.backends.native.image_prompt_graph import with_image_prompts
from sdengine.bundle.image_prompts import cross_attentions, parse_prompt_input, prompt_inputs
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BundleError
from sdengine.pipeline.ip_adapter_plan import unet_layers

BUNDLE = open_bundle("demo")
LAYERS = unet_layers(BUNDLE)
Arrays = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def unet(request: pytest.FixtureRequest) -> Iterator[NativeModule]:
    session = NativeBackend().open(BUNDLE, SessionOptions(precision=request.param, threads=1))
    sizes = {"batch": 2, "height": 64, "width": 64, "sequence": 77}
    shapes = resolve_shapes("unet", BUNDLE.network("unet").inputs, sizes)
    module = session.load("unet", shapes)
    assert isinstance(module, NativeModule)
    yield module
    module.close()
    session.close()


def inputs(unet: NativeModule) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    left_out = unet.zero_unless_given()
    return {
        spec.name: rng.standard_normal([int(n) for n in spec.shape]).astype(np.float32)
        for spec in unet.inputs
        if spec.name not in left_out
    }


def prompts(adapter: int, tokens: int, layers: Any = LAYERS, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(adapter)
    found = {}
    for layer in layers:
        shape = (2, tokens, LAYERS[layer][0])
        for name, factor in zip(prompt_inputs(adapter, layer), (1.0, scale), strict=True):
            found[name] = (rng.standard_normal(shape) * factor).astype(np.float32)
    return found


def run(unet: NativeModule, *given: Arrays) -> np.ndarray[Any, Any]:
    merged: dict[str, Any] = inputs(unet)
    for one in given:
        merged |= one
    return np.array(unet.run(merged)["noise_pred"])


def test_values_of_zero_add_nothing(unet: NativeModule) -> None:
    plain = run(unet)
    np.testing.assert_array_equal(run(unet, prompts(0, 4, scale=0)), plain)
    assert np.abs(run(unet, prompts(0, 4)) - plain).max() > 0.01
    np.testing.assert_array_equal(run(unet), plain)


def test_adapters_add_up_and_layers_are_apart(unet: NativeModule) -> None:
    """Values split between two adapters of the same keys give what one of their sum gives."""
    whole = prompts(0, 4)
    halves: dict[str, Any] = {}
    for adapter in (0, 1):
        for layer in LAYERS:
            names, own = prompt_inputs(0, layer), prompt_inputs(adapter, layer)
            halves |= {own[0]: whole[names[0]], own[1]: whole[names[1]] / 2}
    assert_close("unet", unet.prepared.dtype, run(unet, halves), run(unet, whole))
    first, *_ = LAYERS
    only = run(unet, prompts(0, 4, [first]))
    assert not np.array_equal(only, run(unet)) and not np.array_equal(only, run(unet, whole))


def test_one_token_gives_its_values(unet: NativeModule) -> None:
    """Whatever the queries are, attention over one token gives that token's values."""
    given = prompts(0, 1)
    other = {
        name: x * (2 if (parse_prompt_input(name) or (0, "", False))[2] else 1)
        for name, x in given.items()
    }
    np.testing.assert_array_equal(run(unet, given), run(unet, other))


def test_layouts_of_other_pictures_are_freed(unet: NativeModule) -> None:
    residual = next(s for s in unet.inputs if s.name in unet.zero_unless_given())
    added = {residual.name: np.ones([int(n) for n in residual.shape], np.float32)}
    for tokens in (4, 7):
        with_both = run(unet, prompts(0, tokens), added)
        assert not np.array_equal(with_both, run(unet, prompts(0, tokens)))
        assert unet._laid_out is not None
        assert sum(bool(prompts) for _, prompts in unet._laid_out._layouts) == 2
    np.testing.assert_array_equal(run(unet, added), run(unet, added, prompts(0, 4, scale=0)))


def test_order_and_names() -> None:
    blocks = ("down_blocks.0", "down_blocks.10", "up_blocks.2", "mid_block")
    names = [
        f"{block}.attentions.{a}.transformer_blocks.{t}.attn2.to_k.weight"
        for block in blocks[::-1]
        for a in (1, 0)
        for t in (10, 2)
    ]
    others = ["conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"]
    shapes = dict.fromkeys([*others, *names], (6, 5))
    found = cross_attentions(shapes)
    assert list(found) == [name.removesuffix(".attn2.to_k.weight") for name in names[::-1]]
    assert set(found.values()) == {(6, 5)}
    assert parse_prompt_input(prompt_inputs(3, "a.b")[1]) == (3, "a.b", False)
    for odd in ("image_keys_.a", "image_keys_1", "sample", "image_keys_x.a"):
        assert parse_prompt_input(odd) is None


def test_layers_that_are_not_there_are_named() -> None:
    graph = read_graph(BUNDLE.path("unet.graph.json"))
    with pytest.raises(BundleError, match=r"unet: it has no cross-attention 'mid_block\.x'"):
        with_image_prompts(graph, prompt_inputs(0, "mid_block.x"))
