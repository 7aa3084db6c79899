"""sdengine: Stable Diffusion compiled into engines that run without torch."""

from __future__ import annotations

import importlib

from sdengine.version import __version__

# Names are looked up on first use, so that importing the package costs next to nothing and the
# run time never pulls in the build world. Type checkers know the constant; importing `typing` for
# it would take longer than all the rest.
TYPE_CHECKING = False
_HOMES = {
    "load": "sdengine.loading",
    "Engine": "sdengine.engine",
    "Embedding": "sdengine.inputs.embeddings",
    "read_embeddings": "sdengine.inputs.embedding_files",
    "Request": "sdengine.request.request",
    "Control": "sdengine.request.control",
    "Region": "sdengine.request.region",
    "Result": "sdengine.images.result",
    "Step": "sdengine.images.result",
    "Latents": "sdengine.images.latents",
    "Timings": "sdengine.images.timings",
    "Provenance": "sdengine.images.provenance",
    "Metadata": "sdengine.images.metadata",
    "read_metadata": "sdengine.images.metadata",
    "IPAdapter": "sdengine.request.ip_adapters",
    "preprocess": "sdengine.request.preprocessors",
    "build": "sdengine.building.build",
    "export_onnx": "sdengine.export.folder",
    "load_checkpoint": "sdengine.checkpoints",
    "SdengineError": "sdengine.errors",
    "ConfigError": "sdengine.errors",
    "UnsupportedShapeError": "sdengine.errors",
    "AdapterError": "sdengine.errors",
    "CheckpointError": "sdengine.errors",
    "ExportError": "sdengine.errors",
    "BundleError": "sdengine.errors",
    "BackendUnavailableError": "sdengine.errors",
    "IncompleteInstallationError": "sdengine.errors",
    "EngineBuildError": "sdengine.errors",
    "DeviceError": "sdengine.errors",
    "DeviceLostError": "sdengine.errors",
    "NonFiniteError": "sdengine.errors",
    "OutOfMemoryError": "sdengine.errors",
    "OutputError": "sdengine.errors",
    "TrainingError": "sdengine.errors",
    "Cancelled": "sdengine.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from typing import Any

    from sdengine.building.build import build as build
    from sdengine.checkpoints import load_checkpoint as load_checkpoint
    from sdengine.engine import Engine as Engine
    from sdengine.errors import AdapterError as AdapterError
    from sdengine.errors import BackendUnavailableError as BackendUnavailableError
    from sdengine.errors import BundleError as BundleError
    from sdengine.errors import Cancelled as Cancelled
    from sdengine.errors import CheckpointError as CheckpointError
    from sdengine.errors import ConfigError as ConfigError
    from sdengine.errors import DeviceError as DeviceError
    from sdengine.errors import DeviceLostError as DeviceLostError
    from sdengine.errors import EngineBuildError as EngineBuildError
    from sdengine.errors import ExportError as ExportError
    from sdengine.errors import IncompleteInstallationError as IncompleteInstallationError
    from sdengine.errors import NonFiniteError as NonFiniteError
    from sdengine.errors import OutOfMemoryError as OutOfMemoryError
    from sdengine.errors import OutputError as OutputError
    from sdengine.errors import SdengineError as SdengineError
    from sdengine.errors import TrainingError as TrainingError
    from sdengine.errors import UnsupportedShapeError as UnsupportedShapeError
    from sdengine.export.folder import export_onnx as export_onnx
    from sdengine.images.latents import Latents as Latents
    from sdengine.images.metadata import Metadata as Metadata
    from sdengine.images.metadata import read_metadata as read_metadata
    from sdengine.images.provenance import Provenance as Provenance
    from sdengine.images.result import Result as Result
    from sdengine.images.result import Step as Step
    from sdengine.images.timings import Timings as Timings
    from sdengine.inputs.embedding_files import read_embeddings as read_embeddings
    from sdengine.inputs.embeddings import Embedding as Embedding
    from sdengine.loading import load as load
    from sdengine.request.control import Control as Control
    from sdengine.request.ip_adapters import IPAdapter as IPAdapter
    from sdengine.request.preprocessors import preprocess as preprocess
    from sdengine.request.region import Region as Region
    from sdengine.request.request import Request as Request


def __getattr__(name: str) -> Any:
    if name == "_native":
        return _native_extension()
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'sdengine' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def _native_extension() -> Any:
    try:
        return importlib.import_module("sdengine._native")
    except ModuleNotFoundError:
        from sdengine.errors import IncompleteInstallationError

        raise IncompleteInstallationError.of("_native", __path__[0]) from None


def __dir__() -> list[str]:
    return sorted(__all__)
