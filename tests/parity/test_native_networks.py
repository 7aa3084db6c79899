"""Networks compiled for the native target against the modules that they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import assert_close

import sdengine
from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend
from sdengine.backends.native.graph import read_graph
from sdengine.backends.native.layout import lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes
from sdengine.checkpoints import load_checkpoint
from sdengine.errors import ConfigError, ExportError
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter
from sdengine.models.network_contract import NetworkContract

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
# Of torch's own error at the same precision, at most so much.
RULE = 2.0


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("demo")


@pytest.fixture(scope="module")
def contract_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NetworkContract]:
    exporter = Exporter(load_checkpoint("demo"), OnnxCache(tmp_path_factory.mktemp("onnx")))

    def contract(network: str) -> NetworkContract:
        return exporter._contract(network, exporter.module(network).float(), "fp32")

    return contract


def run(
    bundle: Bundle,
    contract: NetworkContract,
    example: tuple[torch.Tensor, ...],
    precision: str,
    threads: int = 2,
) -> dict[str, np.ndarray]:
    inputs = {s.name: x.numpy() for s, x in zip(contract.inputs, example, strict=True)}
    shapes = {name: array.shape for name, array in inputs.items()}
    module = (
        NativeBackend()
        .open(bundle, SessionOptions(precision=precision, threads=threads))
        .load(contract.name, shapes)
    )
    assert [spec.name for spec in module.outputs] == [spec.name for spec in contract.outputs]
    return {name: array.copy() for name, array in module.run(inputs).items()}


def expected(contract: NetworkContract, example: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = contract.module(*example)
    return [x.numpy() for x in ((outputs,) if torch.is_tensor(outputs) else outputs)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 64, 96), (1, 160, 64)])
def test_fp32_is_torchs(
    bundle: Bundle,
    contract_of: Callable[[str], NetworkContract],
    network: str,
    batch: int,
    height: int,
    width: int,
) -> None:
    # Residuals are not zero here, so that the U-Net's every input counts.
    contract = contract_of(network)
    example = contract.example(batch, height, width, seed=1)
    found = run(bundle, contract, example, "fp32")
    for actual, wanted in zip(found.values(), expected(contract, example), strict=True):
        assert_close("native network", "float32", actual, wanted)


@pytest.mark.parametrize("network", NETWORKS)
def test_bf16_errs_little_more_than_torchs(
    bundle: Bundle, contract_of: Callable[[str], NetworkContract], network: str
) -> None:
    contract = contract_of(network)
    example = contract.example(2, 128, 128, seed=2)
    truth = expected(contract, example)
    found = run(bundle, contract, example, "bf16")
    state = {name: tensor.clone() for name, tensor in contract.module.state_dict().items()}
    low = [
        x if not x.is_floating_point() or spec.name == "timestep" else x.bfloat16()
        for spec, x in zip(contract.inputs, example, strict=True)
    ]
    with torch.no_grad():
        outputs = contract.module.bfloat16()(*low)
    contract.module.float().load_state_dict(state)
    torchs = [x.float().numpy() for x in ((outputs,) if torch.is_tensor(outputs) else outputs)]
    for actual, eager, wanted in zip(found.values(), torchs, truth, strict=True):
        assert relative_rms(actual, wanted) <= RULE * relative_rms(eager, wanted)


@pytest.mark.parametrize("network", NETWORKS)
def test_int8_keeps_its_tolerance(
    bundle: Bundle, contract_of: Callable[[str], NetworkContract], network: str
) -> None:
    contract = contract_of(network)
    example = contract.example(2, 128, 128, seed=2)
    found = run(bundle, contract, example, "int8")
    for actual, wanted in zip(found.values(), expected(contract, example), strict=True):
        assert_close("native network", "int8", actual, wanted)


def relative_rms(found: np.ndarray, truth: np.ndarray) -> float:
    error = found.astype(np.float64) - truth
    return float(np.sqrt(np.mean(error**2) / np.mean(truth.astype(np.float64) ** 2)))


def test_zero_residuals_change_nothing(
    bundle: Bundle, contract_of: Callable[[str], NetworkContract]
) -> None:
    contract = contract_of("unet")
    example = contract.example(2, 64, 64, seed=3)
    inputs = {s.name: x.numpy().copy() for s, x in zip(contract.inputs, example, strict=True)}
    for name, array in inputs.items():
        if "_residual" in name:
            array[...] = 0.0
    shapes = {name: array.shape for name, array in inputs.items()}
    module = NativeBackend().open(bundle, SessionOptions(precision="fp32")).load("unet", shapes)
    without = module.run(inputs)["noise_pred"].copy()
    inputs["mid_residual"][0, 0, 0, 0] = 1.0
    with_all = module.run(inputs)["noise_pred"].copy()
    inputs["mid_residual"][0, 0, 0, 0] = 0.0
    assert np.array_equal(module.run(inputs)["noise_pred"], without)
    assert not np.array_equal(with_all, without)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_results_do_not_depend_on_the_threads(
    bundle: Bundle, contract_of: Callable[[str], NetworkContract], precision: str
) -> None:
    contract = contract_of("unet")
    example = contract.example(2, 64, 96, seed=4)
    alone = run(bundle, contract, example, precision, threads=1)["noise_pred"]
    for threads in range(2, 9):
        found = run(bundle, contract, example, precision, threads=threads)["noise_pred"]
        assert np.array_equal(found, alone)


def test_maps_that_are_alive_together_do_not_overlap(bundle: Bundle) -> None:
    graph = read_graph(bundle.path("unet.graph.json"))
    sizes = {"batch": 2, "sequence": 77, "height": 64, "width": 64}
    shapes = resolve_shapes("unet", bundle.network("unet").inputs, sizes)
    assert map_sizes(graph, shapes)
    program = lay_out(graph, shapes, "bfloat16")
    total = sum(
        m["images"] * m["height"] * m["width"] * m["stride"] * 2
        for r in program.records
        for role, m in r["maps"].items()
        if role == "out"
    )
    assert program.arena_bytes < total / 4  # memory is used again and again


def test_one_file_makes_the_same_picture_in_every_precision() -> None:
    pictures = {}
    for precision in ("fp32", "bf16", "int8"):
        with sdengine.load("demo", precision=precision) as engine:
            result = engine.generate("a large red circle on a blue background", seed=7, steps=10)
            pictures[precision] = np.asarray(result.arrays[0], np.float64)
    for precision in ("bf16", "int8"):
        error = np.mean((pictures[precision] - pictures["fp32"]) ** 2)
        assert 10 * np.log10(255**2 / error) > 40


def test_precision_that_no_kernel_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision.*fp16.*int8"):
        NativeBackend().resolve("fp16")


def test_the_instruction_set_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_ISA", "portable")
    assert NativeBackend().resolve("auto") == "fp32"
    assert "portable" in NativeBackend().available()[1]
    with sdengine.load("demo") as engine:
        engine.generate("a circle", seed=1, steps=1)
    monkeypatch.setenv("SDENGINE_ISA", "mmx")
    with pytest.raises(ConfigError, match=r"SDENGINE_ISA.*mmx.*portable"):
        NativeBackend().resolve("auto")


def test_an_operator_without_a_step_is_named(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    from sdengine.compilers.native.importer import import_graph

    node = helper.make_node("Softplus", ["x"], ["y"], name="odd one")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    spec = TensorSpec("x", (1, 4, 8, 8), "float32")
    with pytest.raises(ExportError, match=r"'odd one'.*Softplus"):
        import_graph(model, (spec,), (TensorSpec("y", (1, 4, 8, 8), "float32"),))
