"""Calibration: which layers of a U-Net compute in eight bits, by which scales, and how they err.

A native bundle of the checkpoint makes pictures on this machine's CPU. What its linear layers and
convolutions read at evaluations spread over the schedule gives their scales; evaluations of other
prompts, which no scale knows, give each layer's error.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.native.graph import Graph, read_graph
from sdengine.backends.native.methods import steers
from sdengine.backends.native.projections import additive_inputs, without_inputs
from sdengine.backends.native.step import Step
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import size_name
from sdengine.compilers.native.sensitivity import LayerError, Product, Walk
from sdengine.compilers.tensorrt.quantisation.formats import NumberFormat
from sdengine.compilers.tensorrt.quantisation.layers import Layer, LayerScales, weight_names
from sdengine.compilers.tensorrt.quantisation.recording import (
    Inputs,
    Recording,
    record,
    usual_steps,
)
from sdengine.errors import Cancelled, ConfigError
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_tensors

Array = NDArray[Any]
Tell = Callable[[str, int, int], None]

PROMPTS = (
    "a lighthouse on a rocky coast at dusk, oil painting",
    "portrait of an old fisherman in a yellow raincoat, photograph",
    "a crowded market street with lanterns and wet paving stones",
    "a red circle above a blue square",
)
HELD_OUT_PROMPTS = (
    "a tram crossing a bridge in morning fog",
    "two green triangles beside a bowl of fruit, watercolour",
)
_HELD_OUT_SEED = 9_000
_MAX_PROMPTS = 1000
_MAX_PROMPT_BYTES = 1 << 20
# Evaluations that scales are taken from, if every prompt gives at least one.
_EVALUATIONS = 12
# Tensor cores multiply rows of sixteen bytes.
_CHANNELS = 16
_STEERS, _OUTPUT = "reads an input or the time embedding", "makes the output"
_NARROW, _LOUD = f"has channels that {_CHANNELS} does not divide", "errs too much"


@dataclass(frozen=True)
class HeldOut:
    """An evaluation that scales were not taken from.

    Args:
        inputs: of the U-Net, fp32; those that are left out are zero.
        noise_pred: what it makes of them in fp32.
        number: of the evaluation in its request, from 1.
    """

    inputs: Inputs
    noise_pred: Array
    number: int


@dataclass(frozen=True)
class NetworkError:
    """Root mean square error of a network, relative to its results in fp32.

    Args:
        all: of all held-out evaluations together.
        by_evaluation: of each, by its number in a request.
    """

    all: float
    by_evaluation: Mapping[int, float]


@dataclass(frozen=True)
class Calibration:
    """What a U-Net is quantised by.

    Args:
        number_format: of weights and of what is multiplied with them.
        layers: by the name of the weight; all others stay as they are.
        kept: names of the weights of layers that stay, by the reason.
        errors: of each layer whose error was measured.
        held_out: to measure the whole network with.
        about: what the manifest says of the run: prompts and their hash, steps, evaluations, size.
    """

    number_format: NumberFormat
    layers: Mapping[str, LayerScales]
    kept: Mapping[str, list[str]]
    errors: list[LayerError]
    held_out: Sequence[HeldOut]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_record(self, error: NetworkError) -> dict[str, Any]:
        """Return what a manifest says about it, with the error of the whole network."""
        return {
            "format": self.number_format.name,
            **self.about,
            "error": error.all,
            "error_by_evaluation": {str(n): value for n, value in error.by_evaluation.items()},
            "layers": {name: round(scales.error, 6) for name, scales in self.layers.items()},
            "kept": dict(self.kept),
        }


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts from a text file, one a line; empty lines do not count.

    Raises:
        ConfigError: it cannot be read, is no text, or has no or too many lines.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_PROMPT_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"calibration: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"calibration: {path} is no text in UTF-8.") from None
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(prompts) <= _MAX_PROMPTS or len(content) > _MAX_PROMPT_BYTES:
        raise ConfigError(
            f"calibration: {path} has {len(prompts)} prompts; expected 1 to {_MAX_PROMPTS}, one a "
            f"line, in at most {_MAX_PROMPT_BYTES} bytes."
        )
    return prompts


def calibrate(
    bundle: Bundle,
    number_format: NumberFormat,
    prompts: Sequence[str] = PROMPTS,
    tell: Tell | None = None,
    cancel: threading.Event | None = None,
) -> Calibration:
    """Decide how each layer of a U-Net computes.

    Args:
        bundle: of target native, with text encoders and U-Net, of the checkpoint.
        number_format: of the eight bits.
        prompts: that scales are taken from.
        tell: told what is going on, the parts done and all parts.
        cancel: once set, it ends.

    Raises:
        ConfigError: a prompt is not accepted.
        Cancelled: `cancel` was set.
    """
    size = min(bundle.manifest.resolutions, key=lambda sides: sides[0] * sides[1])
    steps = usual_steps(bundle)
    recordings = [*calibration_recordings(prompts, steps), *held_out_recordings(steps)]
    found = record(bundle, recordings, size, cancel)
    known = [one for kept in found[: len(prompts)] for one in kept]
    unknown = [one for kept in found[len(prompts) :] for one in kept]
    numbers = [place + 1 for one in recordings[len(prompts) :] for place in one.evaluations]
    graph_file, weights_file = bundle.network("unet").files
    graph = read_graph(bundle.path(graph_file))
    weights = map_tensors(bundle.path(weights_file))
    graph = without_inputs(graph, additive_inputs(graph))
    walk = Walk(graph, weights, {name: array.shape for name, array in known[0].items()})
    total = len(known) + len(unknown)

    def runs(evaluations: Sequence[Inputs], done: int) -> Iterator[Iterator[Product]]:
        for index, inputs in enumerate(evaluations, done + 1):
            if cancel is not None and cancel.is_set():
                raise Cancelled("the build was cancelled.")
            if tell is not None:
                tell("unet", index, total)
            yield walk.run(inputs)

    kept, candidates = _sorted_out(graph, walk, weights)
    largest = _largest(runs(known, 0), candidates)
    layers = {
        step.output: Layer(step, number_format, weights, largest[step.output])
        for step in candidates
    }
    held_out = []
    for number, inputs, run in zip(numbers, unknown, runs(unknown, len(known)), strict=True):
        for product in run:
            if product.step.output in layers:
                layers[product.step.output].measure(product)
        held_out.append(HeldOut(inputs, walk.outputs["noise_pred"].copy(), number))
    errors = {output: layer.error() for output, layer in layers.items()}
    quantised: dict[str, LayerScales] = {}
    for output, layer in layers.items():
        if errors[output].is_exact:
            kept[_LOUD] += layer.names
        else:
            quantised |= dict.fromkeys(layer.names, layer.best())
    return Calibration(
        number_format,
        quantised,
        {reason: names for reason, names in kept.items() if names},
        [*errors.values()],
        held_out,
        {
            "prompts": len(prompts),
            "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
            "steps": steps,
            "evaluations": len(known),
            "size": size_name(size),
        },
    )


def calibration_recordings(prompts: Sequence[str], steps: int) -> list[Recording]:
    """Spread the evaluations over prompts and steps: each prompt gives other ones."""
    stride = min(-(-len(prompts) * steps // _EVALUATIONS), steps)
    return [
        Recording(prompt, index, range(steps)[index % stride :: stride])
        for index, prompt in enumerate(prompts)
    ]


def held_out_recordings(steps: int) -> list[Recording]:
    """Take the first and the last evaluation, and some between, of one prompt or the other."""
    places = sorted({0, steps // 3, 2 * steps // 3, steps - 1})
    return [
        Recording(prompt, _HELD_OUT_SEED + index, places[index::2])
        for index, prompt in enumerate(HELD_OUT_PROMPTS)
        if places[index::2]
    ]


def _sorted_out(
    graph: Graph, walk: Walk, weights: Mapping[str, Array]
) -> tuple[dict[str, list[str]], list[Step]]:
    """Return the weights of layers that stay, by the reason, and the other layers."""
    given = {port.value for port in graph.inputs}
    made = {port.value for port in graph.outputs}
    kept: dict[str, list[str]] = {reason: [] for reason in (_STEERS, _OUTPUT, _NARROW, _LOUD)}
    candidates = []
    for step in walk.products:
        names = weight_names(step)
        if steers(step, walk.sizes, given):
            kept[_STEERS] += names
        elif step.output in made:
            kept[_OUTPUT] += names
        elif any(n % _CHANNELS for name in names for n in weights[name].shape[:2]):
            kept[_NARROW] += names
        else:
            candidates.append(step)
    return kept, candidates


def _largest(runs: Iterator[Iterator[Product]], candidates: Sequence[Step]) -> dict[str, Array]:
    """Return the largest magnitude that each layer reads in each channel, by its output."""
    found = {step.output: np.zeros(1, np.float32) for step in candidates}
    for run in runs:
        for product in run:
            output = product.step.output
            if output in found:
                now = np.abs(product.read["x"]).max(axis=(0, 1, 2))
                found[output] = np.maximum(found[output], now)
    return found
