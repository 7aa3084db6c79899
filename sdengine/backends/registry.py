"""Backend registry: looked up by name, loaded on first use."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdengine.backends.base import Backend
from sdengine.errors import BackendUnavailableError, ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendInfo:
    """Say where a backend is, and what it runs.

    Args:
        code: "module:class".
        extra: what to install for it.
        target: whose bundles it runs; empty where that has the backend's name.
    """

    code: str
    extra: str
    target: str = ""


BACKENDS: Mapping[str, BackendInfo] = MappingProxyType(
    {
        "native": BackendInfo("sdengine.backends.native.backend:NativeBackend", "sdengine"),
        "openvino": BackendInfo("sdengine.backends.openvino:OpenVinoBackend", "sdengine[openvino]"),
        "torch": BackendInfo("sdengine.backends.torch.eager:TorchBackend", "sdengine[build]"),
        "torch-cuda": BackendInfo(
            "sdengine.backends.torch.cuda:TorchCudaBackend", "sdengine[build]", target="torch"
        ),
        "triton": BackendInfo(
            "sdengine.backends.torch.triton:TritonBackend",
            "sdengine[build,kernels]",
            target="torch",
        ),
        "tensorrt-rtx": BackendInfo(
            "sdengine.backends.tensorrt.backend:TensorRtRtxBackend", "sdengine[tensorrt-rtx]"
        ),
        "tensorrt": BackendInfo(
            "sdengine.backends.tensorrt.backend:TensorRtBackend", "sdengine[tensorrt]"
        ),
    }
)


def get_backend(name: str) -> Backend:
    """Return the backend of that name, whether or not this machine can run it.

    Raises:
        ConfigError: there is no backend of that name.
        BackendUnavailableError: a package that its code needs is not installed.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ConfigError.for_field("backend", name, "auto, " + ", ".join(BACKENDS))
    info = BACKENDS[name]
    module_name, _, class_name = info.code.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend {name}: {error}. Install it: pip install '{info.extra}'."
        ) from None
    backend: Backend = getattr(module, class_name)()
    return backend


def select_backend(name: str, target: str) -> Backend:
    """Choose what runs a bundle.

    Args:
        name: a backend's name, or "auto" for whatever runs bundles of this target.
        target: the target that the bundle was built for.

    Raises:
        ConfigError: there is no backend of that name.
        BackendUnavailableError: the backend named cannot run this bundle or not on this machine;
            no other is tried in its place.
    """
    if name == "auto":
        targets = [known for known, info in BACKENDS.items() if not info.target]
        if target not in targets:
            raise BackendUnavailableError(
                f"the bundle was built for {target!r}, which this release has no backend for; "
                f"it has {', '.join(targets)}."
            )
        backend = _available(target)
        _log.info("backend auto: %s, because the bundle was built for it", target)
        return backend
    backend = get_backend(name)
    wanted = BACKENDS[name].target or name
    if wanted != target:
        raise BackendUnavailableError(
            f"backend {name} cannot run this bundle, which was built for {target}. Build one for "
            f"it: sdengine build CHECKPOINT -o BUNDLE --target {wanted}."
        )
    return _available(name)


def _available(name: str) -> Backend:
    backend = get_backend(name)
    usable, reason = backend.available()
    if not usable:
        raise BackendUnavailableError(f"backend {name} is not available: {reason}")
    return backend
