"""Hypernetworks against torch's own modules, put together as web UIs document them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import assert_close
from torch import nn

from sdengine.benchmarks.seeded_hypernetworks import NAMES, WIDTH, network, save, state
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.hypernetworks import ACTIVATIONS, Hypernetwork, read_hypernetwork

# They have parameters, halve a width, mix numbers of a row, or need arguments.
NOT_TAKEN = {
    "glu", "multiheadattention", "prelu", "softmax", "softmax2d", "softmin", "logsoftmax",
    "threshold",
}  # fmt: skip


def assert_agrees(found: Hypernetwork, pairs: dict[int, Any], strength: float = 1.0) -> None:
    for width, pair in pairs.items():
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
        ours = found.added_to(x.numpy(), x.numpy(), strength)
        for one, module in zip(ours, pair, strict=True):
            with torch.no_grad():
                assert_close("hypernetwork", "float32", one, x + strength * module(x))


@pytest.mark.parametrize("activation", sorted(NAMES.keys() - NOT_TAKEN))
@pytest.mark.parametrize("activate_output", [False, True])
def test_every_activation(tmp_path: Path, activation: str, activate_output: bool) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"activation": activation, "activate_output": activate_output}
    pairs = {width: (network(width, **given), network(width, **given)) for width in (WIDTH, 8)}
    settings = {"activation_func": activation, "activate_output": activate_output}
    found = read_hypernetwork(save(tmp_path / "my net.pt", pairs, **settings))
    assert found.name == "my net" and found.networks.keys() == {WIDTH, 8}
    assert_agrees(found, pairs)


def test_the_activations_are_all_of_torch_but_those_named() -> None:
    assert ACTIVATIONS.keys() == NAMES.keys() - NOT_TAKEN


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dropout", [(), (0, 0.3, 0.3, 0), (0, 0.5, 0.1, 0.2)])
@pytest.mark.parametrize("activate_output", [False, True])
def test_numbers_of_parameters_depend_on_what_is_idle(
    tmp_path: Path, norm: bool, dropout: tuple[float, ...], activate_output: bool
) -> None:
    torch.manual_seed(1)
    structure = (1, 1.5, 2, 1)
    pairs = {
        WIDTH: [network(WIDTH, structure, "swish", norm, activate_output, dropout) for _ in "kv"]
    }
    path = save(
        tmp_path / "x.pt",
        pairs,
        layer_structure=list(structure),
        activation_func="swish",
        is_layer_norm=norm,
        activate_output=activate_output,
        dropout_structure=list(dropout) or None,
    )
    for strength in (1.0, 0.5, -1.0, 0.0):
        assert_agrees(read_hypernetwork(path), pairs, strength)


def test_what_old_files_leave_out(tmp_path: Path) -> None:
    torch.manual_seed(2)
    pair = [network(activation="relu") for _ in "kv"]
    saved = save(tmp_path / "a.pt", {WIDTH: pair}, activation_func="relu")
    assert_agrees(read_hypernetwork(saved), {WIDTH: pair})  # the last layer is activated too
    plain = [network() for _ in "kv"]
    names = {"linear.0": "linear1", "linear.1": "linear2"}
    old = [
        {names[key.rpartition(".")[0]] + "." + key.rpartition(".")[2]: v for key, v in s.items()}
        for s in map(state, plain)
    ]
    torch.save({WIDTH: tuple(old)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert_agrees(read_hypernetwork(tmp_path / "b.pt"), {WIDTH: plain})


def test_other_widths_stay(tmp_path: Path) -> None:
    found = read_hypernetwork(save(tmp_path / "a.pt", {WIDTH: [network(), network()]}))
    x = np.ones((1, 3, 12), np.float32)
    assert all(one is x for one in found.added_to(x, x))


def _scale(module: nn.Module, factor: float) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data *= factor


NAN = network()
next(iter(NAN.parameters())).data.fill_(float("nan"))
BAD: dict[str, tuple[dict[str, Any], dict[int, Any], str]] = {
    "activation": ({"activation_func": "softmax"}, {}, "activation_func 'softmax' is not accepted"),
    "structure": ({"layer_structure": [1, 2, 2, 1]}, {}, r"2 layers; .* \[1, 2, 2, 1\] asks for 3"),
    "factors": ({"layer_structure": [1, -2, 1]}, {}, "expected factors of the width"),
    "sizes": ({"layer_structure": [1, 3, 1]}, {}, r"a weight \[32, 16\] .* expected \[48, 16\]"),
    "width": ({}, {8: [network(), network()]}, r"width 8, keys: layer 1 has a weight \[32, 16\]"),
    "norm": ({"is_layer_norm": True}, {}, "is_layer_norm is True, but layer 1 has none"),
    "no norm": (
        {}, {WIDTH: [network(norm=True), network()]}, "is_layer_norm is False, but layer 1 has one",
    ),
    "NaN": ({}, {WIDTH: [network(), NAN]}, r"values: 'linear.0.weight' is F32 .* and holds NaN"),
    "one": ({}, {WIDTH: [network()]}, "expected one network for keys and one for values"),
    "nothing": ({}, {WIDTH: [nn.Sequential(), network()]}, "it has no parameters"),
    "conv": (
        {}, {WIDTH: [nn.Sequential(nn.Conv1d(1, 1, 1)), network()]}, "needs a weight and a bias",
    ),
    "norms": (
        {"is_layer_norm": True},
        {WIDTH: [nn.Sequential(*network(norm=True), nn.LayerNorm(WIDTH)), network(norm=True)]},
        "it has more norms than layers",
    ),
    "infinite": (
        {}, {WIDTH: [network(), network().double().apply(lambda m: _scale(m, 1e300))]}, "infinity",
    ),
    "huge": ({}, {1 << 20: [network(), network()]}, r"networks for the widths \[1048576\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_hypernetwork_is_named(tmp_path: Path, kind: str) -> None:
    settings, pairs, message = BAD[kind]
    path = save(tmp_path / "x.pt", pairs or {WIDTH: [network(), network()]}, **settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_hypernetwork(path)
    assert str(path) in str(caught.value)


def test_other_files_are_none_and_none_is_an_embedding(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it is no hypernetwork; expected networks by their"):
        read_hypernetwork(tmp_path / "a.pt")
    path = save(tmp_path / "b.pt", {WIDTH: [network(), network()]})
    with pytest.raises(
        ConfigError, match=r"'.*b\.pt' is a hypernetwork: give it with --hypernetwork"
    ):
        read_embeddings(path)
