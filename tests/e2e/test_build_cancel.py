"""Builds that are interrupted: what ends, with which status, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from onnx import TensorProto, helper
from support import full_tensorrt
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.errors import Cancelled

# The builder waits this long in each step, so that a test finds it at work.
WAIT_SECONDS = 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("shallow", tmp_path_factory.mktemp("checkpoints") / "shallow")


def python_path(*folders: Path) -> str:
    """Return the environment's PYTHONPATH with folders before it."""
    known = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([known] if known else [])])


def wait_for(found: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 120
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def builders_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that build engines for another one."""
    return [p for p in process.children() if "tensorrt.worker" in " ".join(p.cmdline())]


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process group of its own, as a shell does, until it builds an engine."""
    command = [sys.executable, "-m", "sdengine", "build", str(checkpoint), "-o", "bundle"]
    command += ["--target", "tensorrt-rtx", "--gpu", "sm89", "--resolutions", "64"]
    (tmp_path / "modules").mkdir()
    (tmp_path / "place").mkdir()
    # A stand-in of TensorRT-RTX's builder, which the test can find at work.
    (tmp_path / "modules/tensorrt_rtx.py").write_text(
        "from tensorrt import *\nfrom tensorrt import __version__\n"
        "class ComputeCapability:\n    SM89 = 89\n"
        "import tensorrt\ntensorrt._Config.set_compute_capability = lambda *_: None\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(tmp_path / "modules", full_tensorrt.PLACE),
        "FAKE_TENSORRT": json.dumps(
            {"waits": WAIT_SECONDS, "cancelled": str(tmp_path / "cancelled")}
        ),
        "SDENGINE_CACHE": str(tmp_path / "cache"),
    }
    with subprocess.Popen(
        command,
        cwd=tmp_path / "place",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore it, and what they start would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGHUP"),
    ],
)
def test_a_signal_ends_the_builder_and_leaves_nothing(
    number: int, how: str, build: subprocess.Popen[str], tmp_path: Path
) -> None:
    command = psutil.Process(build.pid)
    wait_for(lambda: bool(builders_of(command)))
    (builder,) = builders_of(command)
    os.killpg(build.pid, number)  # as a terminal does, to both processes
    out, error = build.communicate(timeout=20)
    assert (build.returncode, out) == (128 + number, "")
    assert error.endswith(f"error: {how}; nothing half-written was left behind.\n")
    assert "Traceback" not in error
    assert is_over(builder)
    assert list((tmp_path / "place").iterdir()) == []
    assert not list((tmp_path / "cache").rglob(".*fused*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_alone_ends_both(
    number: int, build: subprocess.Popen[str], tmp_path: Path
) -> None:
    command = psutil.Process(build.pid)
    wait_for(lambda: bool(builders_of(command)))
    (builder,) = builders_of(command)
    build.send_signal(number)
    assert build.wait(timeout=20) == 128 + number
    assert is_over(builder)
    assert list((tmp_path / "place").iterdir()) == []


def test_an_event_ends_a_build(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", waits=WAIT_SECONDS)
    cancel = threading.Event()
    me = psutil.Process()

    def watch() -> None:
        wait_for(lambda: bool(builders_of(me)))
        cancel.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    options = {"target": "tensorrt", "resolutions": [64], "kernels": "native", "cancel": cancel}
    with pytest.raises(Cancelled) as caught:
        sdengine.build(checkpoint, tmp_path / "bundle", **options)  # type: ignore[arg-type]
    watcher.join()
    assert caught.value.exit_status == 130
    assert builders_of(me) == []
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    graphs = (tmp_path / "cache" / "onnx").resolve()  # other tests' too
    assert not list(graphs.rglob(f".{os.getpid()}.fused.*"))


def test_an_event_that_is_set_already_builds_nothing(checkpoint: Path, tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        sdengine.build(checkpoint, tmp_path / "bundle", target="openvino", cancel=cancel)
    assert list(tmp_path.iterdir()) == []


def test_a_builder_whose_reader_is_gone_stops_at_its_next_step(tmp_path: Path) -> None:
    """Killed without a chance to clean up, the command leaves no builder behind."""
    from sdengine.compilers.tensorrt.process import _WORKER

    graph = tmp_path / "graph.onnx"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [8, 64]) for n in ("x", "y")]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    made = helper.make_graph(nodes, "two nodes", ports[:1], ports[1:])
    graph.write_bytes(helper.make_model(made).SerializeToString())
    job: dict[str, Any] = {
        "task": "build",
        "module": "tensorrt",
        "onnx": str(graph),
        "output": str(tmp_path / "graph.engine"),
        "profiles": [],
        "capabilities": [],
        "workspace_bytes": None,
        "optimization_level": None,
        "timing_cache": None,
        "user_allocation": True,
    }
    cancelled = tmp_path / "cancelled"
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(full_tensorrt.PLACE),
        "FAKE_TENSORRT": json.dumps({"waits": 0.3, "cancelled": str(cancelled)}),
    }
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdout.close()
        worker.stdin.write(json.dumps(job).encode())
        worker.stdin.close()
        assert worker.wait(timeout=60) == 1
    assert cancelled.exists()
    assert not (tmp_path / "graph.engine").exists()
