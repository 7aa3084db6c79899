"""Model of Triton Inference Server's Python backend, over an engine.

The server finds `TritonPythonModel` through the `model.py` that `triton_repository` writes, in a
process for each instance of a model.

Source: the README of triton-inference-server/python_backend, and what its `pb_stub.cc` offers.
"""

from __future__ import annotations

import importlib
import threading
import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import Cancelled, ConfigError, SdengineError
from sdengine.images.result import Step
from sdengine.loading import load
from sdengine.machine import usable_processors
from sdengine.pipeline.joining import join_key, joined, parted
from sdengine.request.request import MAX_BATCH, Request
from sdengine.serving.triton_requests import read_requests
from sdengine.serving.triton_settings import Settings, read_settings
from sdengine.serving.triton_tensors import (
    IMAGES,
    METADATA,
    SEEDS,
    WARNINGS,
    numpy_type,
)
from sdengine.version import __version__

BUNDLE_FOLDER = "bundle"  # beside model.py
_CANCELLED = "the client cancelled the request."


@dataclass
class _Picture:
    pixels: NDArray[np.uint8]
    request: Request
    warnings: tuple[str, ...]


@dataclass
class _Job:
    """One of the server's requests: the pictures that it asks for, and what became of them.

    Args:
        handle: the server's InferenceRequest.
        requests: one a picture.
        keys: of each, equal where pictures may be made together.
        pictures: by their number.
        error: that the client is told instead.
    """

    handle: Any
    requests: list[Request] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)
    pictures: dict[int, _Picture] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def is_cancelled(self) -> bool:
        return bool(self.handle.is_cancelled())


class TritonPythonModel:
    """What the server's Python backend asks of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle and what requests of its usual size need.

        Args:
            args: the server's: model_config (JSON), model_instance_kind, model_instance_device_id,
                model_repository (the model's own folder), model_version, model_name.

        Raises:
            SdengineError: the configuration or the bundle is not what this model can serve; the
                server tells it and does not offer the model.
        """
        # It exists in the server's processes alone.
        self._backend_utils: Any = importlib.import_module("triton_python_backend_utils")
        self._settings = read_settings(args["model_config"])
        place = Path(args["model_repository"], args["model_version"], BUNDLE_FOLDER)
        is_gpu = args["model_instance_kind"] == "GPU"
        self._engine = load(
            place,
            backend=self._settings.backend,
            precision=self._settings.precision,
            threads=None if is_gpu else self._threads(),
            device=int(args["model_instance_device_id"]) if is_gpu else None,
        )
        try:
            most = min(self._settings.most_rows, self._engine.bundle.manifest.max_batch)
            for count in sorted({1, max(1, most)}):  # other numbers load a little on first use
                self._engine.warm_up(batch=count)
        except BaseException:
            self._engine.close()
            raise
        engine = self._engine
        self._backend_utils.Logger.log_info(
            f"{args['model_name']}: sdengine {__version__}, backend {engine.backend.name}, "
            f"precision {engine.precision}, threads {engine.threads}"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with its pictures or with its own error.

        Args:
            requests: the server's InferenceRequest objects.

        Returns:
            An InferenceResponse for each.
        """
        jobs = [self._read(request) for request in requests]
        groups: dict[Hashable, list[tuple[_Job, int]]] = {}
        for job in jobs:
            for index, key in enumerate(job.keys):
                groups.setdefault(key, []).append((job, index))
        for rows in groups.values():
            for first in range(0, len(rows), MAX_BATCH):
                self._serve(rows[first : first + MAX_BATCH])
        return [self._response(job) for job in jobs]

    def finalize(self) -> None:
        """Free the networks."""
        self._engine.close()

    def _threads(self) -> int:
        """Return this instance's share of the machine's processors."""
        if self._settings.threads is not None:
            return self._settings.threads
        there, instances = usable_processors().threads, max(1, self._settings.cpu_instances)
        if instances > there:
            self._backend_utils.Logger.log_warn(
                f"{instances} instances share {there} processors; fewer would be faster."
            )
        return max(1, there // instances)

    def _read(self, request: Any) -> _Job:
        job = _Job(request)
        try:
            if job.is_cancelled:
                raise Cancelled(_CANCELLED)
            spelling = self._settings.spelling
            found = {
                one.field: self._backend_utils.get_input_tensor_by_name(request, name)
                for one in self._settings.inputs
                for name in (one.spelled(spelling),)
            }
            given = {name: one.as_numpy() for name, one in found.items() if one is not None}
            job.requests = read_requests(given, self._engine, self._settings)
            plan = self._engine.plan
            job.keys = [join_key(one, plan(one)) or object() for one in job.requests]
        except Exception as error:
            job.error = error
        return job

    def _serve(self, rows: list[tuple[_Job, int]]) -> None:
        """Make pictures together, or keep what went wrong."""
        rows = [(job, index) for job, index in rows if job.error is None]
        jobs = list({id(job): job for job, _ in rows}.values())
        if not jobs:
            return
        try:
            self._run(rows, jobs)
        except Exception as error:
            if len(jobs) > 1 and not isinstance(error, Cancelled):
                for one in jobs:  # whose it is, or whether together they are too many
                    self._serve([row for row in rows if row[0] is one])
                return
            for job in jobs:
                job.error = error
        for job in jobs:
            if job.error is None and job.is_cancelled:
                job.error = Cancelled(_CANCELLED)

    def _run(self, rows: list[tuple[_Job, int]], jobs: list[_Job]) -> None:
        cancel = threading.Event()

        def watch(step: Step) -> None:
            if all(job.is_cancelled for job in jobs):
                cancel.set()

        requests = [job.requests[index] for job, index in rows]
        result = self._engine.run(joined(requests), progress=watch, cancel=cancel)
        for (job, index), own in zip(rows, parted(result, requests), strict=True):
            job.pictures[index] = _Picture(own.arrays[0], own.request, own.warnings)

    def _response(self, job: _Job) -> Any:
        if job.error is not None:
            error = self._error(job.error)
            return self._backend_utils.InferenceResponse(output_tensors=[], error=error)
        pictures = [job.pictures[index] for index in range(len(job.requests))]
        columns: dict[str, NDArray[Any]] = {
            IMAGES.name: _pixels(pictures, self._settings),
            SEEDS.name: np.array([one.request.seeds[0] for one in pictures], np.int64),
            METADATA.name: _texts([one.request.to_json() for one in pictures]),
            WARNINGS.name: _texts(["\n".join(one.warnings) for one in pictures]),
        }
        if self._settings.is_batched:
            columns |= {n: a[:, None] for n, a in columns.items() if n != IMAGES.name}
        tensors = [
            self._backend_utils.Tensor(one.spelled(self._settings.spelling), columns[one.name])
            for one in self._settings.outputs
        ]
        return self._backend_utils.InferenceResponse(output_tensors=tensors)

    def _error(self, error: Exception) -> Any:
        kinds = self._backend_utils.TritonError
        if isinstance(error, ConfigError):
            return kinds(str(error), kinds.INVALID_ARG)
        if isinstance(error, Cancelled):
            return kinds(str(error), kinds.CANCELLED)
        if isinstance(error, SdengineError):
            return kinds(str(error), kinds.INTERNAL)
        told = "".join(traceback.format_exception(error))
        self._backend_utils.Logger.log_error(told)
        return kinds(f"{type(error).__name__}: {error}", kinds.INTERNAL)


def _pixels(pictures: Sequence[_Picture], settings: Settings) -> NDArray[Any]:
    """Return [N,H,W,3]: 0 to 255, or of floats 0 to 1."""
    pixels = np.stack([one.pixels for one in pictures])
    kind = numpy_type(settings.pixel_type)
    if kind is np.uint8:
        return pixels
    return (pixels.astype(np.float32) / 255).astype(kind)


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    array = np.empty(len(texts), dtype=np.object_)
    array[:] = [text.encode() for text in texts]
    return array
