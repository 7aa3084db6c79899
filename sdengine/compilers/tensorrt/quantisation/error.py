"""Error of a quantised network: its graph in onnxruntime against the network in fp32.

onnxruntime's CPU computes what QuantizeLinear and DequantizeLinear say: values and weights have
eight bits, sums are taken in fp32. An engine's kernels may round sums elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sdengine.bundle.tensors import TensorSpec, numpy_dtype, resolve_shapes
from sdengine.compilers.tensorrt.quantisation.calibration import Calibration, NetworkError
from sdengine.compilers.tensorrt.quantisation.graph import written_beside
from sdengine.export.comparison import open_session
from sdengine.export.fusion import fuse
from sdengine.export.lowering import to_standard

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]


@contextmanager
def opened(network: ExportedNetwork, calibration: Calibration | None) -> Iterator[Run]:
    """Give a U-Net in onnxruntime, as an engine of it computes, for as long as the block lasts.

    Args:
        network: exported in fp16.
        calibration: of its layers; None for the network as it is.

    Yields:
        A function of the inputs by name, fp32, those left out being zero, that returns noise_pred.
    """
    assert network.onnx_path is not None
    model = to_standard(fuse(onnx.load(network.onnx_path, load_external_data=False))[0])
    with written_beside(network.onnx_path, model, calibration) as place:
        session = open_session(place, network.name)
        yield lambda inputs: _run(session, network, inputs)


def quantised_error(network: ExportedNetwork, calibration: Calibration) -> NetworkError:
    """Return the error of a U-Net on held-out evaluations.

    Args:
        network: the U-Net, exported in fp16.
        calibration: of its layers.
    """
    squares: dict[int, tuple[float, float]] = {}  # of the errors, of the results
    with opened(network, calibration) as run:
        for known in calibration.held_out:
            truth = known.noise_pred.astype(np.float64)
            error = float(np.square(run(known.inputs) - truth).sum())
            squares[known.number] = (error, float(np.square(truth).sum()))
    errors, sizes = zip(*squares.values(), strict=True)
    return NetworkError(
        _relative(sum(errors), sum(sizes)),
        {number: _relative(*both) for number, both in sorted(squares.items())},
    )


def _relative(error: float, size: float) -> float:
    return float(np.sqrt(error / (size or 1.0)))


def _run(session: Any, network: ExportedNetwork, inputs: Mapping[str, Array]) -> Array:
    rows, _, height, width = inputs["sample"].shape
    downscale = _downscale(network.inputs)
    sizes = {
        "batch": rows,
        "height": height * downscale,
        "width": width * downscale,
        "sequence": inputs["encoder_hidden_states"].shape[1],
    }
    shapes = resolve_shapes(network.name, network.inputs, sizes)
    given = {
        spec.name: inputs[spec.name].astype(numpy_dtype(spec.dtype))
        if spec.name in inputs
        else np.zeros(shapes[spec.name], numpy_dtype(spec.dtype))
        for spec in network.inputs
    }
    (found,) = session.run([network.outputs[0].name], given)
    return np.asarray(found, np.float32)


def _downscale(inputs: tuple[TensorSpec, ...]) -> int:
    """Return the pixels along a latent cell: the divisor in "height/8"."""
    side = next(spec.shape[2] for spec in inputs if spec.name == "sample")
    return int(str(side).partition("/")[2] or 1)
