"""sdengine: Stable Diffusion compiled into engines that run without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names are looked up on first use, so that importing the package costs next to nothing and the
# run time never pulls in the build world.
_HOMES = {
    "load": "sdengine.pipeline",
    "Engine": "sdengine.pipeline",
    "Request": "sdengine.request",
    "Result": "sdengine.result",
    "Step": "sdengine.result",
    "Timings": "sdengine.result",
    "build": "sdengine.export.build",
    "export_onnx": "sdengine.export.onnx_files",
    "load_checkpoint": "sdengine.checkpoints",
    "SdengineError": "sdengine.errors",
    "ConfigError": "sdengine.errors",
    "UnsupportedShapeError": "sdengine.errors",
    "CheckpointError": "sdengine.errors",
    "ExportError": "sdengine.errors",
    "BundleError": "sdengine.errors",
    "BackendUnavailableError": "sdengine.errors",
    "EngineBuildError": "sdengine.errors",
    "DeviceError": "sdengine.errors",
    "NonFiniteError": "sdengine.errors",
    "OutOfMemoryError": "sdengine.errors",
    "OutputError": "sdengine.errors",
    "Cancelled": "sdengine.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from sdengine.checkpoints import load_checkpoint as load_checkpoint
    from sdengine.errors import BackendUnavailableError as BackendUnavailableError
    from sdengine.errors import BundleError as BundleError
    from sdengine.errors import Cancelled as Cancelled
    from sdengine.errors import CheckpointError as CheckpointError
    from sdengine.errors import ConfigError as ConfigError
    from sdengine.errors import DeviceError as DeviceError
    from sdengine.errors import EngineBuildError as EngineBuildError
    from sdengine.errors import ExportError as ExportError
    from sdengine.errors import NonFiniteError as NonFiniteError
    from sdengine.errors import OutOfMemoryError as OutOfMemoryError
    from sdengine.errors import OutputError as OutputError
    from sdengine.errors import SdengineError as SdengineError
    from sdengine.errors import UnsupportedShapeError as UnsupportedShapeError
    from sdengine.export.build import build as build
    from sdengine.export.onnx_files import export_onnx as export_onnx
    from sdengine.pipeline import Engine as Engine
    from sdengine.pipeline import load as load
    from sdengine.request import Request as Request
    from sdengine.result import Result as Result
    from sdengine.result import Step as Step
    from sdengine.result import Timings as Timings


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'sdengine' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
