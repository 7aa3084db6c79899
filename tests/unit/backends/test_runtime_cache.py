"""Kept kernels of an engine, on objects in the place of TensorRT's."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdengine.backends import cache_file
from sdengine.backends.cache_file import cache_path, driver_version, load, save
from sdengine.backends.tensorrt import runtime_cache
from sdengine.backends.tensorrt.runtime_cache import (
    KIND,
    RuntimeCache,
    RuntimeKey,
)

KEY = RuntimeKey("1.7.1", "NVIDIA GeForce RTX 4090", 89, "580.10", "ab" * 32)


class Kernels:
    """A cache that starts empty; `content` is what it writes."""

    def __init__(self, given: list[bytes], content: Any, accepts: bool) -> None:
        self.given = given
        self.content = content
        self.accepts = accepts

    def deserialize(self, blob: bytes) -> bool:
        self.given.append(blob)
        return self.accepts

    def serialize(self) -> Any:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


class Engine:
    """Makes configurations; `made` are their caches, `given` what those were given."""

    def __init__(self, content: Any = b"compiled", accepts: bool = True, takes: Any = True) -> None:
        self.given: list[bytes] = []
        self.made: list[Kernels] = []
        self.set: list[tuple[str, object]] = []
        self.content, self.accepts, self.takes = content, accepts, takes

    def create_runtime_config(self) -> SimpleNamespace:
        def create() -> Kernels:
            self.made.append(Kernels(self.given, self.content, self.accepts))
            return self.made[-1]

        def use(cache: Kernels) -> bool:
            if isinstance(self.takes, Exception):
                raise self.takes
            self.set.append(("cache", cache))
            return bool(self.takes)

        return SimpleNamespace(
            create_runtime_cache=create,
            set_runtime_cache=use,
            set_execution_context_allocation_strategy=lambda s: self.set.append(("strategy", s)),
        )


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "kept"))
    return cache_path(KIND, KEY, KEY.engine[:32])


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_what_was_compiled_is_there_for_the_next(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, engine = RuntimeCache(KEY), Engine()
    first.save()  # no context was made yet
    assert not place.exists()
    assert first.config(engine, "user") is not None
    assert first.config(engine, "user") is not None
    assert len(engine.made) == 1 and engine.given == []
    assert engine.set == [("strategy", "user"), ("cache", engine.made[0])] * 2
    first.save()
    assert load(place, KIND, KEY).content == b"compiled"
    assert os.listdir(place.parent) == [place.name]
    second, engine = RuntimeCache(KEY), Engine()
    second.config(engine, "user")
    assert engine.given == [b"compiled"]
    os.utime(place, (0, 0))
    second.save()
    assert place.stat().st_mtime == 0  # nothing changed
    engine.made[0].content = memoryview(b"compiled, and more")
    second.save()
    second.save()
    assert load(place, KIND, KEY).content == b"compiled, and more"
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"driver": "580.11"}, "driver 580.10, engine abababababab, and this is .*driver 580.11"),
        ({"version": "1.8.0"}, "it holds for TensorRT 1.7.1 on"),
        ({"gpu": "NVIDIA L4"}, r"4090 \(8.9\), .* this is TensorRT 1.7.1 on NVIDIA L4"),
        ({"compute_capability": 120}, r"\(12.0\)"),
        ({"engine": "cd" * 32}, "engine cdcdcdcdcdcd"),
    ],
)
def test_kernels_of_others_are_not_used(
    change: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = replace(KEY, **change)
    place = cache_path(KIND, key, key.engine[:32])
    save(place, KIND, KEY, b"compiled")  # as after an update, or copied there by hand
    cache, engine = RuntimeCache(key), Engine(b"fresh")
    assert cache.config(engine, "user") is not None
    (message,) = told(caplog)
    assert f"runtime cache {place} is not used" in message
    assert re.search(expected, message)
    assert engine.given == []
    cache.save()
    assert load(place, KIND, key).content == b"fresh"


def damaged(whole: bytes) -> list[bytes]:
    start = len(KIND.magic)
    header, _, _ = whole[start:].partition(b"\n")
    ends = (start, start + 1, start + len(header), len(whole) - 1)
    return [
        *(whole[:end] for end in ends),
        whole + b"x",
        whole[:-1] + b"!",
        whole[:start] + b"[]\n",
        whole[:start] + b"{" * 5000 + b"\n",
        whole[:start] + b"\xff\xfe\n",
        whole.replace(b": 89", b": true"),
        whole.replace(b": 89", b": 89.0"),
        whole.replace(b"580.10", b"\\u001b[2J"),
        whole.replace(b'"580.10"', b"580.10"),
    ]


def test_damaged_files_are_not_used_and_replaced(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(place, KIND, KEY, b"compiled")
    for content in damaged(place.read_bytes()):
        place.write_bytes(content)
        cache, engine = RuntimeCache(KEY), Engine(b"fresh")
        assert cache.config(engine, "user") is not None
        assert engine.given == []
        assert told(caplog) == [f"runtime cache {place} is not used: it is damaged"]
        cache.save()
        assert load(place, KIND, KEY).content == b"fresh"


def test_a_file_beyond_all_measure_is_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(place, KIND, KEY, b"compiled")
    with place.open("r+b") as file:
        file.truncate(1 << 40)  # a hole; reading it would take a terabyte
    assert RuntimeCache(KEY).config(Engine(), "user") is not None
    assert f"it has more than {1 << 28} bytes" in told(caplog)[0]
    monkeypatch.setattr(runtime_cache, "MAX_BYTES", 7)
    cache = RuntimeCache(KEY)
    cache.config(Engine(), "user")
    before = place.stat()
    caplog.clear()
    cache.save()
    assert told(caplog) == [
        f"runtime cache {place} cannot be written: it would have 8 bytes; 7 are kept"
    ]
    assert place.stat() == before


def test_files_of_another_kind_are_left_alone(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.parent.mkdir(parents=True)
    for content in (b"precious", b"sdengine runtime cache 2\n{}\n", b"sdengine timing cache 1\n"):
        place.write_bytes(content)
        cache, engine = RuntimeCache(KEY), Engine()
        assert cache.config(engine, "user") is not None
        cache.save()
        assert place.read_bytes() == content
        assert "no runtime cache of sdengine, and is left alone" in told(caplog)[0]
    place.unlink()
    os.mkfifo(place)
    cache = RuntimeCache(KEY)
    assert cache.config(Engine(), "user") is not None  # without waiting for a writer
    cache.save()
    assert place.is_fifo()
    assert "no regular file" in told(caplog)[0]


def test_what_tensorrt_refuses_is_replaced(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(place, KIND, KEY, b"stale")
    cache, engine = RuntimeCache(KEY), Engine(b"fresh", accepts=False)
    assert cache.config(engine, "user") is not None
    assert engine.given == [b"stale"]
    assert engine.set[1] == ("cache", engine.made[1])  # not the one that was given anything
    assert told(caplog) == [
        f"runtime cache {place} is not used: TensorRT refuses what it holds",
    ]
    cache.save()
    assert load(place, KIND, KEY).content == b"fresh"


@pytest.mark.parametrize("takes", [False, RuntimeError("no"), MemoryError("no")])
def test_an_engine_runs_without_a_cache_that_it_does_not_take(
    place: Path, takes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache, engine = RuntimeCache(KEY), Engine(takes=takes)
    for _ in range(2):
        assert cache.config(engine, "user") is not None
    assert [one for one in engine.set if one[0] == "strategy"] == [("strategy", "user")] * 2
    cache.save()
    assert not place.exists()
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("content", [RuntimeError("broken"), None, b""])
def test_nothing_is_written_of_what_cannot_be_had(
    place: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = RuntimeCache(KEY)
    cache.config(Engine(content), "user")
    cache.save()
    cache.save()
    assert not place.exists()
    assert len(told(caplog)) == (content != b"")


def test_a_place_that_cannot_be_written_is_told_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    cache, engine = RuntimeCache(KEY), Engine()
    assert cache.config(engine, "user") is not None
    cache.save()
    cache.save()
    assert cache.config(engine, "user") is not None  # compiled once a process all the same
    expected = f"runtime cache {place} cannot be written: No space left on device"
    assert told(caplog) == [expected]
    assert os.listdir(place.parent) == []


def test_a_place_that_is_none_is_told_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    place.parent.parent.write_text("a file in the folder's place")
    cache = RuntimeCache(KEY)
    assert cache.config(Engine(), "user") is not None
    cache.save()
    (message,) = told(caplog)
    assert f"runtime cache {place} is not used: it cannot be read: " in message


def test_without_the_interface_nothing_happens(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(place, KIND, KEY, b"compiled")
    for engine in (SimpleNamespace(), SimpleNamespace(create_runtime_config=SimpleNamespace)):
        cache = RuntimeCache(KEY)
        assert cache.config(engine, "user") is None
        cache.save()
    assert load(place, KIND, KEY).content == b"compiled"
    assert told(caplog) == []


def test_the_driver_is_part_of_the_key_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "version"
    monkeypatch.setattr(cache_file, "_DRIVER", version)
    assert driver_version() == "unknown"
    for content, expected in (
        (b"580.65.06\n", "580.65.06"),
        (b"", "unknown"),
        (b"\xff", "unknown"),
    ):
        version.write_bytes(content)
        assert driver_version() == expected


def test_names_of_kept_files_stay_in_their_folder(place: Path) -> None:
    assert place.name == f"runtime-1.7.1-nvidia-geforce-rtx-4090-sm89-{'ab' * 16}.cache"
    hostile = replace(KEY, version="../../x", gpu="../../../etc")
    assert cache_file.cache_path(KIND, hostile, "ab").parent == place.parent


@pytest.mark.tensorrt
def test_the_interface_is_that_of_the_bindings() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    for kind, names in {
        "ICudaEngine": ["create_runtime_config", "create_execution_context"],
        "IRuntimeConfig": [
            "create_runtime_cache",
            "set_runtime_cache",
            "set_execution_context_allocation_strategy",
        ],
        "IRuntimeCache": ["serialize", "deserialize"],
    }.items():
        assert all(callable(getattr(getattr(trt, kind), name)) for name in names)
    assert "runtime_config: " in trt.ICudaEngine.create_execution_context.__doc__
    compiled = trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy
    assert isinstance(compiled, property)
    assert "EAGER" in trt.DynamicShapesKernelSpecializationStrategy.__members__
