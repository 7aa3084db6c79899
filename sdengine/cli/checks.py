"""Checks of `sdengine doctor`; each looks without importing what is slow to import."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec

from sdengine.backends.nvidia_driver import LIBRARY, cuda_version
from sdengine.errors import SdengineError
from sdengine.images.provenance import cpu_info
from sdengine.machine import usable_processors
from sdengine.storage.cache_place import CACHE_VARIABLE, cache_dir, cache_limit_bytes
from sdengine.storage.temporary import temporary_file

_IMAGE_REMEDY = (
    "build it for this GPU: pip install . -C cmake.define.CMAKE_CUDA_ARCHITECTURES=NN, its compute "
    "capability without the point"
)
_DRIVER_REMEDY = "install NVIDIA's driver for the GPU, if there is one"


@dataclass(frozen=True)
class Check:
    """One finding: `cost` and `remedy` matter where `present` is False."""

    name: str
    present: bool
    found: str
    cost: str = ""
    remedy: str = ""
    required: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the finding as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Package:
    name: str
    module: str
    cost: str
    remedy: str
    required: bool = False
    distribution: str = ""  # its name on the index, where that is another


_PACKAGES = (
    _Package(
        "openvino",
        "openvino",
        "bundles of target openvino do not run; those of target native need nothing more",
        "pip install 'sdengine[openvino]'",
    ),
    _Package(
        "torch",
        "torch",
        "no building, no training, no torch backend; running bundles needs none of it",
        "pip install 'sdengine[build]'",
    ),
    _Package("onnx", "onnx", "no building of bundles", "pip install 'sdengine[build]'"),
    _Package(
        "onnxruntime",
        "onnxruntime",
        "exported networks are not checked, so nothing is built",
        "pip install 'sdengine[build]'",
    ),
    _Package(
        "tensorrt_rtx",
        "tensorrt_rtx",
        "no engines for GeForce RTX GPUs",
        "pip install 'sdengine[tensorrt-rtx]'",
        distribution="tensorrt-rtx-cu13",
    ),
    _Package(
        "tensorrt",
        "tensorrt",
        "no engines for data-centre GPUs",
        "pip install 'sdengine[tensorrt]'",
    ),
    _Package(
        "triton",
        "triton",
        "no Triton kernels: neither the triton backend nor plugins of full TensorRT",
        "pip install 'sdengine[kernels]' (Linux)",
    ),
    _Package("fastapi", "fastapi", "no `sdengine serve`", "pip install 'sdengine[serve]'"),
    _Package(
        "ray",
        "ray",
        "batches and the server run in one process, not on a cluster",
        "pip install 'sdengine[ray]'",
    ),
)


def run_checks() -> list[Check]:
    """Look at everything that sdengine can use, required things first where they fail."""
    single: tuple[Callable[[], Check], ...] = (
        _python,
        _cpu,
        _threads,
        _memory,
        _native_extension,
        _cpu_kernels,
        _native_cuda,
        _nvidia_driver,
    )
    checks = [check() for check in single]
    checks += [_package(package) for package in _PACKAGES]
    checks.append(_cache())
    checks.append(_demo_bundle())
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    supported = sys.version_info >= (3, 10)
    return Check("python", supported, found, "nothing runs", "install Python 3.10 or later", True)


def _cpu() -> Check:
    model, features = cpu_info()
    known = " ".join(features) or "no vector features known"
    return Check("cpu", True, f"{model}, {os.cpu_count()} processors, {known}")


def _threads() -> Check:
    processors = usable_processors()
    quota = "without a quota"
    if processors.quota is not None:
        quota = f"{processors.quota:g} by the control group's quota"
    found = f"{processors.affinity} processors may be used, {quota}: {processors.threads}"
    return Check("threads", True, f"{found} by default")


def _memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(n) for n in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return Check("memory", True, "not known on this system")
    gib = 1 << 30
    return Check("memory", True, f"{total / gib:.1f} GiB, {free / gib:.1f} GiB unused")


def _native_extension() -> Check:
    cost, remedy = "nothing runs", "pip install --force-reinstall sdengine (needs a C++ compiler)"
    try:
        from sdengine import _native

        info = _native.build_info()
    except ImportError as error:
        return Check("native extension", False, str(error), cost, remedy, True)
    cuda = f"CUDA {info['cuda']}" if info["cuda"] else "without CUDA"
    return Check("native extension", True, f"{info['compiler']}, {cuda}", required=True)


def _cpu_kernels() -> Check:
    cost, remedy = "bundles of target native do not run", "unset SDENGINE_ISA, or name one of these"
    try:
        from sdengine import _native
        from sdengine.backends.native.instruction_set import chosen_isa

        chosen, built = chosen_isa(), _native.build_info()["instruction_sets"]
    except (ImportError, SdengineError) as error:
        return Check("CPU kernels", False, str(error), cost, remedy)
    return Check("CPU kernels", True, f"{chosen} run here; built for {', '.join(built)}")


def _native_cuda() -> Check:
    cost = "the GPU is not used, the CPU does all the work"
    remedy = "build with a CUDA toolkit: pip install . -C cmake.define.SDENGINE_CUDA=ON"
    try:
        from sdengine import _native

        usable, reason = _native.cuda_available()
        if "no kernels for it" in reason:
            remedy = _IMAGE_REMEDY
        elif _native.build_info().get("cuda"):
            remedy = _DRIVER_REMEDY
    except ImportError as error:
        usable, reason = False, str(error)
    return Check("native CUDA", bool(usable), reason, cost, remedy)


def _nvidia_driver() -> Check:
    cost = "no NVIDIA GPU can be used"
    remedy = _DRIVER_REMEDY
    version = cuda_version()
    if version is None:
        return Check("nvidia driver", False, f"{LIBRARY} not found", cost, remedy)
    return Check("nvidia driver", True, f"CUDA {version // 1000}.{version % 1000 // 10}")


def _package(package: _Package) -> Check:
    try:
        spec = find_spec(package.module)
    except (ImportError, ValueError):
        spec = None
    found = "not installed"
    if spec is not None:
        try:
            found = metadata.version(package.distribution or package.name)
        except metadata.PackageNotFoundError:
            found = "installed, version not known"
    return Check(
        package.name, spec is not None, found, package.cost, package.remedy, package.required
    )


def _cache() -> Check:
    cost = "weights are packed at every load, exports and compiled kernels are made each time"
    remedy = f"give the user a home folder, or set {CACHE_VARIABLE} to a folder that can be written"
    try:
        limit = cache_limit_bytes()
        place = cache_dir("packed")
        place.mkdir(parents=True, exist_ok=True)
        with temporary_file(place / "doctor"):
            pass
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Check("cache", False, f"{where}{error.strerror}", cost, remedy)
    except SdengineError as error:
        return Check("cache", False, str(error), cost, remedy)
    return Check("cache", True, f"{place.parent}, at most {limit / (1 << 30):.1f} GiB of each kind")


def _demo_bundle() -> Check:
    cost, remedy = "`sdengine generate` needs --bundle", "pip install --force-reinstall sdengine"
    from sdengine.bundle.reader import open_bundle

    try:
        manifest = open_bundle("demo", verify="hash").manifest
    except SdengineError as error:
        return Check("demo bundle", False, str(error), cost, remedy, True)
    sizes = ", ".join(f"{width}x{height}" for width, height in manifest.resolutions)
    return Check("demo bundle", True, f"target {manifest.target}, {sizes}", required=True)
