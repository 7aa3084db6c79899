from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.triton_clients import exported
from support.triton_server import Server

import sdengine
from sdengine.engine import Engine
from sdengine.request.request import Request


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def batched_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("models"), max_batch=8)


@pytest.fixture(scope="module")
def batched(batched_model: Path) -> Iterator[Server]:
    with Server(batched_model) as server:
        yield server


@pytest.fixture(scope="module")
def unbatched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(exported(tmp_path_factory.mktemp("models"))) as server:
        yield server


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that engines run."""
    kept: list[Request] = []
    run = Engine.run

    def keep(self: Engine, request: Request, **options: Any) -> Any:
        kept.append(request)
        return run(self, request, **options)

    monkeypatch.setattr(Engine, "run", keep)
    return kept
