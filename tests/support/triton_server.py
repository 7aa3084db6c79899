"""A stand-in of Triton Inference Server with its Python backend, as strict as these are.

It reads a model repository, loads `model.py` as the backend's stub process does, checks requests
against `config.pbtxt` as the server's core does before a model sees them, and the answers too.

Source: triton-inference-server/core (`infer_request.cc`, `model_config_utils.cc`), common
(`model_config.proto`) and python_backend (`pb_stub.cc`, `pb_tensor.cc`, `python_be.cc`).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
UTILS = "triton_python_backend_utils"
_TYPES: dict[str, Any] = {
    "TYPE_STRING": np.object_,
    "TYPE_UINT8": np.uint8,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
}
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_]\w*)|(-?\d+)|([{}\[\]:,]))')
# Field: what it holds. "many" is repeated, "map" a map of keys to values.
_SCHEMA: dict[str, dict[str, str]] = {
    "": {
        "name": "string",
        "backend": "string",
        "max_batch_size": "int",
        "dynamic_batching": "dynamic_batching",
        "input": "many input",
        "output": "many output",
        "instance_group": "many instance_group",
        "parameters": "map parameters",
    },
    "dynamic_batching": {"max_queue_delay_microseconds": "int"},
    "input": {"name": "string", "data_type": "enum", "dims": "many int", "optional": "bool"},
    "output": {"name": "string", "data_type": "enum", "dims": "many int"},
    "instance_group": {"count": "int", "kind": "enum", "gpus": "many int"},
    "parameters": {"key": "string", "value": "parameter"},
    "parameter": {"string_value": "string"},
}


def read_config(text: str) -> dict[str, Any]:
    """Read `config.pbtxt`, as JSON holds it; fields that the server does not know are refused."""
    tokens = list(_tokens(text))
    tokens.append("}")
    return _message(iter(tokens), "")


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        assert found, f"config.pbtxt: {text[place : place + 40]!r}"
        place = found.end()
        yield found.group().strip()


def _message(tokens: Iterator[str], kind: str) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for name in tokens:
        if name == "}":
            return message
        form, _, held = _SCHEMA[kind][name].rpartition(" ")
        token = next(tokens)
        if token == ":":
            token = next(tokens)
        values = [_value(token, tokens, held)] if token != "[" else list(_listed(tokens, held))
        if form == "map":
            (entry,) = values
            assert entry["key"] not in message.setdefault(name, {})
            message[name][entry["key"]] = entry["value"]
        elif form == "many":
            message.setdefault(name, []).extend(values)
        else:
            assert name not in message, f"{name} is there twice"
            (message[name],) = values
    raise AssertionError("config.pbtxt ends too early")


def _listed(tokens: Iterator[str], held: str) -> Iterator[Any]:
    for token in tokens:
        if token == "]":
            return
        if token != ",":
            yield _value(token, tokens, held)


def _value(token: str, tokens: Iterator[str], held: str) -> Any:
    if token == "{":
        return _message(tokens, held)
    if held == "string":
        return json.loads(token)
    if held == "int":
        return int(token)
    if held == "bool":
        return {"true": True, "false": False}[token]
    assert held == "enum" and token.isidentifier(), f"{token} is no {held}"
    return token


class Tensor:
    """What the backend calls a tensor; strings are bytes objects."""

    def __init__(self, name: str, array: Array) -> None:
        assert type(name) is str and isinstance(array, np.ndarray)
        kinds = [kind for kind, numpy in _TYPES.items() if array.dtype == numpy]
        assert kinds, f"{name}: {array.dtype} is no type of the server's"
        if array.dtype == np.object_:
            assert all(type(one) is bytes for one in array.flat), f"{name}: strings are bytes"
        self._name, self._array, self.data_type = name, array, kinds[0]

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


class InferenceRequest:
    """What a model is given; the server frees its tensors after `execute`."""

    def __init__(self, tensors: Sequence[Tensor], is_cancelled: Callable[[], bool]) -> None:
        self._tensors = list(tensors)
        self._is_cancelled = is_cancelled

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def is_cancelled(self) -> bool:
        return self._is_cancelled()


class TritonError:
    """An error of one request."""

    CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED")
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = CODES
    ALREADY_EXISTS, CANCELLED = "ALREADY_EXISTS", "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        assert type(message) is str and code in (*self.CODES, "ALREADY_EXISTS", "CANCELLED")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class InferenceResponse:
    """What a model answers a request: tensors, or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        assert all(isinstance(one, Tensor) for one in output_tensors)
        assert error is None or isinstance(error, TritonError)
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """The server's log, kept by level."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def log_info(self, line: str) -> None:
        self.lines.append(("info", line))

    def log_warn(self, line: str) -> None:
        self.lines.append(("warn", line))

    def log_error(self, line: str) -> None:
        self.lines.append(("error", line))


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((one for one in request.inputs() if one.name() == name), None)


class Server:
    """A loaded model.

    Args:
        folder: the model's, in its repository.
        kind, device: of this instance.
        changes: of the configuration, as whoever runs the server may make them.
    """

    def __init__(
        self,
        folder: Path,
        kind: str = "CPU",
        device: int = 0,
        changes: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config = read_config((folder / "config.pbtxt").read_text())
        if changes is not None:
            changes(self.config)
        assert self.config["name"] == folder.name and self.config["backend"] == "python"
        for one in (*self.config["input"], *self.config["output"]):
            assert one["data_type"] in _TYPES and one["dims"] and 0 not in one["dims"]
        self.log = Logger()
        with self._backend():
            self.model = _model_class(folder)()
            self.model.initialize(
                {
                    "model_config": json.dumps(self.config),
                    "model_instance_kind": kind,
                    "model_instance_device_id": str(device),
                    "model_repository": str(folder),
                    "model_version": "1",
                    "model_name": folder.name,
                }
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.model.finalize()

    def infer(self, **inputs: Any) -> dict[str, Array]:
        """Answer one request, whose inputs are lists of values or arrays, or raise its error."""
        (answer,) = self.infer_all([inputs])
        assert isinstance(answer, dict), f"{answer.code()}: {answer.message()}"
        return answer

    def refused(self, **inputs: Any) -> TritonError:
        """Return the error of a request."""
        (answer,) = self.infer_all([inputs])
        assert isinstance(answer, TritonError)
        return answer

    def infer_all(
        self,
        requests: Sequence[Mapping[str, Any]],
        is_cancelled: Callable[[int], bool] = lambda number: False,
    ) -> list[dict[str, Array] | TritonError]:
        """Answer requests that the server puts into one batch.

        Args:
            requests: the inputs of each by name.
            is_cancelled: whether the client of a request, by its number, has gone.
        """
        given = [
            InferenceRequest(
                [self._input(name, value) for name, value in one.items()],
                lambda number=number: is_cancelled(number),  # type: ignore[misc]
            )
            for number, one in enumerate(requests)
        ]
        rows = [self._rows(one) for one in given]
        most = self.config["max_batch_size"]
        assert sum(rows) <= most if most else len(given) == 1
        answers = self.model.execute(given)
        assert len(answers) == len(given) == len({id(one) for one in answers})
        return [self._checked(one, count) for one, count in zip(answers, rows, strict=True)]

    def _input(self, name: str, value: Any) -> Tensor:
        (config,) = [one for one in self.config["input"] if one["name"] == name] or [None]
        assert config is not None, f"unexpected inference input '{name}'"
        if not isinstance(value, np.ndarray):
            value = np.array(value, dtype=_TYPES[config["data_type"]])
        if value.dtype == np.object_:
            flat = [one.encode() if isinstance(one, str) else one for one in value.flat]
            kept, value = value, np.empty(value.shape, dtype=np.object_)
            value.reshape(-1)[:] = flat
            assert kept.shape == value.shape
        tensor = Tensor(name, value)
        assert tensor.data_type == config["data_type"], f"{name}: {tensor.data_type}"
        self._check_shape(name, value.shape, config["dims"])
        return tensor

    def _check_shape(self, name: str, shape: tuple[int, ...], dims: Sequence[int]) -> None:
        own = shape[1:] if self.config["max_batch_size"] else shape
        fits = len(own) == len(dims) and all(
            dim in (-1, size) for size, dim in zip(own, dims, strict=True)
        )
        assert fits, f"unexpected shape for '{name}': {list(shape)}, expected {dims}"

    def _rows(self, request: InferenceRequest) -> int:
        names = {one.name() for one in request.inputs()}
        needed = {one["name"] for one in self.config["input"] if not one.get("optional")}
        assert needed <= names, f"missing: {needed - names}"
        if not self.config["max_batch_size"]:
            return 1
        (count,) = {len(one.as_numpy()) for one in request.inputs()}
        return count

    def _checked(self, response: InferenceResponse, rows: int) -> dict[str, Array] | TritonError:
        error = response.error()
        if error is not None:
            return error
        found = {one.name(): one for one in response.output_tensors()}
        configs = {one["name"]: one for one in self.config["output"]}
        assert list(found) == list(configs)
        for name, tensor in found.items():
            assert tensor.data_type == configs[name]["data_type"]
            self._check_shape(name, tensor.as_numpy().shape, configs[name]["dims"])
            if self.config["max_batch_size"]:
                assert len(tensor.as_numpy()) == rows
        return {name: tensor.as_numpy() for name, tensor in found.items()}

    @contextmanager
    def _backend(self) -> Iterator[None]:
        """Let a module that exists in the server alone be imported."""
        module: Any = types.ModuleType(UTILS)
        for one in (Tensor, InferenceResponse, TritonError, get_input_tensor_by_name):
            setattr(module, one.__name__, one)
        module.Logger = self.log
        sys.modules[UTILS] = module
        try:
            yield
        finally:
            del sys.modules[UTILS]


def _model_class(folder: Path) -> Any:
    """Import `model.py` as the stub does: by its version's folder, at the end of the path."""
    added = [str(folder / "1"), str(folder)]
    sys.path.extend(added)
    try:
        return importlib.import_module("1.model").TritonPythonModel
    finally:
        for path in added:
            sys.path.remove(path)
        for name in [name for name in sys.modules if name.split(".")[0] == "1"]:
            del sys.modules[name]
        importlib.invalidate_caches()
