"""Parts of the GPU smoke test; `gpu_smoke.py` runs each in a process of its own.

A part first does what needs no GPU (it imports, builds, compiles), so that a rehearsal without one
finds what is lacking, then says that there is none, or measures. What it finds is written at once.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.cuda_driver import Driver, NoGpu
from sdengine.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

    from sdengine.kernels.variants import Specialisation, Variant

# What drivers of CUDA 13.0 read at most; TensorRT 11 asks for no newer one.
_PTX_VERSION = 90
_CC_WITHOUT_GPU = 90
_EPS = 1e-5


class Findings:
    """Write what is found, a line of JSON each, and keep to the budget.

    Args:
        path: of the lines.
        seconds: of the budget.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._until = time.monotonic() + seconds

    def add(self, **finding: Any) -> None:
        """Write one, so that it is kept whatever comes next."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finding) + "\n")

    @property
    def seconds_left(self) -> float:
        """Seconds before the process is ended."""
        return self._until - time.monotonic()


def capability_of_torch() -> int:
    """Return the GPU's compute capability times ten.

    Raises:
        NoGpu: torch finds none.
    """
    import torch

    if torch.version.cuda is None:
        raise NoGpu(f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise NoGpu(f"torch {torch.__version__} finds no NVIDIA GPU")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def extension(found: Findings) -> None:
    """Build the extension for the GPU that is here, and run its tests, twice."""
    root = Path(os.environ["SDENGINE_SMOKE_ROOT"])
    given = os.environ.get("SDENGINE_SMOKE_EXTENSION", "")
    module = Path(given) if given else _build(found, root)
    package = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "sdengine"
    for old in package.glob("_native.*.so"):
        old.unlink()
    (package / module.name).symlink_to(module.resolve())
    native = importlib.import_module("sdengine._native")
    usable, reason = native.cuda_available()
    found.add(built=native.build_info(), usable=usable, reason=reason)
    importlib.import_module("support.native_server")
    importlib.import_module("pytest")
    if not usable:
        raise NoGpu(reason)
    found.add(device=native.cuda_device_info())
    folder = root / "tests" / "unit" / "csrc"
    # Without the tests' own settings, whose plugins may be missing.
    tests = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-c", os.devnull]
    tests += ["--rootdir", str(root), "--import-mode=importlib", "-p", "no:cacheprovider"]
    tests += [str(path) for path in sorted(folder.glob("test_cuda*.py"))]
    _run(found, "tests", tests)
    sanitizer = _tool("compute-sanitizer")
    if sanitizer is None:
        found.add(sanitizer="compute-sanitizer is not here")
        return
    for tool in ("memcheck", "racecheck", "initcheck"):
        checked = [sanitizer, "--tool", tool, "--error-exitcode", "99", *tests]
        _run(found, f"tests under {tool}", checked)


def _build(found: Findings, root: Path) -> Path:
    """Return the built module."""
    missing = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    nvcc = _tool("nvcc")
    if missing:
        raise DeviceError(f"the extension was not built: {', '.join(missing)} is not here")
    pybind11 = importlib.import_module("pybind11")
    folder = Path.cwd() / "extension"
    answer = _output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    # Without a GPU, or a tool that names it, for the one of _CC_WITHOUT_GPU.
    named = re.match(r"(\d+)\.(\d)\b", answer)
    capability = "".join(named.groups()) if named else str(_CC_WITHOUT_GPU)
    configure = [
        "cmake", "-S", str(root), "-B", str(folder), "-G", "Ninja",
        f"-DSDENGINE_CUDA={'ON' if nvcc else 'OFF'}", f"-DCMAKE_CUDA_ARCHITECTURES={capability}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    if nvcc:
        configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
    _run(found, "configure", configure)
    _run(found, "build", ["cmake", "--build", str(folder), "--target", "_native"])
    (module,) = folder.glob("_native*.so")
    return module


def variants(found: Findings) -> None:
    """Compare every variant of every kernel with fp32, fp16 first, the operations by turns."""
    from sdengine.benchmarks.kernel_resources import CASES
    from sdengine.benchmarks.kernel_sides import tensors_of, torchs, truth
    from sdengine.benchmarks.kernel_speed import MAX_ERROR_RATIO, relative_error
    from sdengine.kernels.launching import require_triton
    from sdengine.kernels.registry import OPS

    require_triton()
    cases = [(dtype, *case) for dtype in ("float16", "bfloat16") for case in by_turns(CASES)]
    found.add(variants=sum(len(OPS[op].variants(shape, d, 90)) for d, op, _, shape in cases))
    cc = capability_of_torch()
    wrong = compared = 0
    for dtype, op, name, shape in cases:
        supported, reason = OPS[op].supports(shape, dtype, cc)
        if not supported:
            found.add(op=op, case=name, dtype=dtype, left_out=reason)
            continue
        if found.seconds_left < 10:
            break
        tensors = tensors_of(op, shape, dtype, "cuda")
        exact = truth(op, shape, tensors)
        theirs = relative_error(torchs(op, shape, tensors)(), exact)
        errors = {
            v.name: _error(op, shape, tensors, v, exact) for v in OPS[op].variants(shape, dtype, cc)
        }
        bad = [
            variant
            for variant, error in errors.items()
            if not (isinstance(error, float) and error <= MAX_ERROR_RATIO * theirs)
        ]
        wrong += len(bad)
        compared += 1
        found.add(op=op, case=name, dtype=dtype, torch=theirs, errors=errors, wrong=bad)
    found.add(compared=compared, cases=len(cases), wrong=wrong)
    if wrong:
        raise DeviceError(f"{wrong} variants are wrong or do not run")


def _error(op: str, shape: Any, tensors: Any, variant: Variant, exact: Tensor) -> float | str:
    """Return a variant's error, or why it does not run; the next one may all the same."""
    from sdengine.benchmarks.kernel_sides import kernel
    from sdengine.benchmarks.kernel_speed import relative_error

    try:
        return relative_error(kernel(op, shape, tensors, variant)(), exact)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def by_turns(cases: Sequence[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """Return the first case of each operation, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for case in cases:
        turns.append(seen[case[0]])
        seen[case[0]] += 1
    return [case for _, case in sorted(zip(turns, cases, strict=True), key=lambda pair: pair[0])]


def plugin_kernels(cc: int, dtype: str = "float16") -> list[tuple[str, Specialisation]]:
    """Return name and specialisation of what full TensorRT's plugins hold, first variants first."""
    from sdengine.kernels import attention, group_norm
    from sdengine.kernels.targets import PORTABLE_SHARED_BYTES

    ranked = []
    for head_dim in attention.HEAD_DIMS:
        for causal in (False, True):
            shape = attention.AttentionShape(1, 1, 4096, 4096, head_dim, causal)
            found = attention.variants(shape, dtype, cc)
            kept = [v for v in found if v.shared_bytes < PORTABLE_SHARED_BYTES]
            for rank, variant in enumerate(kept):
                name = f"attention {head_dim}{' causal' if causal else ''} {variant.name}"
                ranked.append((rank, name, attention.specialise(shape, dtype, variant)))
    for channels in (320, 640, 1280):
        sizes = group_norm.GroupNormShape(1, channels, 4096, 32)
        found = group_norm.variants(sizes, dtype, cc)
        kept = [v for v in found if v.shared_bytes < PORTABLE_SHARED_BYTES]
        for rank, variant in enumerate(v for v in kept if not group_norm.is_split(v)):
            name = f"group_norm_silu {channels} {variant.name}"
            ranked.append((rank, name, group_norm.specialise(sizes, dtype, variant, _EPS)))
    return [(name, one) for _, name, one in sorted(ranked, key=lambda found: found[0])]


def ptx(found: Findings) -> None:
    """Compile the plugins' kernels for the GPU that is here, and let the driver load them."""
    from sdengine.kernels.compiling import compile_kernel

    driver, lacking = None, ""
    try:
        driver = Driver()
        found.add(driver=driver.version)
    except NoGpu as error:
        lacking = str(error)
    cc = driver.capability() if driver else _CC_WITHOUT_GPU
    refused = loaded = 0
    every = plugin_kernels(cc)
    for name, specialisation in every if driver else every[:1]:
        if found.seconds_left < 5:
            break
        text = compile_kernel(specialisation, cc).ptx
        outcome = driver.load(text) if driver else "not loaded"
        found.add(kernel=name, says=_header(text), outcome=outcome)
        if driver is None or outcome == "loaded":
            loaded += driver is not None
            continue
        refused += 1
        older = compile_kernel(specialisation, cc, ptx_version=_PTX_VERSION).ptx
        found.add(kernel=name, says=_header(older), outcome=driver.load(older))
    if driver is None:
        raise NoGpu(lacking)
    found.add(loaded=loaded, refused=refused, kernels=len(every))
    if refused:
        raise DeviceError(f"the driver refuses {refused} kernels as plugins hold them")


def _header(text: str) -> str:
    """Return what PTX says that it is for."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line.startswith((".version", ".target")))


def kernels(found: Findings) -> None:
    """Time the kernels in fp16 beside torch, the operations by turns."""
    from sdengine.benchmarks.kernel_speed import CASES, cold_times, measure, measure_roofline
    from sdengine.kernels.registry import OPS

    cc = capability_of_torch()
    timer = cold_times()
    roofline = measure_roofline(timer)
    found.add(roofline=asdict(roofline))
    wrong = 0
    for case in by_turns(CASES):
        if found.seconds_left < 15:
            break
        if OPS[case[0]].supports(case[2], "float16", cc)[0]:
            try:
                found.add(**asdict(measure(case, "float16", cc, roofline, timer)))
            except DeviceError as error:
                found.add(op=case[0], case=case[1], wrong=str(error))
                wrong += 1
    if wrong:
        raise DeviceError(f"{wrong} cases were not timed, because a variant is wrong")


def unet(found: Findings, name: str, side: int) -> None:
    """Time a U-Net alone and name its worst kernels."""
    from sdengine.benchmarks.gpu_smoke_unet import make_unet, measure
    from sdengine.models.configs import ARCHITECTURES

    config = ARCHITECTURES[name].unet
    size_bytes = 2 * sum(p.numel() for p in make_unet(config, "meta").parameters())
    found.add(unet=name, side=side, weight_bytes=size_bytes)
    capability_of_torch()
    measure(found.add, config, side)


def _run(found: Findings, step: str, command: list[str]) -> None:
    """Run a tool, whose output is the part's log; raises DeviceError where it fails."""
    started = time.perf_counter()
    print(f"$ {' '.join(command)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    found.add(step=step, exit_status=code, seconds=round(time.perf_counter() - started, 1))
    if code:
        raise DeviceError(f"{step}: exit status {code}")


def _tool(name: str) -> str | None:
    """Return a CUDA tool that is on the path or where CUDA is usually installed."""
    usual = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(usual) if usual.exists() else None)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


PARTS: Mapping[str, Callable[[Findings], None]] = {
    "extension": extension,
    "variants": variants,
    "ptx": ptx,
    "kernels": kernels,
    "sd15": lambda found: unet(found, "sd15", 512),
    "sdxl": lambda found: unet(found, "sdxl", 1024),
}


def main() -> int:
    """Run the part that the command names; return 1 where it fails."""
    name, path = sys.argv[1:]
    found = Findings(Path(path), float(os.environ["SDENGINE_SMOKE_SECONDS"]))
    try:
        PARTS[name](found)
    except NoGpu as error:
        found.add(**{"no GPU": str(error)})
    except Exception as error:
        traceback.print_exc()
        found.add(failed=f"{type(error).__name__}: {str(error)[:500]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
