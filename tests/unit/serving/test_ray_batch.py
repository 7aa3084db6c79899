"""Batches on Ray without Ray: what actors give, how long the driver waits, what it starts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import make_tiny_bundle

import sdengine.serving.ray_batch as ray_batch
from sdengine.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    DeviceError,
    DeviceLostError,
    OutputError,
)
from sdengine.serving import ray_cluster
from sdengine.serving.batch import BatchJob, RowMaker
from sdengine.serving.batch_rows import RowFile
from sdengine.serving.ray_batch import RowActor
from sdengine.serving.ray_cluster import RayOptions, import_ray, shares

SMALL = {"prompt": "a circle", "steps": 2, "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> BatchJob:
    (tmp_path / "out").mkdir()
    rows = [SMALL, {**SMALL, "steps": 0}, {**SMALL, "seed": 2}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    return BatchJob(path, tmp_path / "out", {"bundle": str(tiny)})


def asked(actor: RowActor, job: BatchJob, lines: int = 5) -> list[dict[str, Any]]:
    chunks = list(RowFile(job.requests).chunks(lines))
    batch = {name: np.array([getattr(one, name) for one in chunks]) for name in vars(chunks[0])}
    return [json.loads(text) for text in actor(batch)["record"]]


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_an_actor_gives_a_record_for_each_row(job: BatchJob, lines: int) -> None:
    found = asked(RowActor(job), job, lines)
    assert [(one["number"], one["status"]) for one in found] == [
        (1, "made"),
        (3, "error"),
        (5, "made"),
    ]
    assert all(one["content"]["row"] == one["number"] for one in found)


def test_an_engine_that_cannot_be_loaded_is_told_and_raised_by_the_driver(job: BatchJob) -> None:
    broken = BatchJob(job.requests, job.output, {"bundle": str(job.output)})
    (told,) = asked(RowActor(broken), broken)
    with pytest.raises(BundleError):
        raise ray_batch._error_of(told["fatal"])
    assert isinstance(ray_batch._error_of(["Exception", "x"]), Exception)
    assert isinstance(ray_batch._error_of(["os", "x"]), Exception)


def test_what_concerns_every_row_is_told_and_a_lost_device_ends_the_actor(
    job: BatchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = RowActor(job)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(RowMaker, "make", fail)
    error: Exception = OutputError("the disk is full")
    assert asked(actor, job) == [{"fatal": ["OutputError", "the disk is full"]}]
    error = DeviceLostError("gone")
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    assert asked(actor, job) == []
    assert ends == [1]


class Rows:
    """A data set of Ray: some rows, then what `end` does."""

    def __init__(self, *rows: str, end: Any = None) -> None:
        self.rows = rows
        self.end = end

    def iter_rows(self) -> Iterator[dict[str, str]]:
        yield from ({"record": row} for row in self.rows)
        if self.end is not None:
            self.end()


def test_the_driver_ends_a_batch_in_which_nothing_changes(
    job: BatchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_batch, "_LOOK_SECONDS", 0.01)
    assert list(ray_batch._watched(Rows("a", "b"), job, 60)) == ["a", "b"]
    never = threading.Event()
    watched = ray_batch._watched(Rows("a", end=never.wait), job, 0.1)
    assert next(watched) == "a"
    with pytest.raises(DeviceError, match=r"no row was finished for 0\.1 seconds"):
        next(watched)
    never.set()


def test_what_ends_ray_ends_the_batch(job: BatchJob) -> None:
    def end() -> None:
        raise RuntimeError("the cluster is gone")

    watched = ray_batch._watched(Rows("a", end=end), job, 60)
    assert next(watched) == "a"
    with pytest.raises(DeviceError, match="the cluster is gone"):
        next(watched)


class Cluster:
    """What Ray says of a cluster."""

    def __init__(self, cpus: int, gpus: float = 0.0, nodes: int = 1) -> None:
        self._found = {"CPU": float(cpus), "GPU": gpus}
        self._nodes = nodes

    def cluster_resources(self) -> dict[str, float]:
        return self._found

    def nodes(self) -> list[None]:
        return [None] * self._nodes


@pytest.mark.parametrize(
    ("cluster", "actors", "gpus", "threads", "expected"),
    [
        (Cluster(8), None, 0, None, (1, 8)),
        (Cluster(32, nodes=4), None, 0, None, (4, 8)),
        (Cluster(8), 3, 0, None, (3, 2)),
        (Cluster(8), 4, 0, 1, (4, 1)),
        (Cluster(16, gpus=4), None, 1, None, (4, None)),
        (Cluster(16, gpus=2), None, 0.5, 2, (4, 2)),
    ],
)
def test_shares_of_a_cluster(
    cluster: Cluster, actors: int | None, gpus: float, threads: int | None, expected: object
) -> None:
    options = RayOptions("auto", actors, gpus)
    assert shares(cluster, options, threads) == expected


@pytest.mark.parametrize(
    ("cluster", "actors", "gpus", "threads"),
    [
        (Cluster(2), 3, 0, None),
        (Cluster(8), 2, 0, 5),
        (Cluster(8), None, 1, None),
        (Cluster(8, gpus=1), 2, 1, None),
    ],
)
def test_more_than_a_cluster_has_is_refused(
    cluster: Cluster, actors: int | None, gpus: float, threads: int | None
) -> None:
    with pytest.raises(ConfigError, match="is not accepted"):
        shares(cluster, RayOptions("auto", actors, gpus), threads)


def test_a_local_cluster_is_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data")
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    environment = dict(os.environ)
    monkeypatch.setattr(os, "environ", environment)
    import_ray(RayOptions("auto"))
    assert environment["RAY_USAGE_STATS_ENABLED"] == environment["RAY_ENABLE_AUTO_CONNECT"] == "0"
    assert "RAY_AUTH_TOKEN" not in environment
    import_ray(RayOptions("local"))
    token = environment["RAY_AUTH_TOKEN"]
    assert environment["RAY_AUTH_MODE"] == "token" and len(token) == 64
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    import_ray(RayOptions("local"))
    assert environment["RAY_AUTH_TOKEN"] == token  # which Ray has read by then


@pytest.mark.parametrize(("address", "tries"), [("local", 2), ("10.0.0.1:6379", 1)])
def test_a_node_that_begins_too_slowly_is_started_again(
    address: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Cluster):
        def __init__(self, failures: int) -> None:
            super().__init__(8)
            self.failures, self.began, self.is_shut = failures, 0, False

        def init(self, **options: object) -> None:
            self.began += 1
            if self.began <= self.failures:
                raise Exception("The current node timed out during startup.")

        def shutdown(self) -> None:
            self.is_shut = True

    monkeypatch.setattr(ray_cluster, "_configure", lambda ray: None)
    monkeypatch.setattr(ray_cluster, "_require_listener", lambda address: None)
    slow = Slow(tries - 1)
    with ray_cluster.cluster(slow, RayOptions(address, actors=2), 2) as found:
        assert found == (2, 2) and slow.began == tries
    assert slow.is_shut
    never = Slow(9)
    with (
        pytest.raises(BackendUnavailableError, match="timed out during startup"),
        ray_cluster.cluster(never, RayOptions(address), 2),
    ):
        pass
    assert never.began == tries
