"""Systems: all that the suite can measure, what each needs, and how it is named."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdengine.benchmarks.cases import NATIVE_SIDES
from sdengine.benchmarks.suite.setting import TASKS
from sdengine.errors import ConfigError

_HOME = "sdengine.benchmarks.suite.sides"
_ENGINE = f"{_HOME}.engine"
_ALL = tuple(NATIVE_SIDES)


@dataclass(frozen=True)
class System:
    """One system.

    Args:
        name: on the command line and in tables.
        module, side: where its class is.
        precisions: that it computes in, its own first.
        devices: where it runs.
        packages: modules whose absence means that it is not installed.
        install: what installs it.
        bundle: target of the bundle that it runs, or None.
        needs_checkpoint: it reads the checkpoint itself.
        tasks, archs: what the suite can ask it for.
        distributions: whose versions records name.
        is_default: a backend of ours that is measured where none is named.
    """

    name: str
    module: str
    side: str
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    packages: tuple[str, ...]
    install: str
    bundle: str | None = None
    needs_checkpoint: bool = False
    tasks: tuple[str, ...] = TASKS
    archs: tuple[str, ...] = _ALL
    distributions: tuple[str, ...] = ()
    is_default: bool = False


@dataclass(frozen=True)
class Chosen:
    """A system in one precision."""

    system: System
    precision: str

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.system.name} {self.precision}"


_TORCH = ("torch",)
_OURS = (
    System(
        "native", _ENGINE, "NativeSide", ("auto", "fp32", "bf16", "int8"), ("cpu",), (), "",
        bundle="native", is_default=True,
    ),
    System(
        "tensorrt-rtx", _ENGINE, "TensorRtRtxSide", ("auto", "fp16", "bf16", "fp32"), ("cuda",),
        ("tensorrt_rtx",), 'pip install "sdengine[tensorrt-rtx]"', bundle="tensorrt-rtx",
        distributions=("tensorrt-rtx-cu13",), is_default=True,
    ),
    System(
        "tensorrt", _ENGINE, "TensorRtSide", ("auto", "fp16", "bf16", "fp32"), ("cuda",),
        ("tensorrt",), 'pip install "sdengine[tensorrt]"', bundle="tensorrt",
        distributions=("tensorrt",), is_default=True,
    ),
    System(
        "triton", _ENGINE, "TritonSide", ("auto", "fp16", "bf16", "fp32"), ("cuda",),
        ("triton", "torch"), 'pip install "sdengine[kernels]" torch', bundle="torch",
        distributions=("triton",), is_default=True,
    ),
)  # fmt: skip
_OPENVINO = System(
    "openvino", _ENGINE, "OpenVinoSide", ("auto", "bf16", "fp32"), ("cpu",), ("openvino",),
    'pip install "sdengine[openvino]"', bundle="openvino", distributions=("openvino",),
)  # fmt: skip
_PEERS = (
    System(
        "eager", _ENGINE, "EagerSide", ("fp32", "bf16", "fp16"), ("cpu", "cuda"), _TORCH,
        'pip install "sdengine[bench]"', bundle="torch",
    ),
    System(
        "compile", f"{_HOME}.diffusers", "CompiledSide", ("fp32", "bf16", "fp16"),
        ("cpu", "cuda"), ("torch", "diffusers"), "pip install torch diffusers transformers",
        needs_checkpoint=True, distributions=("diffusers", "transformers"),
    ),
    System(
        "diffusers", f"{_HOME}.diffusers", "DiffusersSide", ("fp32", "bf16", "fp16"),
        ("cpu", "cuda"), ("torch", "diffusers"), "pip install torch diffusers transformers",
        needs_checkpoint=True, distributions=("diffusers", "transformers"),
    ),
    System(
        "onnxruntime", f"{_HOME}.onnxruntime", "OnnxRuntimeSide", ("fp32",), ("cpu", "cuda"),
        ("onnxruntime",), 'pip install "sdengine[build]"', bundle="torch", needs_checkpoint=True,
        tasks=("text", "image", "inpaint"), distributions=("onnxruntime",),
    ),
    _OPENVINO,
    System(
        "openvino-genai", f"{_HOME}.genai", "OpenVinoGenAISide", ("bf16", "fp32"), ("cpu",),
        ("openvino_genai", "openvino_tokenizers", "diffusers"),
        "pip install openvino-genai openvino-tokenizers diffusers transformers",
        needs_checkpoint=True, tasks=("text",),
        distributions=("openvino-genai", "openvino-tokenizers"),
    ),
    System(
        "stable-diffusion.cpp", f"{_HOME}.ggml", "StableDiffusionCppSide",
        ("f16", "q8_0", "f32"), ("cpu",), ("stable_diffusion_cpp",),
        "pip install stable-diffusion-cpp-python", needs_checkpoint=True, tasks=("text",),
        archs=("sd15", "sd21", "sdxl"), distributions=("stable-diffusion-cpp-python",),
    ),
)  # fmt: skip
OURS: Mapping[str, System] = MappingProxyType(
    {system.name: system for system in (*_OURS, _OPENVINO)}
)
PEERS: Mapping[str, System] = MappingProxyType({system.name: system for system in _PEERS})


def chosen(name: str, among: Mapping[str, System], device: str) -> Chosen:
    """Return the system and the precision that a name means.

    Args:
        name: of a system, with a precision after a hyphen where it is not the system's own.
        among: OURS or PEERS.
        device: "cpu" or "cuda"; where a backend chooses its precision by what computes, it is
            asked.

    Raises:
        ConfigError: there is no such system or precision.
    """
    system = among.get(name)
    precision = None
    if system is None:
        stem, _, last = name.rpartition("-")
        system, precision = among.get(stem), last
    if system is None:
        raise ConfigError.for_field(
            "backends" if among is OURS else "against", name, ", ".join(among)
        )
    if precision is not None and precision not in system.precisions:
        raise ConfigError.for_field(
            system.name, precision, f"a precision of {', '.join(system.precisions)}"
        )
    own = precision or system.precisions[0]
    return Chosen(system, _resolved(system, device) if own == "auto" else own)


def missing(system: System) -> str:
    """Return what installs a system, or nothing where it is installed; nothing is imported."""
    absent = any(importlib.util.find_spec(name) is None for name in system.packages)
    return system.install if absent else ""


def _resolved(system: System, device: str) -> str:
    """Return what a backend of ours computes in where it may choose."""
    from sdengine.backends import get_backend
    from sdengine.errors import SdengineError

    if device == "cuda":
        return "fp16"
    try:
        return get_backend(system.name).resolve("auto")
    except (SdengineError, ImportError):  # not installed, which the table says
        return system.precisions[1]
