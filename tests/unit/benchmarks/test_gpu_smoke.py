"""The GPU smoke test without a GPU: its rehearsal, budgets and record; its U-Nets on a fake."""

from __future__ import annotations

import ctypes
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_cuda_graphs import FakeCuda
from support.tiny_architectures import TINY_SD15

import sdengine
from sdengine import _native
from sdengine.backends.torch.triton_ops import TritonOps
from sdengine.benchmarks import gpu_smoke, gpu_smoke_unet
from sdengine.benchmarks.cuda_driver import Driver, NoGpu
from sdengine.benchmarks.gpu_smoke import NO_GPU, PARTS, Part, Record, lay_out, main, run_part
from sdengine.benchmarks.gpu_smoke_parts import PARTS as FUNCTIONS
from sdengine.benchmarks.gpu_smoke_parts import by_turns, plugin_kernels
from sdengine.benchmarks.gpu_smoke_unet import inputs_of, make_unet, measure
from sdengine.models.unet import UNetConfig

# One transformer, because Triton's interpreter takes its time.
SMALLEST = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=16 + 6 * 8,
)
# What a machine with torch and triton may lack all the same.
LACKING = ("pydantic", "typer", "rich", "psutil", "onnx", "onnxruntime", "openvino", "PIL", "scipy")
_BLOCKING = f"""
import importlib.abc, sys

class Lacking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {LACKING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Lacking())
"""


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the script, which these tests import from where it is installed, be that of here."""
    monkeypatch.setattr(gpu_smoke, "ROOT", Path(__file__).parents[3])


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """A folder of one wheel, that makes what is LACKING impossible to import."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "lacking-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sitecustomize.py", _BLOCKING)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(_native.cuda_available()[0], reason="this machine has a usable NVIDIA GPU")
def test_every_part_comes_as_far_as_the_gpu(tmp_path: Path, lacking: Path) -> None:
    pytest.importorskip("triton")
    record = tmp_path / "smoke.json"
    given = ["--record", str(record), "--wheels", str(lacking), "--budget", "4"]
    assert main([*given, "--extension", str(_native.__file__)]) == 2
    content = json.loads(record.read_text())
    assert list(content["parts"]) == [part.name for part in PARTS] == list(FUNCTIONS)
    for name, part in content["parts"].items():
        assert part["status"] == NO_GPU, (name, part)
        assert NO_GPU in part["found"][-1]
    ptx = content["parts"]["ptx"]["found"][0]
    assert ".version" in ptx["says"] and ptx["outcome"] == "not loaded"
    assert content["parts"]["sdxl"]["found"][0]["weight_bytes"] > 5e9
    assert content["versions"]["torch"] == torch.__version__


def fake_package(folder: Path, code: str) -> Path:
    """Return a package whose parts are some lines, with `add` to write what they find."""
    benchmarks = folder / "sdengine" / "benchmarks"
    benchmarks.mkdir(parents=True)
    (folder / "sdengine" / "__init__.py").touch()
    (benchmarks / "__init__.py").touch()
    head = "import json, os, sys, time\n"
    head += "def add(**found): print(json.dumps(found), file=open(sys.argv[2], 'a'), flush=True)\n"
    (benchmarks / "gpu_smoke_parts.py").write_text(head + code)
    return folder


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("add(a=1)", "ok"),
        ("add(a=1); add(**{'no GPU': 'none'})", NO_GPU),
        ("add(a=1); raise ValueError('lost')", "failed"),
        ("add(a=1); os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("add(a=1); time.sleep(60)", "out of time"),
    ],
)
def test_what_was_found_is_kept_however_a_part_ends(tmp_path: Path, code: str, status: str) -> None:
    package = fake_package(tmp_path / "package", code)
    outcome = run_part(Part("some", "x", 60), tmp_path, package, 5.0, "")
    assert outcome["status"] == status
    assert outcome["found"][0] == {"a": 1}
    assert ("log" in outcome) == (status not in ("ok", NO_GPU))
    if status == "failed":
        assert "ValueError: lost" in outcome["log"][-1]


def test_nothing_of_a_part_goes_on_when_its_time_is_over(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
    package = fake_package(tmp_path / "package", f"{code}time.sleep(60)")
    outcome = run_part(Part("some", "x", 60), tmp_path, package, 3.0, "")
    (line,) = outcome["log"]
    state, until = Path(f"/proc/{line}/stat"), time.monotonic() + 20
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_part_ends_with_the_status_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = iter(["ok", "ok", "failed", "ok", NO_GPU])

    def run(*_: Any) -> dict[str, Any]:
        return {"status": next(statuses), "seconds": 1.0, "found": [{"a": 1}]}

    monkeypatch.setattr(gpu_smoke, "run_part", run)
    record = ["--record", str(tmp_path / "r.json")]
    assert main([*record, "--only", "ptx"]) == 0
    assert main([*record, "--only", "ptx,sd15"]) == 1
    assert main([*record, "--only", "ptx,sd15"]) == 2
    assert json.loads((tmp_path / "r.json").read_text())["parts"].keys() == {"ptx", "sd15"}
    with pytest.raises(SystemExit):
        main([*record, "--only", "ptx,speed"])
    assert "--only: speed is not accepted" in capsys.readouterr().err


def test_the_record_is_whole_after_every_part(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "r.json", PARTS[:2])
    for name in ("extension", "variants"):
        record.set(name, {"status": "ok"})
        found = json.loads(record.path.read_text())["parts"]
        assert found[name] == {"status": "ok"}
    assert os.listdir(record.path.parent) == ["r.json"]


def test_the_package_is_laid_out_as_it_is_installed(tmp_path: Path) -> None:
    for _ in range(2):  # an earlier one is replaced
        package = lay_out(tmp_path / "package") / "sdengine"
        for name in ("kernels/registry.py", "benchmarks/gpu_smoke.py", "errors.py"):
            assert (package / name).is_file()


def test_operations_take_turns() -> None:
    cases = [("a", "1", 0), ("a", "2", 0), ("b", "1", 0), ("a", "3", 0), ("b", "2", 0)]
    assert [f"{op}{name}" for op, name, _ in by_turns(cases)] == ["a1", "b1", "a2", "b2", "a3"]


def test_the_first_variant_of_every_plugin_is_loaded_first() -> None:
    names = [name for name, _ in plugin_kernels(90)]
    assert len(names) == len(set(names)) > 20
    kinds = [name.rpartition(" ")[0] for name in names]
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds))


class FakeDriver:
    """libcuda with a GPU of 9.0 that reads PTX up to 9.0."""

    answers: dict[str, int]

    def __init__(self, **answers: int) -> None:
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = 9 if arguments[1] == 75 else 0
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13000
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_SOMETHING"
            if name == "cuModuleLoadDataEx" and b".version 9.4" in arguments[1].value:
                assert list(arguments[3]) == [5, 6]
                log = b"ptxas: Unsupported .version 9.4"
                assert arguments[4][1] > len(log)
                ctypes.memmove(arguments[4][0], log, len(log))
                return 222
            return self.answers.get(name, 0)

        return call


def test_the_driver_says_why_it_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver())
    driver = Driver()
    assert (driver.version, driver.capability()) == (13000, 90)
    assert driver.load(".version 9.0\n.target sm_90a") == "loaded"
    told = driver.load(".version 9.4\n.target sm_90a")
    assert told == "CUDA_ERROR_SOMETHING: ptxas: Unsupported .version 9.4"
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(cuInit=100))
    with pytest.raises(NoGpu, match="cuInit answers CUDA_ERROR_SOMETHING"):
        Driver()


def test_a_unet_is_compared_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("support.interpreted")
    # The others take the interpreter minutes.
    monkeypatch.setattr(gpu_smoke_unet, "TritonOps", lambda: TritonOps(("layer_norm",)))
    found: list[dict[str, Any]] = []
    cuda = FakeCuda()
    measure(lambda **one: found.append(one), SMALLEST, 16, "cpu", cuda, torch.float32, 1)
    drawn, *sides = found
    assert drawn["finite"] and 0.05 < drawn["deviation"] < 20
    assert [one["side"] for one in sides] == ["torch eager", "torch in a graph", "triton"]
    assert all(one["ms"]["median"] == 1.0 for one in sides)
    assert sides[-1]["error"] < 1e-4
    assert {line.partition(":")[0] for line in sides[-1]["kept"]} >= {"group_norm_silu", "geglu"}
    assert cuda.log.count("capture thread_local") == 2 == cuda.log.count("reset")


def test_weights_of_full_size_keep_what_passes_through_in_the_range_of_fp16() -> None:
    """A level of SD 1.5's width, in fp32 here: far from 65504 with room for its other levels."""
    config = TINY_SD15.unet
    with torch.inference_mode():
        model = make_unet(config, "cpu", torch.float32)
        largest = 0.0

        def note(_: Any, __: Any, out: Any) -> None:
            nonlocal largest
            tensors = out if isinstance(out, tuple) else (out,)
            largest = max(largest, *(float(t.abs().max()) for t in tensors if torch.is_tensor(t)))

        for module in model.modules():
            module.register_forward_hook(note)
        model(*inputs_of(config, 64, "cpu", torch.float32))
    assert 1 < largest < 1000


def test_the_script_needs_nothing_but_python() -> None:
    """It runs before anything is installed, so it imports nothing of the package."""
    source = Path(gpu_smoke.__file__).read_text(encoding="utf-8")
    imported = [
        line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))
    ]
    assert not [name for name in imported if name.startswith("sdengine")]
    assert Path(sdengine.__file__).is_file()
