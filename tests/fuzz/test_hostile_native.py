"""Damaged graphs, weights and plans of the native target: only typed errors may come out."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_ops import attention, conv, group_norm, linear, winograd

from sdengine import _native
from sdengine.backends.native.graph import parse_graph
from sdengine.backends.native.layout import lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import choose_methods
from sdengine.backends.native.packing import plan_packing
from sdengine.bundle.reader import open_bundle
from sdengine.errors import BundleError, OutOfMemoryError
from sdengine.storage.tensor_file import map_tensors, write_tensors

PLANS = 4000
GRAPHS = 1500
WEIGHT_FILES = 20_000
_ODD = (0, 1, -1, 2, 3, 7, 31, 33, 1 << 15, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 40, -(1 << 40))


def _operations() -> list[Any]:
    x = np.ones((2, 6, 6, 32), np.float32)
    kernel, vector = np.ones((32, 32, 3, 3), np.float32), np.ones(32, np.float32)
    tokens = x.reshape(2, 1, 36, 32)
    return [
        linear(tokens, kernel[:, :, 0, 0], vector, residual=tokens),
        linear(tokens, kernel[:, :, 0, 0], kind="int8", dtype="bfloat16"),
        linear(tokens, kernel[:, :, 0, 0], vector, activation="geglu"),
        conv(x, kernel, vector, stride=2),
        winograd(x, kernel, vector, kind="int16", dtype="bfloat16"),
        group_norm(x, vector, vector, 8),
        attention(tokens, tokens, tokens, 2, dtype="bfloat16"),
    ]


def _leaves(node: Any) -> list[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in items:
        if isinstance(value, (dict, list)):
            found += _leaves(value)
        else:
            found.append((node, key))
    return found


def _mutate(rng: random.Random, record: Any) -> None:
    place, key = rng.choice(_leaves(record))
    value = place[key]
    if isinstance(value, (bool, str)):
        words = [
            "",
            "linear",
            "conv",
            "float32",
            "bfloat16",
            "int64",
            "int8",
            "int16",
            "geglu",
            "x",
        ]
        place[key] = rng.choice(words)
    elif rng.random() < 0.5:
        place[key] = rng.choice(_ODD)
    else:
        place[key] = value + rng.choice((-64, -8, -1, 1, 8, 64))
    if rng.random() < 0.1:
        del place[key]


def test_mutated_plans_run_or_are_refused() -> None:
    rng = random.Random(0)
    operations = _operations()
    outcomes = {"refused": 0, "ran": 0}
    for _ in range(PLANS):
        operation = rng.choice(operations)
        record = copy.deepcopy(operation.record)
        for _ in range(rng.randint(1, 3)):
            _mutate(rng, record)
        try:
            network = _native.Network([record], operation.weights, 2, "")
            if network.arena_bytes + network.scratch_bytes < 64 << 20:
                network.run()
            outcomes["ran"] += 1
        except (BundleError, OutOfMemoryError):
            outcomes["refused"] += 1
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            # A field is missing or of another type; a graph's reader never lets that through.
            assert not isinstance(error, MemoryError)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > PLANS // 20, outcomes


def test_shortened_weights_are_refused() -> None:
    for operation in _operations():
        for role, values in operation.weights.items():
            shorter = dict(operation.weights)
            shorter[role] = values.reshape(-1)[:-1]
            with pytest.raises(BundleError, match="bytes of"):
                _native.Network([operation.record], shorter, 1, "")


def test_mutated_graphs_are_laid_out_or_refused() -> None:
    rng = random.Random(1)
    bundle = open_bundle("demo")
    text = bundle.path("vae_decoder.graph.json").read_bytes()
    weights = map_tensors(bundle.path("vae_decoder.safetensors"))
    plain = json.loads(text)
    refused = 0
    for _ in range(GRAPHS):
        content = copy.deepcopy(plain)
        _mutate(rng, content)
        try:
            graph = parse_graph(json.dumps(content).encode(), "mutated")
            sizes = map_sizes(graph, {"latents": (1, 4, 8, 8)})
            graph, _ = plan_packing(choose_methods(graph, sizes, "bf16"), sizes, weights)
            lay_out(graph, {"latents": (1, 4, 8, 8)}, "bfloat16")
        except BundleError:
            refused += 1
    assert GRAPHS // 3 < refused < GRAPHS


def test_damaged_weight_files_are_refused(tmp_path: Path) -> None:
    rng = random.Random(2)
    path = tmp_path / "a.weights"
    tensors: dict[str, Any] = {"a": np.arange(64, dtype=np.uint8), "b": np.ones(7, np.float32)}
    kinds = {"a": ("U8", (64,)), "b": ("F32", (7,))}
    write_tensors(path, kinds, iter(tensors.items()))
    found = map_tensors(path)
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    for _ in range(WEIGHT_FILES):
        content = bytearray(whole)
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.randint(1, 4)):
            if content:
                content[rng.randrange(min(len(content), 300))] = rng.randrange(256)
        damaged = tmp_path / "b.weights"
        damaged.write_bytes(content)
        try:
            for tensor in map_tensors(damaged).values():
                tensor.sum()
        except BundleError:
            continue
