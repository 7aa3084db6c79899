"""Quantisation of engines: what U-Nets in eight bits do to whole pictures, against fp32.

    python benchmarks/quantisation.py          # the table and the record

No engine runs: the graph that the builder is given runs in onnxruntime on the CPU, whose
QuantizeLinear and DequantizeLinear round values and weights as an engine's do. Text encoder and
decoder are the native target's in fp32 on both sides, so the U-Net alone makes the difference.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import sdengine
from sdengine.backends.base import Module, SessionOptions
from sdengine.benchmarks.accuracy_tables import quantisation as as_markdown
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.benchmarks.tiny import TINY_SDXL
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.compilers.tensorrt.quantisation.calibration import calibrate
from sdengine.compilers.tensorrt.quantisation.error import Run, opened, quantised_error
from sdengine.compilers.tensorrt.quantisation.formats import FORMATS
from sdengine.compilers.tensorrt.quantisation.recording import UNetBackend
from sdengine.engine import Engine
from sdengine.export.cache import open_cache
from sdengine.export.exporter import Exporter
from sdengine.export.network import ExportedNetwork

Array = NDArray[Any]
# The demo model knows shapes and colours; scales come from other prompts than pictures.
CALIBRATION = (
    "a large red circle on a white background",
    "a green triangle above a blue square",
    "a small yellow star left of a purple ring on a black background",
    "an orange diamond on a cyan background",
)
PROMPTS = (
    "a blue heart on a yellow background",
    "a red square below a green circle",
    "a large purple star on a white background",
    "a cyan ring right of an orange triangle on a black background",
)
FP16 = "fp16"


class RunModule:
    """A module whose outputs come from a function; see `sdengine.backends.base.Module`."""

    def __init__(self, run: Run, unet: Module) -> None:
        self.inputs: tuple[TensorSpec, ...] = unet.inputs
        self.outputs: tuple[TensorSpec, ...] = unet.outputs
        self._unet, self._run = unet, run

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute noise_pred."""
        return {self.outputs[0].name: self._run(inputs)}

    def close(self) -> None:
        """Close the module in whose place this one stands."""
        self._unet.close()


def pictures_with(
    bundle: Bundle, unet: Callable[[Module], Module], prompts: Sequence[str], steps: int
) -> list[Array]:
    """Return a picture a prompt, with everything but the U-Net native in fp32."""
    with Engine(bundle, UNetBackend(unet), SessionOptions(precision="fp32")) as engine:
        return [
            engine.generate(prompt, seed=seed, steps=steps).arrays[0]
            for seed, prompt in enumerate(prompts)
        ]


def compare(
    bundle: Bundle, unet: ExportedNetwork, prompts: Sequence[str], steps: int
) -> dict[str, dict[str, Any]]:
    """Return by precision the U-Net's error, how many layers have eight bits, and PSNR a picture.

    Args:
        bundle: of target native.
        unet: of the same checkpoint, exported in fp16.
        prompts: of the pictures.
        steps: of each.
    """
    truth = pictures_with(bundle, lambda module: module, prompts, steps)
    found: dict[str, dict[str, Any]] = {}
    for name in (FP16, *FORMATS):
        calibration = calibrate(bundle, FORMATS[name], CALIBRATION) if name in FORMATS else None
        row: dict[str, Any] = {}
        if calibration is not None:
            row = calibration.to_record(quantised_error(unet, calibration))
            row["kept"] = sum(map(len, row["kept"].values()))
            row["worst_layer"] = max(row["layers"].values())
            row["layers"] = len(row["layers"])
        with opened(unet, calibration) as run:
            shown = pictures_with(bundle, functools.partial(RunModule, run), prompts, steps)
        row["psnr_db"] = [round(psnr(a, b), 2) for a, b in zip(truth, shown, strict=True)]
        found[name] = row
    return found


def compare_checkpoint(checkpoint: str | Path, steps: int, folder: Path) -> dict[str, Any]:
    """Compare pictures of a checkpoint; its bundle is built in a folder."""
    built = sdengine.build(checkpoint, folder / "native", precision="fp32", controlnet=False)
    source = sdengine.load_checkpoint(checkpoint)
    with open_cache(True, beside=folder) as cache:
        unet = Exporter(source, cache, controlnet=False).export("unet", FP16)
        return compare(open_bundle(built.path), unet, PROMPTS, steps)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = make_synthetic(TINY_SDXL, folder / "tiny-sdxl")
        for model, checkpoint in (("demo", "demo"), ("tiny-sdxl", tiny)):
            place = folder / f"{model}-built"
            place.mkdir()
            models[model] = compare_checkpoint(checkpoint, options.steps, place)
    record = stamped(
        {"steps": options.steps, "prompts": len(PROMPTS), "models": models}, "onnxruntime"
    )
    write_record(record, options.output / "quantisation.json")
    print(as_markdown(record))


if __name__ == "__main__":
    main()
