"""Upscaler: an ONNX file of the ESRGAN kind that a user brings, run on pixels tile by tile.

Such a network maps RGB in [0,1], [1,3,h,w], to the same picture k times as large. It is untrusted:
the file holds all its data, uses standard operators without control flow, and every tensor's size
is known and bounded before anything runs.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.inputs.picture import MAX_PIXELS, Pixels, read_file
from sdengine.inputs.recorded import Recorded
from sdengine.inputs.resize import resized
from sdengine.machine import usable_processors

ACCEPTED = "the path of an ONNX file, or its content"
TILE = 128
MAX_FACTOR = 8
_MAX_ELEMENTS = 1 << 26  # of a tensor, for a tile
_MAX_NODES = 20_000


class UpscalerFile(Recorded):
    """The content of an ONNX file, not yet looked at."""

    def __init__(self, content: bytes, name: str = "") -> None:
        super().__init__(hashlib.sha256(content).hexdigest(), name)
        self.content = content


def read_upscaler(field: str, value: Any) -> Recorded:
    """Return an upscaler's file, whatever it was given as.

    Raises:
        ConfigError: it is neither a path nor content, or cannot be read.
    """
    if isinstance(value, UpscalerFile) or type(value) is Recorded:
        return value
    if isinstance(value, (str, os.PathLike)):
        return UpscalerFile(read_file(field, Path(value)), Path(value).name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return UpscalerFile(bytes(value))
    raise ConfigError.for_field(field, value, ACCEPTED)


class Upscaler:
    """A network that is ready to run.

    Args:
        session: of onnxruntime, for one tile.
        tile: height and width of its input.
        factor: by which its output is larger.
        dtype: of its input.
    """

    def __init__(self, session: Any, tile: tuple[int, int], factor: int, dtype: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.tile = tile
        self.factor = factor
        self._dtype = dtype

    def __call__(self, pixels: Pixels, wraps: str = "none") -> Pixels:
        """Return [h,w,3|4] pixels enlarged by the factor; alpha is resized apart, by Lanczos.

        Edges meet along the axes of `wraps`, "none", "x", "y" or "xy".

        Tiles overlap by a quarter; of each only the middle is taken, so that what lies nearer to a
        seam than an eighth of a tile is computed with what lies around it.
        """
        height, width = pixels.shape[:2]
        k = self.factor
        if height * width * k * k > MAX_PIXELS:
            shown = f"{width * k}x{height * k} pixels"
            raise ConfigError.for_field("upscaler", shown, f"at most {MAX_PIXELS} of them")
        found = np.empty((height * k, width * k, 3), np.uint8)
        (rows, above), (columns, left) = ((size - 2 * (size // 8), size // 8) for size in self.tile)
        wide = pixels[..., :3]
        sides = (above, above + max(0, rows - height)), (left, left + max(0, columns - width))
        for axis, name in enumerate("yx"):
            around = [(0, 0)] * 3
            around[axis] = sides[axis]
            wide = np.pad(wide, around, "wrap" if name in wraps else "edge")
        for top in _starts(height, rows):
            for first in _starts(width, columns):
                part = wide[top : top + self.tile[0], first : first + self.tile[1]]
                middle = self._run(part)[above * k :, left * k :]
                place = found[top * k : (top + rows) * k, first * k : (first + columns) * k]
                place[...] = middle[: place.shape[0], : place.shape[1]]
        if pixels.shape[2] == 3:
            return found
        alpha = np.repeat(pixels[..., 3:], 3, axis=2)
        larger = resized(alpha, width * k, height * k, "stretch", wraps=wraps)[..., :1]
        return np.concatenate([found, larger], axis=2)

    def _run(self, part: Pixels) -> Pixels:
        values = np.ascontiguousarray(part.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        (output,) = self._session.run(None, {self._input: values.astype(self._dtype)})
        levels = np.rint(np.nan_to_num(output[0].astype(np.float32)).clip(0, 1) * 255)
        return np.asarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _starts(count: int, step: int) -> Iterator[int]:
    """Yield where the middles of tiles begin; the last one is moved inward."""
    for start in range(0, count, step):
        yield max(0, min(start, count - step))


def upscaled_to(
    upscaler: Upscaler, pixels: Pixels, width: int, height: int, wraps: str = "none"
) -> Pixels:
    """Return pixels enlarged by the network until they cover a size; never shrunk to it."""
    while pixels.shape[1] < width or pixels.shape[0] < height:
        pixels = upscaler(pixels, wraps)
    return pixels


@functools.lru_cache(maxsize=1)
def open_upscaler(field: str, file: UpscalerFile) -> Upscaler:
    """Check an upscaler's file and make it ready.

    Args:
        field: what errors call it.
        file: given.

    Raises:
        ConfigError: it is no ONNX network of this kind.
        BackendUnavailableError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"{field}: running it needs {error.name}, which is not installed. Install it: "
            "pip install 'sdengine[preprocess]'."
        ) from None
    what = repr(file.name[:200]) if file.name else "the content"
    try:
        model = onnx.load_model_from_string(file.content)
    except Exception:  # of whichever implementation of protobuf
        raise ConfigError(f"{field}: {what} is no ONNX file.") from None
    tile, dtype = _prepared(field, what, model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # of its own types, and others
        raise _refused(field, what, str(error)) from None
    factor = _factor(field, what, inferred, tile)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_processors().threads_by_quota or 0  # 0: its choice
    try:
        session = onnxruntime.InferenceSession(
            inferred.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no public base class
        raise _refused(field, what, str(error)) from None
    return Upscaler(session, tile, factor, dtype)


def _refused(field: str, what: str, reason: str) -> ConfigError:
    shown = " ".join(reason.split())[:200].rstrip(".")
    shown = shown if shown.isprintable() else ascii(shown)
    return ConfigError(f"{field}: {what} cannot be run as an upscaler: {shown}.")


def _prepared(field: str, what: str, model: Any) -> tuple[tuple[int, int], Any]:
    """Fix the size of a network's input to a tile; return it and the input's data type."""
    import onnx

    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in known]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise _refused(field, what, f"{len(inputs)} inputs, {len(graph.output)} outputs, not one")
    if len(graph.node) > _MAX_NODES or len(model.functions) or len(graph.sparse_initializer):
        raise _refused(field, what, "it has more nodes than are accepted, or functions")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise _refused(field, what, f"operator {node.domain}.{node.op_type} is not standard")
        if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
            raise _refused(field, what, f"operator {node.op_type} has graphs of its own")
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute)]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise _refused(field, what, "its weights are in another file")
    kind = inputs[0].type.tensor_type
    dtypes: dict[int, Any] = {
        onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16,
    }  # fmt: skip
    dims = kind.shape.dim
    if kind.elem_type not in dtypes or len(dims) != 4:
        raise _refused(field, what, "its input is no [1,3,h,w] of floats")
    sizes = [dim.dim_value for dim in dims]  # 0 where the file leaves them open
    if sizes[0] not in (0, 1) or sizes[1] not in (0, 3):
        raise _refused(field, what, f"its input is {sizes}, not [1,3,h,w]")
    tile = sizes[2] or TILE, sizes[3] or TILE
    if not all(16 <= side <= 1024 for side in tile):
        raise _refused(field, what, f"its input has {tile[1]}x{tile[0]} pixels, not 16 to 1024")
    for dim, size in zip(dims, (1, 3, *tile), strict=True):
        dim.dim_value = size
    del graph.value_info[:]  # which may say anything
    graph.output[0].type.tensor_type.ClearField("shape")
    return tile, dtypes[kind.elem_type]


def _factor(field: str, what: str, inferred: Any, tile: tuple[int, int]) -> int:
    """Check the size of every tensor; return how much larger the output is."""
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [
            int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in dims
        ]
    for node in inferred.graph.node:
        for name in filter(None, node.output):
            if name not in shapes or min(shapes[name], default=1) < 0:
                raise _refused(field, what, f"the size of {name[:60]!r} does not follow")
            if math.prod(shapes[name]) > _MAX_ELEMENTS:
                raise _refused(field, what, f"{name[:60]!r} has {shapes[name]} elements")
    found = shapes[inferred.graph.output[0].name]
    factor = found[2] // tile[0] if len(found) == 4 else 0
    if found != [1, 3, tile[0] * factor, tile[1] * factor] or not 2 <= factor <= MAX_FACTOR:
        wanted = f"2 to {MAX_FACTOR} times [1,3,{tile[0]},{tile[1]}]"
        raise _refused(field, what, f"its output is {found}, not {wanted}")
    return factor
