"""ONNX network that a user names, which makes a hint of a picture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.inputs.resize import Pixels
from sdengine.machine import usable_processors
from sdengine.storage.regular_file import open_regular

RANGES = ("unit", "minmax")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_MAX_FILE_BYTES = 2**31 - 1  # of an ONNX file; what is larger lies beside it
# What its maps may take, whatever sizes its operators ask for, and what may run for ever.
_MOST_BYTES = 4 << 30
_MAX_NODES = 20_000
_LOOPS = ("Loop", "Scan", "SequenceMap")
_OVERSHOOT = 0.1  # of networks that end without a sigmoid
_ACCEPTED = "a network from one picture, [1,3,H,W] or [1,H,W,3] of float, float16 or uint8"


class OnnxNetwork:
    """A network from a picture to a map of one or three channels.

    Its one input is [1,3,H,W] or [1,H,W,3], of fixed or free sizes: floats are in [0,1] and then
    normalised, uint8 is 0 to 255. Of its outputs the first counts: a map of one or three channels
    of any size, with or without the other axes. What it computes may take 4 GiB.

    Args:
        field: what errors call it.
        path: of the file; weights beside it are read from its folder alone.

    Raises:
        ConfigError: it is no such file, damaged, or of other inputs.
        BackendUnavailableError: onnx or onnxruntime is not installed.
    """

    def __init__(self, field: str, path: str) -> None:
        self.field, self.name = field, repr(Path(path).name[:200])
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            package = (error.name or "").partition(".")[0]
            raise BackendUnavailableError(
                f"{field}: {package} is not installed, which ONNX networks need. Install it: "
                "pip install 'sdengine[preprocess]'."
            ) from None
        _check_file(field, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; the log would say it twice
        options.intra_op_num_threads = usable_processors().threads_by_quota or 0  # 0: its choice
        options.add_session_config_entry("session.use_env_allocators", "1")
        _bound_memory()
        try:
            # onnx refuses weights outside of the folder, which not every onnxruntime does.
            model = onnx.load(path)
            _require_bounded(field, self.name, model)
            content = model.SerializeToString()
            self._session: Any = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except ConfigError:
            raise
        except Exception as error:  # what each of the two raises has no base of its own
            raise ConfigError(
                f"{field}: {self.name} is no ONNX network that onnxruntime reads: "
                f"{_first_line(error)}. Expected {_ACCEPTED}."
            ) from None
        self._check_inputs()

    def _check_inputs(self) -> None:
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        shown = ", ".join(f"{i.name} {i.type} {list(i.shape)}" for i in inputs)
        is_one = len(inputs) == 1 and len(shape) == 4 and shape[0] in (1, None, _named(shape[0]))
        if not is_one or inputs[0].type not in _DTYPES or 3 not in (shape[1], shape[3]):
            raise ConfigError.for_field(self.field, _Shown(shown or "no input"), _ACCEPTED)
        self._input, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        self._channels_first = shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        # (height, width) that the file fixes.
        self._sides = [side if isinstance(side, int) and side > 0 else None for side in sides]

    def hint(
        self,
        pixels: Pixels,
        *,
        multiple: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        range: str,
    ) -> Pixels:
        """Run the network.

        Args:
            pixels: [H,W,3].
            multiple: of what free sides must be one.
            mean, std: of each channel in [0,1], subtracted and divided by; not with uint8.
            range: of the output: "unit" is [0,1], "minmax" whatever it spans.

        Returns:
            [H,W,3] uint8, of the picture's size.

        Raises:
            ConfigError: the network does not run on it, or gave something else.
        """
        height, width = pixels.shape[:2]
        rows, columns = (
            fixed or max(1, round(side / multiple)) * multiple
            for fixed, side in zip(self._sides, (height, width), strict=True)
        )
        given = self._given(_scaled(pixels.astype(np.float32), rows, columns), mean, std)
        try:
            found = np.asarray(self._session.run(None, {self._input: given})[0])
        except Exception as error:
            raise ConfigError(
                f"{self.field}: {self.name} does not run on {columns}x{rows} pixels: "
                f"{_first_line(error)}. If its sides must be multiples of a number, give multiple, "
                "such as 32; resolution changes the size."
            ) from None
        values = self._in_unit(self._map(found), range)
        found = _scaled(values, height, width).clip(0, 1)
        return np.asarray(np.rint(found * 255), np.uint8)

    def _given(
        self, values: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> NDArray[Any]:
        if self._dtype is np.uint8:
            if any(mean) or any(s != 1 for s in std):
                accepted = "0,0,0 and 1,1,1, because the network reads 0 to 255"
                raise ConfigError.for_field("mean and std", (mean, std), accepted)
            values = np.rint(values.clip(0, 255))
        else:
            shift, divisor = (np.array(numbers, np.float32) for numbers in (mean, std))
            values = ((values.clip(0, 255) / 255 - shift) / divisor).astype(np.float32)
        if self._channels_first:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None].astype(self._dtype))

    def _map(self, found: NDArray[Any]) -> NDArray[np.float32]:
        shape = [size for size in found.shape if size != 1]
        if found.dtype.kind not in "fiu" or 0 in shape or len(shape) not in (2, 3):
            raise self._not_a_map(found)
        values = found.reshape(shape).astype(np.float32)
        if values.ndim == 3 and 3 not in (shape[0], shape[2]):
            raise self._not_a_map(found)
        if not np.isfinite(values).all():
            raise ConfigError(f"{self.field}: {self.name} gave NaN or infinity.")
        if values.ndim == 2:
            return np.repeat(values[..., None], 3, axis=2)
        return values if shape[2] == 3 else values.transpose(1, 2, 0)

    def _not_a_map(self, found: NDArray[Any]) -> ConfigError:
        shown = _Shown(f"{self.name} with a first output {list(found.shape)} of {found.dtype}")
        return ConfigError.for_field(self.field, shown, "a map of one or three channels")

    def _in_unit(self, values: NDArray[np.float32], range: str) -> NDArray[np.float32]:
        low, high = float(values.min()), float(values.max())
        if range == "minmax":
            return np.asarray((values - low) / ((high - low) or 1), np.float32)
        if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
            raise ConfigError(
                f"{self.field}: {self.name} gave values from {low:g} to {high:g}, not from 0 to 1. "
                "Give range minmax to stretch what they span."
            )
        return values


def _check_file(field: str, path: str) -> None:
    try:
        with open_regular(Path(path)) as file:
            if file.seek(0, 2) > _MAX_FILE_BYTES:
                raise ConfigError.for_field(field, path, "a file of less than 2 GiB")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{field}: {path[:200]!r} cannot be read: {reason}.") from None


@functools.cache
def _bound_memory() -> None:
    """Let networks that ask for it share an arena of so many bytes, and no more."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    where = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg({"max_mem": _MOST_BYTES})
    onnxruntime.create_and_register_allocator(where, arena)


def _require_bounded(field: str, name: str, model: Any) -> None:
    """Refuse a network that may run for ever."""
    found = "functions of its own" if len(model.functions) else ""
    for count, node in enumerate(_nodes(model.graph), 1):
        if node.op_type in _LOOPS:
            found = f"operator {node.op_type}"
        if count > _MAX_NODES:
            found = f"more than {_MAX_NODES} operators"
        if found:
            raise ConfigError(
                f"{field}: {name} has {found}, so that nothing bounds how long it runs. Expected "
                f"{_ACCEPTED}, without loops."
            )


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield a graph's operators, and those of graphs inside them."""
    graphs = [graph]
    while graphs:
        for node in graphs.pop().node:
            yield node
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def _scaled(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize [h,w,3] by a cubic filter that averages where it shrinks."""
    from PIL import Image

    if values.shape[:2] == (height, width):
        return values
    channels = [Image.fromarray(np.ascontiguousarray(values[..., c])) for c in (0, 1, 2)]
    size, how = (width, height), Image.Resampling.BICUBIC
    return np.stack([np.asarray(channel.resize(size, how)) for channel in channels], axis=2)


def _named(size: Any) -> Any:
    return size if isinstance(size, str) else 1


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


class _Shown:
    """Show a text in a message without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text
