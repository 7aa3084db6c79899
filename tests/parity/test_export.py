"""Exported graphs against the modules they were made from, at sizes that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from support.tiny_architectures import TINY_SD15, TINY_SD21, TINY_SDXL
from tolerances import assert_close
from torch import nn

from sdengine.bundle.tensors import resolve_shapes
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.openvino import compile_openvino
from sdengine.errors import ConfigError, EngineBuildError, ExportError
from sdengine.export.network import ExportedNetwork, export_network
from sdengine.export.weights import attach_weights
from sdengine.models.configs import ModelArchitecture
from sdengine.models.contracts import NETWORKS, make_contract
from sdengine.models.network_contract import NetworkContract
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

TINY = {family.name: family for family in (TINY_SD15, TINY_SD21, TINY_SDXL)}
CASES = [("unet", name) for name in TINY]
CASES += [("text_encoder", "tiny-sd21"), ("vae_decoder", "tiny-sd15"), ("vae_encoder", "tiny-sd15")]


def make_module(network: str, family: ModelArchitecture) -> nn.Module:
    """Build a module with seeded weights."""
    module: nn.Module
    if network == "unet":
        module = UNet2DConditionModel(family.unet)
    elif network == "text_encoder":
        module = CLIPTextEncoder(family.text_encoders[-1])
    else:
        module = AutoencoderKL(family.vae)
    seed_weights(module, seed=11)
    return module.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], ExportedNetwork]:
    made = {}
    for network, name in CASES:
        folder = tmp_path_factory.mktemp(f"{name}-{network}")
        made[network, name] = export_network(network, make_module(network, TINY[name]), folder)
    return made


def module_of(exported: ExportedNetwork) -> nn.Module:
    assert exported.module is not None
    return exported.module


def run_module(contract: NetworkContract, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = contract.module(*inputs)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def named(contract: NetworkContract, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    return {s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)}


@pytest.mark.parametrize(("network", "name"), CASES)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 192), (4, 128, 64)])
def test_onnxruntime_computes_the_same(
    exports: dict[tuple[str, str], ExportedNetwork],
    network: str,
    name: str,
    batch: int,
    height: int,
    width: int,
) -> None:
    exported = exports[network, name]
    contract = make_contract(network, module_of(exported))
    inputs = contract.example(batch, height, width, seed=12)
    session = onnxruntime.InferenceSession(
        str(exported.onnx_path), providers=["CPUExecutionProvider"]
    )
    found = session.run([s.name for s in contract.outputs], named(contract, inputs))
    sizes = {"batch": batch, "height": height, "width": width, "sequence": 77}
    shapes = resolve_shapes(network, contract.outputs, sizes)
    for spec, ours, theirs in zip(
        contract.outputs, found, run_module(contract, inputs), strict=True
    ):
        assert ours.shape == shapes[spec.name]
        assert_close("exported network", "float32", ours, theirs)
    assert exported.max_error is not None
    assert exported.max_error < 1e-5


def test_residuals_of_controlnets_are_read(
    exports: dict[tuple[str, str], ExportedNetwork], tmp_path: Path
) -> None:
    exported = exports["unet", "tiny-sd15"]
    contract = make_contract("unet", module_of(exported))
    names = [spec.name for spec in contract.inputs]
    assert names[3:] == [*(f"down_residual_{i}" for i in range(12)), "mid_residual"]
    inputs = named(contract, contract.example(1, 64, 64, seed=13))
    session = onnxruntime.InferenceSession(
        str(exported.onnx_path), providers=["CPUExecutionProvider"]
    )
    (with_residuals,) = session.run(None, inputs)
    zeros = {k: np.zeros_like(v) if "_residual" in k else v for k, v in inputs.items()}
    (without,) = session.run(None, zeros)
    alone = export_network("unet", module_of(exported), tmp_path, controlnet=False)
    few = onnxruntime.InferenceSession(str(alone.onnx_path), providers=["CPUExecutionProvider"])
    (expected,) = few.run(None, {k: v for k, v in inputs.items() if "_residual" not in k})
    assert_close("exported network", "float32", without, expected)
    assert not np.allclose(with_residuals, without)


def test_weights_keep_their_names_and_lie_outside_the_graph(
    exports: dict[tuple[str, str], ExportedNetwork],
) -> None:
    exported = exports["unet", "tiny-sd15"]
    assert exported.onnx_path is not None
    model = onnx.load(exported.onnx_path, load_external_data=False)
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert stored == {n: tuple(p.shape) for n, p in module_of(exported).named_parameters()}
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    onnx.checker.check_model(str(exported.onnx_path))
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "network", [n for n in NETWORKS if n != "text_encoder_2" and not n.startswith("tiny")]
)
def test_openvino_ir_computes_the_same(
    exports: dict[tuple[str, str], ExportedNetwork], network: str, precision: str, tmp_path: Path
) -> None:
    exported = next(e for (n, _), e in exports.items() if n == network)
    xml, weights = compile_openvino(exported, tmp_path, CompileSpec(precision, ())).files
    contract = make_contract(network, module_of(exported))
    inputs = contract.example(2, 64, 128, seed=14)
    compiled = compile_for(tmp_path / xml, contract, inputs, "f32")
    assert {port.get_any_name() for port in compiled.inputs} == {s.name for s in contract.inputs}
    found = compiled(named(contract, inputs))
    for spec, expected in zip(contract.outputs, run_module(contract, inputs), strict=True):
        assert_close(f"network of {precision} weights", "float32", found[spec.name], expected)
    if precision != "fp32":
        fp32_dir = tmp_path / "fp32"
        fp32_dir.mkdir()
        compile_openvino(exported, fp32_dir, CompileSpec("fp32", ()))
        ratio = (tmp_path / weights).stat().st_size / (fp32_dir / weights).stat().st_size
        assert ratio < 0.55


@pytest.mark.parametrize("timestep", [0.0, 20.5, 998.6, 999.0])
def test_late_timesteps_lose_nothing_in_bf16(
    exports: dict[tuple[str, str], ExportedNetwork], timestep: float, tmp_path: Path
) -> None:
    """Angles of up to 999 radians rounded to 8 bits would change the prediction by 10 %."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bf16")
    exported = exports["unet", "tiny-sd15"]
    xml, _ = compile_openvino(exported, tmp_path, CompileSpec("fp16", ())).files
    contract = make_contract("unet", module_of(exported))
    inputs = list(contract.example(2, 64, 128, seed=15))
    inputs[1] = torch.full((2,), timestep)
    expected = run_module(contract, tuple(inputs))[0]
    compiled = compile_for(tmp_path / xml, contract, tuple(inputs), "bf16")
    found = compiled(named(contract, tuple(inputs)))["noise_pred"]
    assert_close("unet", "bfloat16", found, expected)


def compile_for(
    xml: Path, contract: NetworkContract, inputs: tuple[torch.Tensor, ...], hint: str
) -> Any:
    core = openvino.Core()
    model = core.read_model(str(xml))
    model.reshape({s.name: list(x.shape) for s, x in zip(contract.inputs, inputs, strict=True)})
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})


def test_a_weight_that_overflows_is_named(tmp_path: Path) -> None:
    module = make_module("vae_decoder", TINY_SD15)
    with torch.no_grad():
        module.get_parameter("decoder.conv_in.weight")[0, 0, 0, 0] = 1e6
    exported = export_network("vae_decoder", module, tmp_path)
    with pytest.raises(EngineBuildError, match=r"decoder\.conv_in\.weight.*fp32"):
        compile_openvino(exported, tmp_path, CompileSpec("fp16", ()))
    compile_openvino(exported, tmp_path, CompileSpec("bf16", ()))


def test_damaged_weights_and_a_wrong_module_are_refused(tmp_path: Path) -> None:
    module = make_module("vae_decoder", TINY_SD15)
    with torch.no_grad():
        module.get_parameter("decoder.conv_in.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(ExportError, match="NaN or infinity before export"):
        export_network("vae_decoder", module, tmp_path)
    with pytest.raises(ConfigError, match="unet of AutoencoderKL"):
        export_network("unet", module, tmp_path)


def test_an_export_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_graph(model: onnx.ModelProto, *args: Any) -> None:
        attach_weights(model, *args)
        node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
        node.op_type = "Tanh"

    monkeypatch.setattr("sdengine.export.network.attach_weights", change_graph)
    with pytest.raises(ExportError, match="exported images differs from the module"):
        export_network("vae_decoder", make_module("vae_decoder", TINY_SD15), tmp_path)


def test_weights_that_are_written_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_data(model: onnx.ModelProto, state: Any, contract: Any, data_path: Path) -> None:
        attach_weights(model, state, contract, data_path)
        with data_path.open("r+b") as file:
            file.write(b"\x00\x00\x80\x3f")

    monkeypatch.setattr("sdengine.export.network.attach_weights", change_data)
    with pytest.raises(ExportError, match="was not written as it is"):
        export_network("vae_decoder", make_module("vae_decoder", TINY_SD15), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_module_is_exported_as_its_fp32_values(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    module = make_module("unet", TINY_SD15).to(dtype)
    exported = export_network("unet", module, tmp_path)
    assert exported.max_error is not None and exported.max_error < 1e-4
    assert {p.dtype for p in module.parameters()} == {dtype}  # as it was
