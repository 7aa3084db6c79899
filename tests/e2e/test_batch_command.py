"""`sdengine batch` as users run it: resumed, interrupted, killed, in one process and on Ray."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

Run = Callable[..., "subprocess.CompletedProcess[str]"]

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("pyarrow") is None, reason="needs ray[data]"
)
LONG = {"prompt": "a red circle on white", "steps": 60}


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_rows_pictures_and_errors(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "start.png").write_bytes(picture())
    small = {"prompt": "a circle on white", "steps": 4, "seed": 1}
    start = {**small, "strength": 0.5}
    write_rows(
        tmp_path / "in" / "rows.jsonl",
        {**small, "id": "one"},
        {**start, "image": "start.png"},
        "",
        {**start, "image": base64.b64encode(picture()).decode()},
        {**start, "image": "../out.png"},
        {**small, "seed": 5, "batch_size": 2},
        "{",
    )
    done = run("batch", "in/rows.jsonl", "-o", "out")
    assert done.returncode == 1
    said = f"{tmp_path}/out/manifest.jsonl (6 rows: 3 made, 1 there already, 2 with errors)\n"
    assert done.stdout == said, done.stderr
    assert "error: line 5: image: '../out.png'" in done.stderr
    assert "error: 2 rows could not be made; errors.jsonl" in done.stderr
    manifest = read_lines(tmp_path / "out" / "manifest.jsonl")
    assert [line["row"] for line in manifest] == [1, 2, 4, 5, 6, 7]
    assert manifest[1]["files"] == manifest[2]["files"]  # a path or base64: the same picture
    files = {one["file"]: one["sha256"] for line in manifest for one in line.get("files", ())}
    found = hashes(tmp_path / "out")
    errors = [line for line in manifest if "error" in line]
    assert read_lines(tmp_path / "out" / "errors.jsonl") == errors
    assert found.keys() == {*files, "manifest.jsonl", "errors.jsonl"}
    assert {name: found[name] for name in files} == files
    again = run("batch", "in/rows.jsonl", "-o", "out", "--json")
    assert json.loads(again.stdout).items() >= {"rows": 6, "made": 0, "kept": 4, "error": 2}.items()
    assert hashes(tmp_path / "out") == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jsonl"], "no.jsonl' cannot be read"),
        (["rows.jsonl", "--actors", 2], "--actors: 2 is not accepted; expected none without --ray"),
        (["rows.jsonl", "--stall", 9], "--stall: 9.0"),
        (["rows.jsonl", "--loras", "nowhere"], "nowhere"),
        (["rows.jsonl", "--bundle", "nowhere"], "nowhere"),
        (["rows.jsonl", "--precision", "fp8"], "precision: 'fp8'"),
    ],
)
def test_wrong_usage(call: Run, tmp_path: Path, arguments: list[Any], message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", {"prompt": "a"})
    done = call("batch", *arguments, "-o", "out")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "ray://x:1"], "ray: 'ray://x:1'"),
        (["--ray", "local", "--actors", 0], "actors: 0"),
        (["--ray", "local", "--stall", 0], "stall: 0"),
        (["--ray", "local", "--gpus-per-actor", -1], "gpus_per_actor: -1"),
        (["--ray", "local", "--device", 1], "--device: 1"),
    ],
)
@needs_ray
def test_wrong_usage_of_ray(call: Run, tmp_path: Path, arguments: list[Any], message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", {"prompt": "a"})
    done = call("batch", "rows.jsonl", "-o", "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_ray_is_named_with_its_extra(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", {"prompt": "a"})
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ray.py").write_text("raise ModuleNotFoundError('no', name='ray')")
    paths = [str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = run("batch", "rows.jsonl", "-o", "out", "--ray", "local", env=environment)
    assert done.returncode == 1
    assert "pip install 'sdengine[ray]'" in done.stderr


@contextmanager
def started(tmp_path: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sdengine", "batch", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a driver alone, and wait until what it started has ended, or end that too."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=5)
    for one in alive:  # two agents of Ray look for their cluster now and then
        assert not is_actor(one)
        one.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_interruption_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_rows(tmp_path / "rows.jsonl", *({**LONG, "id": number} for number in range(50)))
    with started(tmp_path, "rows.jsonl", "-o", "out", "--threads", 1) as process:
        wait_for(lambda: len(list(out.glob("*.png"))) > 1, process)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "what is made stays; the same command goes on from there" in error
    assert {path.suffix for path in out.iterdir()} == {".png"}  # nothing half-written
    assert len(list(out.iterdir())) < 50


@needs_ray
@pytest.mark.slow
def test_killed_actors_and_a_killed_driver_change_nothing(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "a red circle on white", "steps": 8, "id": number} for number in range(16)]
    write_rows(tmp_path / "rows.jsonl", *rows, {"prompt": "a", "steps": 0}, rows[0])
    assert run("batch", "rows.jsonl", "-o", "one").returncode == 1
    out = tmp_path / "two"
    arguments = ["rows.jsonl", "-o", "two", "--ray", "local", "--actors", 2, "--threads", 1]
    with started(tmp_path, *arguments) as process:
        wait_for(lambda: len(list(out.glob("*.png"))) > 2, process)
        actors = actors_of(process)
        assert len(actors) == 2
        actors[0].kill()
        count = len(list(out.glob("*.png")))
        wait_for(lambda: len(list(out.glob("*.png"))) > count + 2, process)
        kill(process)
    assert len(list(out.glob("*.png"))) < 16
    # Without the cluster: in whichever way it goes on, it is the same.
    done = run("batch", "rows.jsonl", "-o", "two", "--json", timeout=300)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout).items() >= {"rows": 18, "error": 1}.items()
    assert hashes(out) == hashes(tmp_path / "one")


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a driver's actors."""
    return [one for one in psutil.Process(process.pid).children(recursive=True) if is_actor(one)]


def is_actor(process: psutil.Process) -> bool:
    return "RowActor" in " ".join(process.cmdline())
