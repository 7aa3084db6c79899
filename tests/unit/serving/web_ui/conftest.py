"""A running server of the web UI's API, and clients by the names of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.served import serving
from support.tiny_bundle import make_tiny_bundle
from support.web_ui import Client, token

import sdengine
from sdengine.engine import Engine
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.service import Service
from sdengine.serving.tokens import Tokens


def write_upscaler(path: Path) -> None:
    """Write a network that makes each pixel four of them."""
    weight = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)[..., None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["c"]),
            helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
        ],
        "upscaler",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 17)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with sdengine.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(
    tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Service]]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "Fine Tune.safetensors").write_bytes(b"nothing")
    folders = {
        "lora": tmp_path_factory.mktemp("loras"),
        "upscaler": tmp_path_factory.mktemp("onnx"),
    }
    write_upscaler(folders["upscaler"] / "Twice.onnx")
    catalogue = Catalogue({"model": folder, **folders})
    tokens = Tokens([token("ann"), token("ben"), token("cleo")])
    with serving({"tiny": tiny_engine}, catalogue=catalogue, tokens=tokens) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[Client]:
    """Return clients by the names of their tokens."""
    opened: list[httpx.Client] = []

    def of(name: str) -> httpx.Client:
        one = httpx.Client(base_url=server[0], auth=("any", f"secret of {name}"), timeout=60)
        opened.append(one)
        return one

    yield of
    for one in opened:
        one.close()
