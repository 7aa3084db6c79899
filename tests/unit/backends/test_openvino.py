from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_bundle import make_tiny_bundle, unet_reference

from sdengine.backends import get_backend
from sdengine.backends.base import Module, SessionOptions
from sdengine.backends.openvino import _bf16_attention_is_wrong
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError, DeviceError

SHAPES = {
    "sample": (2, 4, 8, 16),
    "timestep": (2,),
    "encoder_hidden_states": (2, 77, 8),
    "down_residual_0": (2, 4, 8, 16),
    "mid_residual": (2, 4, 1, 2),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture
def unet(bundle: Bundle) -> Module:
    return get_backend("openvino").open(bundle, SessionOptions("fp32", 1)).load("unet", SHAPES)


def random_inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    inputs = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for name in ("sample", "timestep", "encoder_hidden_states"):
        inputs[name][...] = generator.standard_normal(SHAPES[name])
    return inputs


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return unet_reference(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])


def test_specs_are_static(unet: Module) -> None:
    assert {spec.name: spec.shape for spec in unet.inputs} == SHAPES
    assert [(spec.name, spec.shape, spec.dtype) for spec in unet.outputs] == [
        ("noise_pred", (2, 4, 8, 16), "float32")
    ]


def test_outputs(unet: Module) -> None:
    inputs = random_inputs()
    np.testing.assert_allclose(unet.run(inputs)["noise_pred"], expected(inputs), atol=1e-5)


def test_changes_in_the_callers_buffers_are_seen(unet: Module) -> None:
    inputs = random_inputs()
    first = unet.run(inputs)["noise_pred"]
    address = first.ctypes.data
    inputs["sample"] *= 2
    inputs["timestep"].fill(3)
    second = unet.run(inputs)["noise_pred"]
    np.testing.assert_allclose(second, expected(inputs), atol=1e-5)
    assert second.ctypes.data == address


def test_other_layouts_and_dtypes_are_converted(unet: Module) -> None:
    inputs = random_inputs()
    right = expected(inputs)
    inputs["sample"] = np.asfortranarray(inputs["sample"].astype(np.float64))
    for _ in range(2):
        np.testing.assert_allclose(unet.run(inputs)["noise_pred"], right, atol=1e-5)
    inputs["sample"] *= 3
    np.testing.assert_allclose(unet.run(inputs)["noise_pred"], expected(inputs), atol=1e-5)


def test_wrong_inputs_are_named(unet: Module) -> None:
    inputs = random_inputs()
    with pytest.raises(ConfigError, match="'timestep' is not given"):
        unet.run({name: array for name, array in inputs.items() if name != "timestep"})
    with pytest.raises(ConfigError, match=r"'sample' is \[1, 4, 8, 16\]"):
        unet.run({**inputs, "sample": inputs["sample"][:1]})


def test_closed_module(unet: Module) -> None:
    unet.close()
    unet.close()
    with pytest.raises(DeviceError, match="closed"):
        unet.run(random_inputs())


def test_unloadable_network(bundle: Bundle, tmp_path: Path) -> None:
    backend = get_backend("openvino")
    session = backend.open(bundle)
    with pytest.raises(BundleError, match="no network"):
        session.load("controlnet", {})
    with pytest.raises(BundleError, match="cannot load"):
        session.load("unet", {"nothing": (1,)})
    broken = make_tiny_bundle(tmp_path / "broken")
    (broken / "unet.xml").write_text("<net")
    manifest = open_bundle_without_checks(broken)
    with pytest.raises(BundleError, match="cannot load"):
        backend.open(manifest).load("unet", SHAPES)


def open_bundle_without_checks(root: Path) -> Bundle:
    from sdengine.bundle.manifest import parse_manifest

    return Bundle(parse_manifest((root / "manifest.json").read_bytes()), root)


class _Processor:
    def __init__(self, *capabilities: str) -> None:
        self.capabilities = capabilities

    def get_property(self, device: str, name: str) -> list[str]:
        return list(self.capabilities)


def test_auto_precision_is_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("openvino")
    monkeypatch.setattr("sdengine.backends.openvino._core", lambda: _Processor("FP32", "BF16"))
    assert [backend.resolve(p) for p in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    monkeypatch.setattr("sdengine.backends.openvino._core", lambda: _Processor("FP32"))
    assert [backend.resolve(p) for p in ("auto", "fp32")] == ["fp32", "fp32"]
    with pytest.raises(BackendUnavailableError, match="bf16"):
        backend.resolve("bf16")


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [((2, 4, 4, 32), True), ((2, 4, 16, 32), False), ((2, 1, 1, 32), False)],
)
def test_attention_that_bf16_gets_wrong_is_found(shape: tuple[int, ...], wrong: bool) -> None:
    import openvino
    import openvino.opset13 as ops

    queries, keys = (
        ops.parameter(list(shape), np.float32),
        ops.parameter([2, 1, 77, 32], np.float32),
    )
    attended = ops.scaled_dot_product_attention(queries, keys, keys)
    model = openvino.Model([attended], [queries, keys])
    assert _bf16_attention_is_wrong(model) == wrong
