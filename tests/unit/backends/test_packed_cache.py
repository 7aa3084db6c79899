"""Packed weights: found by the bytes they are made of, never damaged, bounded, never required."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sdengine
from sdengine.backends.base import SessionOptions
from sdengine.backends.native import packed_cache
from sdengine.backends.native.backend import NativeBackend
from sdengine.backends.native.packing import pack
from sdengine.backends.native.prepare import Prepared, prepare
from sdengine.bundle import reader
from sdengine.bundle.reader import DEMO_BUNDLE, Bundle, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.cli.main import main
from sdengine.errors import ConfigError
from sdengine.storage import cache_place, content_hash
from sdengine.storage.cache_files import CacheFile

SIZES = {"batch": 2, "sequence": 77, "height": 64, "width": 64}
NETWORK = "vae_decoder"
WEIGHTS = f"{NETWORK}.safetensors"
Array = NDArray[Any]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "_in_memory", {})
    cache_place.say_not_kept.cache_clear()
    reader._warn_of_other_content.cache_clear()
    return tmp_path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every bundle opened as one that is too large to be hashed whenever it is opened."""
    monkeypatch.setattr(reader, "HASH_BY_DEFAULT_BYTES", 0)
    monkeypatch.setattr(reader, "HASH_ANYWAY_BYTES", 0)


def prepared(bundle: Bundle) -> Prepared:
    shapes = resolve_shapes(NETWORK, bundle.network(NETWORK).inputs, SIZES)
    return prepare(bundle, NETWORK, shapes, "bf16", "avx2")


def packed(bundle: Bundle) -> dict[str, Array]:
    it = prepared(bundle)
    return packed_cache.packed_weights(NETWORK, it.source, it.packing, it.weights).tensors


def expected(bundle: Bundle) -> dict[str, Array]:
    it = prepared(bundle)
    return dict(pack(it.packing, it.weights))


def same(found: dict[str, Array], wanted: dict[str, Array]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in wanted
    )


def kept() -> list[CacheFile]:
    return packed_cache.KEPT.files()


def demo_copy(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, folder))


def damage(path: Path, *, start: int = 200_000, count: int = 1) -> None:
    """Change bytes in place, without a change of size."""
    with path.open("r+b") as file:
        file.seek(start)
        changed = bytes(byte ^ 1 for byte in file.read(count))
        file.seek(start)
        file.write(changed)


def test_packed_weights_are_kept_and_shared() -> None:
    demo = open_bundle("demo")
    it = prepared(demo)
    first = packed_cache.packed_weights(NETWORK, it.source, it.packing, it.weights)
    assert packed_cache.packed_weights(NETWORK, it.source, it.packing, it.weights) is first
    (file,) = kept()
    assert file.path.name.startswith(f"{NETWORK}-") and file.size_bytes > 1e6
    assert same(first.tensors, expected(demo))
    assert packed_cache.KEPT.clear() > 1e6
    assert kept() == []


@pytest.mark.usefixtures("large")
def test_a_bundle_that_claims_anothers_hash_gets_its_own_weights(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = demo_copy(place / "foreign")
    damage(folder / WEIGHTS, count=1000)
    foreign, demo = open_bundle(folder), open_bundle("demo")
    assert foreign.manifest.files == demo.manifest.files
    wanted = expected(foreign)
    assert not same(wanted, expected(demo))
    for _ in range(2):
        assert same(packed(foreign), wanted)
        assert same(packed(demo), expected(demo))
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and "not the file that the manifest describes" in told[0]
    assert main(["verify", str(folder)]) == 1
    assert main(["verify", "demo"]) == 0


@pytest.mark.usefixtures("large")
def test_a_foreign_bundle_does_not_spoil_the_demos_picture(place: Path) -> None:
    folder = demo_copy(place / "foreign")
    damage(folder / "unet.safetensors", count=100_000)

    def picture(bundle: str | Path) -> Array:
        with sdengine.load(bundle, precision="bf16") as engine:
            made: Array = engine.generate("a red circle", steps=2, seed=7).arrays[0]
            return made

    wanted = picture("demo")
    packed_cache.KEPT.clear()
    assert not np.array_equal(picture(folder), wanted)
    assert np.array_equal(picture("demo"), wanted)


@pytest.mark.usefixtures("large")
def test_a_file_that_was_damaged_and_repaired_gives_the_right_weights(place: Path) -> None:
    folder = demo_copy(place / "mine")
    mine = open_bundle(folder)
    wanted = expected(mine)
    damage(folder / WEIGHTS, count=1000)
    assert not same(packed(mine), wanted)
    assert main(["verify", str(folder)]) == 1
    shutil.copyfile(DEMO_BUNDLE / WEIGHTS, folder / WEIGHTS)
    assert main(["verify", str(folder)]) == 0
    assert same(packed(mine), wanted)


def test_what_is_kept_can_be_read_through(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = expected(open_bundle("demo"))
    packed(open_bundle("demo"))
    (file,) = kept()
    assert main(["cache", "--verify"]) == 0
    assert "1 of 1 files as written" in capsys.readouterr().out
    damage(file.path)
    assert main(["cache", "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["removed"]) == [str(file.path)] and kept() == []
    assert same(packed(open_bundle("demo")), wanted)
    assert main(["cache", "--verify", "--clear"]) == 2
    assert "--verify: not with --clear" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how", ["a bit", "2000 bytes", "half zeroed", "shorter", "swapped", "text"]
)
def test_damaged_packed_weights_are_made_again(how: str, caplog: pytest.LogCaptureFixture) -> None:
    demo = open_bundle("demo")
    wanted = expected(demo)
    packed(demo)
    (file,) = kept()
    if how == "a bit":
        damage(file.path)
    elif how == "2000 bytes":
        damage(file.path, count=2000)
    elif how == "half zeroed":
        with file.path.open("r+b") as opened:
            opened.seek(file.size_bytes // 2)
            opened.write(bytes(file.size_bytes - file.size_bytes // 2))
    elif how == "shorter":
        os.truncate(file.path, file.size_bytes - 1)
    elif how == "swapped":
        content = file.path.read_bytes()
        file.path.write_bytes(content.replace(b'"identity":"', b'"identity":"x', 1)[:-1])
    else:
        file.path.write_bytes(b"damaged")
    assert same(packed(demo), wanted)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and "made again" in told[0]
    assert same(packed(demo), wanted)
    assert kept()[0].size_bytes == file.size_bytes


def test_a_source_that_changes_while_it_is_packed_is_not_kept(place: Path) -> None:
    folder = demo_copy(place / "mine")
    it = prepared(open_bundle(folder))
    os.utime(folder / WEIGHTS)
    packed_cache.packed_weights(NETWORK, it.source, it.packing, it.weights)
    assert kept() == []


def blocked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("no folder")
    monkeypatch.setenv("SDENGINE_CACHE", str(place / "file"))


def homeless(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SDENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)


def read_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", "/proc/sdengine")


def nothing_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "0")


def full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def pipe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(open_bundle("demo"))
    (file,) = kept()
    file.path.unlink()
    os.mkfifo(file.path)


@pytest.mark.parametrize("lack", [blocked, homeless, read_only, nothing_allowed, full, pipe])
def test_pictures_are_made_where_nothing_can_be_kept(
    lack: Any, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lack(place, monkeypatch)
    demo = open_bundle("demo")
    session = NativeBackend().open(demo, SessionOptions("bf16"))
    for network in (NETWORK, "text_encoder"):
        shapes = resolve_shapes(network, demo.network(network).inputs, SIZES)
        module = session.load(network, shapes)
        inputs = {s.name: np.zeros(shapes[s.name], s.dtype) for s in module.inputs}
        assert all(np.isfinite(output).all() for output in module.run(inputs).values())
    if lack is not pipe:  # whose name only one network has
        assert kept() == []
        told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 1 and "cannot be kept" in told[0]


def test_a_limit_that_is_no_size_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "plenty")
    with pytest.raises(ConfigError, match="SDENGINE_CACHE_LIMIT: 'plenty'"):
        packed(open_bundle("demo"))


_USER = """
import sys
from sdengine.storage.file_lock import hold
with open(sys.argv[1], "rb") as file:
    hold(file.fileno())
    print("in use", flush=True)
    sys.stdin.read()
"""


def test_what_was_used_longest_ago_gives_way_but_nothing_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo = open_bundle("demo")
    in_use = packed(demo)
    (mine,) = kept()
    size = mine.size_bytes
    folder = packed_cache.KEPT.folder
    old, older, others = (folder / f"unet-{n}.weights" for n in range(3))
    for used, path in ((300, old), (200, older), (100, others)):
        path.write_bytes(bytes(size))
        os.utime(path, (used, used))
    command = [sys.executable, "-c", _USER, str(others)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None and user.stdout.readline() == "in use\n"
        monkeypatch.setenv("SDENGINE_CACHE_LIMIT", str(4 * size))
        assert packed_cache.KEPT.make_room(size)
        assert {file.path for file in kept()} == {mine.path, old, others}
        monkeypatch.setenv("SDENGINE_CACHE_LIMIT", str(2 * size))
        assert not packed_cache.KEPT.make_room(size)
        assert {file.path for file in kept()} == {mine.path, others}
        user.communicate()
    assert packed_cache.KEPT.make_room(size)
    assert {file.path for file in kept()} == {mine.path}
    assert same(in_use, expected(demo))
    del in_use
    assert packed_cache.KEPT.make_room(2 * size)
    assert kept() == []


def test_a_load_counts_as_a_use() -> None:
    demo = open_bundle("demo")
    packed(demo)
    (file,) = kept()
    later = packed_cache.KEPT.folder / "unet-1.weights"
    later.write_bytes(b"x")
    assert [f.path for f in kept()] == [later, file.path]
    packed(demo)
    assert [f.path for f in kept()] == [file.path, later]


_PACKER = """
import time
import sdengine
from sdengine.backends.native import packed_cache
def slowly(*_, **__):
    print("packing", flush=True)
    time.sleep(60)
    yield from ()
packed_cache.pack = slowly
sdengine.load("demo", precision="bf16").warm_up()
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_what_a_killed_packer_left_is_counted_and_removed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", _PACKER]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) as packer:
        assert packer.stdout is not None and packer.stdout.readline() == "packing\n"
        assert main(["cache"]) == 0
        assert "left by" not in capsys.readouterr().out
        packer.send_signal(signal.SIGKILL)
    (left,) = packed_cache.KEPT.leftovers()
    assert left.size_bytes > 1e5
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "left by a process that was killed" in shown
    assert f"{left.size_bytes / 1e6:.1f} MB in 1 entries" in shown
    packed(open_bundle("demo"))
    assert packed_cache.KEPT.leftovers() == []
    assert [path.name for path in left.path.parent.iterdir()] == [kept()[0].path.name]
