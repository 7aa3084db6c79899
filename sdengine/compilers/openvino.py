"""Compiler of target openvino: OpenVINO's intermediate representation of an ONNX graph."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.models.dtypes import TORCH_DTYPES

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork


def compile_openvino(network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
    """Write `<name>.xml` and `<name>.bin`; dimensions stay symbolic.

    Args:
        network: an exported network.
        out_dir: an existing folder.
        spec: only its precision is used, which weights are stored in. What is computed in is the
            run time's choice.

    Raises:
        EngineBuildError: OpenVINO cannot read the graph or write the files, or a weight overflows.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    precision = spec.precision
    if precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", precision, ", ".join(TORCH_DTYPES))
    xml = out_dir / f"{network.name}.xml"
    try:
        model = openvino.Core().read_model(str(network.onnx_path))
        # What convert_model does to a graph, without the usage report that it sends.
        apply_moc_transformations(model, cf=False, smart_reshape=False)
        _name_ports(network, model)
        if precision != "fp32":
            _store_weights(model, network.name, _weights_of(network), TORCH_DTYPES[precision])
        # Its own compression would round the timestep frequencies as well.
        openvino.save_model(model, str(xml), compress_to_fp16=False)
    except RuntimeError as error:
        raise EngineBuildError(
            f"{network.name}: OpenVINO cannot compile {network.onnx_path}: {error}"
        ) from error
    _keep_angles_in_fp32(xml)
    return Compiled([xml.name, xml.with_suffix(".bin").name])


def _name_ports(network: ExportedNetwork, model: Any) -> None:
    """Leave each input and output its one name; simplifying the graph piles others onto it."""
    for specs, ports in ((network.inputs, model.inputs), (network.outputs, model.outputs)):
        wanted = {spec.name for spec in specs}
        for port in ports:
            names = wanted & port.get_names()
            if len(names) != 1:
                raise EngineBuildError(
                    f"{network.name}: OpenVINO merged or lost an input or output; found "
                    f"{sorted(port.get_names())} instead of one of {sorted(wanted)}."
                )
            port.get_tensor().set_names(names)


def _weights_of(network: ExportedNetwork) -> set[str]:
    import onnx

    graph = onnx.load(str(network.onnx_path), load_external_data=False).graph
    return {tensor.name for tensor in graph.initializer}


def _store_weights(model: Any, network: str, names: set[str], dtype: torch.dtype) -> None:
    """Replace each fp32 weight by a rounded one and its conversion back, which loading folds."""
    import openvino
    import openvino.opset13 as ops

    kind = openvino.Type.bf16 if dtype == torch.bfloat16 else openvino.Type.f16
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or name not in names:
            continue
        rounded = torch.from_numpy(node.data.copy()).to(dtype)
        if not torch.isfinite(rounded).all():
            raise EngineBuildError(
                f"{network}: weight {name!r} is not finite in {dtype}. Build with --precision fp32."
            )
        bits = rounded.view(torch.uint16).numpy()
        weight = ops.constant(openvino.Tensor(bits, list(rounded.shape), kind), shared_memory=False)
        weight.set_friendly_name(name)
        readers = node.output(0).get_target_inputs()
        converted = ops.convert(weight, "f32").output(0)
        for reader in readers:
            reader.replace_source_output(converted)


def _keep_angles_in_fp32(xml: Path) -> None:
    """Mark what leads to sines and cosines, so that it is computed in fp32 under bf16 too.

    A timestep of 999 has an angle of 999 radians, of which bf16 keeps 8 bits: an error of up to
    2 radians. Python has no call to set this attribute of a node.
    """
    tree = ET.parse(xml)
    root = tree.getroot()
    layers = {layer.get("id"): layer for layer in root.iterfind("layers/layer")}
    sources: dict[str | None, list[str | None]] = {}
    for edge in root.iterfind("edges/edge"):
        sources.setdefault(edge.get("to-layer"), []).append(edge.get("from-layer"))
    pending = [key for key, layer in layers.items() if layer.get("type") in ("Cos", "Sin")]
    marked: set[str | None] = set()
    while pending:
        key = pending.pop()
        if key in marked or layers[key].get("type") in ("Const", "Parameter"):
            continue
        marked.add(key)
        pending += sources.get(key, [])
    for key in marked:
        layer = layers[key]
        info = layer.find("rt_info")
        if info is None:
            info = ET.Element("rt_info")
            layer.insert(1 if layer.find("data") is not None else 0, info)
        ET.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    if marked:
        tree.write(xml, encoding="utf-8", xml_declaration=True)
