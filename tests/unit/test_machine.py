"""Threads and memory that a container allows, on made-up trees of control groups."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sdengine
from sdengine import _native
from sdengine.backends.base import SessionOptions
from sdengine.cli.main import main
from sdengine.machine import Processors, free_memory_bytes, usable_processors


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def proc_of(
    folder: Path, groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]
) -> Path:
    """Make a process's folder.

    Args:
        folder: where.
        groups: its file `cgroup`.
        mounts: kind, root and place of each, and for version 1 the controllers after a colon.
        files: what the groups say.
    """
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    lines = []
    for kind, root, place in mounts:
        kind, _, controllers = kind.partition(":")
        shown = str(folder / place).replace(" ", "\\040")
        options = f"rw,{controllers}" if controllers else "rw"
        lines.append(f"33 24 0:29 {root} {shown} rw,nosuid shared:9 - {kind} none {options}\n")
    (proc / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return proc


V2 = [("cgroup2", "/", "sys/fs cgroup")]
V1 = [("cgroup:cpuset", "/", "cpuset"), ("cgroup:cpu,cpuacct", "/", "cpu")]
CASES: dict[str, tuple[str, list[tuple[str, str, str]], dict[str, str], float | None]] = {
    "version 2": ("0::/a/b", V2, {"sys/fs cgroup/a/b/cpu.max": "250000 100000"}, 2.5),
    "without a limit": ("0::/a", V2, {"sys/fs cgroup/a/cpu.max": "max 100000"}, None),
    "a parent's": (
        "0::/a/b/c",
        V2,
        {
            "sys/fs cgroup/a/cpu.max": "150000 100000",
            "sys/fs cgroup/a/b/c/cpu.max": "400000 100000",
        },
        1.5,
    ),
    "the namespace's own top": ("0::/", V2, {"sys/fs cgroup/cpu.max": "100000 100000"}, 1.0),
    "outside the namespace": ("0::/../x", V2, {"sys/fs cgroup/cpu.max": "100000 50000"}, 2.0),
    "version 1": (
        "5:cpuset:/other\n4:cpu,cpuacct:/docker/1f",
        V1,
        {"cpu/docker/1f/cpu.cfs_quota_us": "50000", "cpu/docker/1f/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "version 1 without a limit": (
        "4:cpu,cpuacct:/",
        V1,
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "version 1, a part mounted": (
        "4:cpu,cpuacct:/docker/1f/x",
        [("cgroup:cpu,cpuacct", "/docker/1f", "cpu")],
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "version 1, another part mounted": (
        "4:cpu,cpuacct:/kubepods/2a",
        [("cgroup:cpu,cpuacct", "/docker/1f", "cpu")],
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "both versions": (
        "4:cpu,cpuacct:/a\n0::/b",
        [*V1, *V2],
        {
            "cpu/a/cpu.cfs_quota_us": "600000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "sys/fs cgroup/b/cpu.max": "max 100000",
        },
        6.0,
    ),
    "version 2, the tightest of nested groups": (
        "0::/a/b/c",
        V2,
        {
            "sys/fs cgroup/a/cpu.max": "400000 100000",
            "sys/fs cgroup/a/b/cpu.max": "75000 50000",
            "sys/fs cgroup/a/b/c/cpu.max": "max 100000",
        },
        1.5,
    ),
    "version 1, nested": (
        "4:cpu,cpuacct:/a/b",
        V1,
        {
            "cpu/a/cpu.cfs_quota_us": "125000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "cpu/a/b/cpu.cfs_quota_us": "-1",
            "cpu/a/b/cpu.cfs_period_us": "100000",
        },
        1.25,
    ),
    "version 1, with equal names in another hierarchy": (
        "9:cpuset:/a\n4:cpu,cpuacct:/b",
        V1,
        {
            "cpuset/a/cpu.cfs_quota_us": "100000",
            "cpuset/a/cpu.cfs_period_us": "100000",
            "cpu/b/cpu.cfs_quota_us": "200000",
            "cpu/b/cpu.cfs_period_us": "100000",
        },
        2.0,
    ),
    "damaged files": (
        "0::/a/b",
        V2,
        {"sys/fs cgroup/a/cpu.max": "lots", "sys/fs cgroup/a/b/cpu.max": "5 0"},
        None,
    ),
    "nonsense": ("what\n0::\n::::", [*V2, ("cgroup2", "", "")], {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_of_a_control_group(tmp_path: Path, case: str) -> None:
    groups, mounts, files, quota = CASES[case]
    found = usable_processors(proc_of(tmp_path, groups, mounts, files))
    assert found == Processors(8, quota)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "limit"),
    [
        ("0::/a/b", V2, {"sys/fs cgroup/a/memory.max": "4096"}, 4096),
        ("0::/a", V2, {"sys/fs cgroup/a/memory.max": "max"}, None),
        (
            "7:memory:/x",
            [("cgroup:memory", "/", "memory")],
            {"memory/x/memory.limit_in_bytes": "8192"},
            8192,
        ),
    ],
)
def test_the_memory_limit_of_a_control_group(
    tmp_path: Path,
    groups: str,
    mounts: list[tuple[str, str, str]],
    files: dict[str, str],
    limit: int | None,
) -> None:
    found = free_memory_bytes(proc_of(tmp_path, groups, mounts, files))
    assert found == limit if limit else found > 1 << 20


def test_without_control_groups(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == Processors(8)


@pytest.mark.parametrize(
    ("quota", "threads", "by_quota"),
    [(None, 8, None), (0.5, 1, 1), (2.0, 2, 2), (2.5, 3, 3), (7.5, 8, None), (64.0, 8, None)],
)
def test_threads_are_as_many_as_affinity_and_quota_allow(
    quota: float | None, threads: int, by_quota: int | None
) -> None:
    processors = Processors(8, quota)
    assert (processors.threads, processors.threads_by_quota) == (threads, by_quota)


def test_a_session_takes_them_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("native.backend", "native.packing"):
        name = f"sdengine.backends.{module}.usable_processors"
        monkeypatch.setattr(name, lambda: Processors(8, 2.5))
    together = list[int]()
    monkeypatch.setattr(_native, "use_processors", together.append)
    with sdengine.load("demo") as engine:
        session: Any = engine.session
        assert session._threads == 3
    with sdengine.load("demo", threads=5) as engine:
        session = engine.session
        assert session._threads == 5
    with sdengine.load("demo", threads=1):
        assert together == [3, 5, 3]  # of all engines


def test_engines_of_other_numbers_of_threads_take_turns() -> None:
    """Networks that ask for more processors together than there are do not run at once."""
    given: dict[str, Any] = {"steps": 2, "seed": 1, "width": 64, "height": 64}
    found: dict[int, bytes] = {}

    def ask(engine: sdengine.Engine, threads: int) -> None:
        for _ in range(3):
            found[threads] = engine.generate("a star", **given).arrays[0].tobytes()

    with contextlib.ExitStack() as stack:
        asking = []
        for threads in (1, 2, 3, 8):
            engine = stack.enter_context(sdengine.load("demo", threads=threads))
            asking.append(threading.Thread(target=ask, args=(engine, threads)))
        _native.use_processors(2)
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert len(found) == 4 and len(set(found.values())) == 1


def test_nothing_else_chooses_a_number_of_threads() -> None:
    """But for what is told to people, and benchmarks."""
    package = Path(sdengine.__file__).parent
    allowed = {"machine.py", "cli/checks.py", "backends/places.py"}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name not in allowed and not name.startswith(("benchmarks/", "kernels/")):
            text = path.read_text(encoding="utf-8")
            for choice in ("cpu_count", "sched_getaffinity", "ThreadPoolExecutor()"):
                assert choice not in text, f"{name}: {choice}"


def test_openvino_is_told_of_a_quota_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdengine.backends.openvino import OpenVinoBackend

    monkeypatch.setattr(OpenVinoBackend, "resolve", lambda self, precision: "fp32")
    for quota, threads in ((None, None), (2.5, 3), (20.0, None)):
        monkeypatch.setattr(
            "sdengine.backends.openvino.usable_processors",
            lambda quota=quota: Processors(8, quota),
        )
        session: Any = OpenVinoBackend().open(SimpleNamespace())  # type: ignore[arg-type]
        assert session._threads == threads


def test_torch_is_told_of_a_quota_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdengine.backends.torch import cuda, eager

    monkeypatch.setattr(cuda.TorchCudaBackend, "_resolve", lambda *given: "fp32")
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(precision="fp32"))
    for quota, threads in ((None, None), (2.5, 3), (20.0, None)):
        for module in (eager, cuda):
            monkeypatch.setattr(module, "usable_processors", lambda q=quota: Processors(8, q))
        for backend in (eager.TorchBackend(), cuda.TorchCudaBackend()):
            for asked in (None, 5):
                options = SessionOptions(precision="fp32", threads=asked)
                session: Any = backend.open(bundle, options)
                assert session._threads == (asked or threads)


@pytest.mark.parametrize(
    ("quota", "before", "chosen", "after"),
    [(2.5, 8, None, 3), (2.5, 2, None, 2), (None, 8, None, 8), (2.5, 8, "8", 8)],
)
def test_builds_and_training_keep_torch_to_a_quota(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    before: int,
    chosen: str | None,
    after: int,
) -> None:
    import torch

    from sdengine.models import torch_threads

    threads = [before]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(torch_threads, "usable_processors", lambda: Processors(8, quota))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    torch_threads.keep_to_quota()
    assert threads[-1] == after


@pytest.mark.parametrize("command", ["build", "export", "train vae", "train lora"])
def test_commands_that_run_torch_keep_to_it(
    monkeypatch: pytest.MonkeyPatch, command: str, tmp_path: Path
) -> None:
    class Told(Exception):
        pass

    def tell() -> None:
        raise Told

    monkeypatch.setattr("sdengine.models.torch_threads.keep_to_quota", tell)
    given = {
        "build": ["demo", "-o", str(tmp_path / "x")],
        "export": ["demo", "-o", str(tmp_path / "x")],
        "train vae": [str(tmp_path)],
        "train lora": ["demo", "--data", str(tmp_path), "-o", str(tmp_path / "x")],
    }
    with pytest.raises(Told):
        main([*command.split(), *given[command]])


def test_onnxruntime_is_told_of_a_quota_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    from sdengine.inputs import onnx_network

    shape: list[str | int | None] = [1, 3, "height", "width"]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    made, session = list[int](), onnxruntime.InferenceSession

    def noted(content: bytes, options: Any, **given: Any) -> Any:
        made.append(options.intra_op_num_threads)
        return session(content, options, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    for quota in (None, 2.5):
        monkeypatch.setattr(onnx_network, "usable_processors", lambda q=quota: Processors(8, q))
        onnx_network.OnnxNetwork("network", str(tmp_path / "net.onnx"))
    assert made == [0, 3]


def test_doctor_shows_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdengine.cli.checks.usable_processors", lambda: Processors(8, 2.5))
    main(["doctor"])
    line = next(line for line in capsys.readouterr().out.splitlines() if " threads " in line)
    assert "8 processors may be used, 2.5 by the control group's quota: 3 by default" in line
