from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.triton_clients import RED, message, one
from support.triton_server import Server

from sdengine.engine import Engine
from sdengine.errors import ConfigError, OutOfMemoryError
from sdengine.machine import Processors
from sdengine.request.request import Request
from sdengine.serving import triton_model


def test_a_model_may_have_fewer_tensors(batched_model: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["input"] = [one for one in config["input"] if one["name"] in ("PROMPT", "STEPS")]
        config["output"] = config["output"][1:2]
        config["parameters"]["precision"]["string_value"] = "fp32"
        config["parameters"]["max_steps"]["string_value"] = "2"

    with Server(batched_model, changes=change) as server:
        assert list(server.infer(PROMPT=[[RED]], STEPS=[[2]])) == ["SEEDS"]
        assert "max_steps" in message(server.refused(PROMPT=[[RED]], STEPS=[[3]]))[1]
        assert "precision fp32" in server.log.lines[0][1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["input"][0].update(name="TEXT"), "no input is called PROMPT or prompt"),
        (lambda c: c["input"][1].update(name="TEXT"), "config.pbtxt: input: 'TEXT'"),
        (
            lambda c: c["input"][2].update(data_type="TYPE_INT32"),
            "config.pbtxt: SEED: 'TYPE_INT32'",
        ),
        (lambda c: c["output"][0].update(name="PICTURES"), "config.pbtxt: output: 'PICTURES'"),
        (lambda c: c["output"][0].update(data_type="TYPE_INT64"), "config.pbtxt: IMAGES"),
        (lambda c: c["parameters"].update(speed={"string_value": "1"}), "parameters: 'speed'"),
        (lambda c: c["parameters"].update(threads={"string_value": "-1"}), "threads: '-1'"),
        (lambda c: c["parameters"].update(threads={"string_value": "0"}), "threads: 0"),
        (lambda c: c["parameters"].update(max_pixels={"string_value": "0"}), "max_pixels: 0"),
        (lambda c: c["parameters"].update(max_steps={"string_value": "2000"}), "max_steps: 2000"),
        (lambda c: c["parameters"].update(precision={"string_value": "fp8"}), "precision: 'fp8'"),
        (lambda c: c["parameters"].update(backend={"string_value": "cuda"}), "backend: 'cuda'"),
    ],
)
def test_a_configuration_that_is_not_known_loads_no_model(
    batched_model: Path, change: Any, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Server(batched_model, changes=change)
    assert told in str(caught.value)


def test_the_servers_own_parameters_are_left_to_it(batched_model: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": "/opt/environment"}

    with Server(batched_model, changes=change) as server:
        assert server.infer(**one(RED))


@pytest.mark.parametrize(
    ("instances", "threads", "wanted"), [(1, "", 8), (3, "", 2), (20, "", 1), (3, "5", 5)]
)
def test_instances_on_a_cpu_share_its_processors(
    batched_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    instances: int,
    threads: str,
    wanted: int,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["instance_group"] = [{"count": instances, "kind": "KIND_CPU"}]
        config["parameters"]["threads"]["string_value"] = threads

    monkeypatch.setattr(triton_model, "usable_processors", lambda: Processors(8))
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(triton_model, "load", lambda place, **given: loaded.append(given))
    with pytest.raises(AttributeError):  # nothing was loaded
        Server(batched_model, changes=change)
    assert (loaded[0]["threads"], loaded[0]["device"]) == (wanted, None)


def test_an_instance_on_a_gpu_takes_its_own(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(triton_model, "load", lambda place, **given: loaded.append(given))
    with pytest.raises(AttributeError):
        Server(batched_model, kind="GPU", device=3)
    assert (loaded[0]["threads"], loaded[0]["device"]) == (None, 3)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="device"):  # which a bundle for CPUs has no use for
        Server(batched_model, kind="GPU", device=0)


@pytest.mark.parametrize("count", [1, 4])
def test_first_requests_load_nothing(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Those of one picture, and those of as many as the bundle makes at once."""
    kept = []
    run = Engine.run

    def keep(self: Engine, request: Request, **options: Any) -> Any:
        kept.append(run(self, request, **options))
        return kept[-1]

    monkeypatch.setattr(Engine, "run", keep)
    with Server(batched_model) as server:
        server.infer_all([one(f"{number} {RED}", number) for number in range(count)])
    assert [result.timings.load_ms for result in kept] == [0]


def test_a_model_that_fails_to_warm_up_is_closed(
    batched_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Engine, **options: Any) -> None:
        raise OutOfMemoryError("no room")

    def count(self: Engine) -> None:
        closed.append(self)
        close(self)

    closed: list[Engine] = []
    close = Engine.close
    monkeypatch.setattr(Engine, "warm_up", fail)
    monkeypatch.setattr(Engine, "close", count)
    with pytest.raises(OutOfMemoryError, match="no room"):
        Server(batched_model)
    assert len(closed) == 1
