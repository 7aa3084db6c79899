"""Weights of an ONNX graph: written to a file beside it one at a time, read back by mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from sdengine.errors import ExportError
from sdengine.models.network_contract import NetworkContract

_WRAPPER_PREFIX = "module."
# Tensors start at multiples of this, so that a runtime can map them from the file.
_ALIGNMENT = 64
ONNX_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.float16: onnx.TensorProto.FLOAT16,
}


def attach_weights(
    model: onnx.ModelProto,
    state: Mapping[str, torch.Tensor],
    contract: NetworkContract,
    data_path: Path,
    *,
    write: bool = True,
) -> None:
    """Turn parameter inputs into initializers whose data lie in one file beside the model.

    Args:
        model: a traced graph; changed in place.
        state: the weights by name, in any float dtype.
        contract: what it was traced from; says what the weights are stored in.
        data_path: the file to write, little-endian.
        write: write it; else the graph only says where the weights would lie, and they may be on
            the meta device.

    Raises:
        ExportError: the graph reads what the module does not have, or a weight overflows.
    """
    wanted = {spec.name for spec in contract.inputs}
    used = {name for node in model.graph.node for name in node.input}
    parameters = [value.name for value in model.graph.input if value.name not in wanted]
    unknown = [name for name in parameters if name in used and name not in state]
    if unknown:
        raise ExportError(f"{contract.name}: the graph has inputs of no origin: {unknown[:3]}.")
    offset = 0
    names = {}
    with data_path.open("wb") if write else nullcontext() as file:
        for name in parameters:
            if name not in used:
                continue
            names[name] = name.removeprefix(_WRAPPER_PREFIX)
            tensor = state[name]
            if file is None:
                tensor = torch.empty_like(tensor, dtype=contract.dtype, device="meta")
            else:
                tensor = _rounded(contract, names[name], tensor)
                file.write(b"\0" * (offset - file.tell()))
                bits(tensor).numpy().tofile(file)
            initializer = _external(names[name], tensor, data_path.name, offset)
            model.graph.initializer.append(initializer)
            offset = -(-(offset + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
    kept = [value for value in model.graph.input if value.name in wanted]
    del model.graph.input[:]
    model.graph.input.extend(kept)


@contextmanager
def written_weights(
    model: onnx.ModelProto, contract: NetworkContract, data_path: Path
) -> Iterator[None]:
    """Let the module compute in fp32 with the weights that a graph's data file holds.

    They stay mapped from the file; those of other types are converted while a layer needs them.

    Raises:
        ExportError: the file holds something else than the module.
    """
    module = contract.module
    state = dict(module.state_dict())
    shared = {n: t.float() if t.numel() < 2 else t for n, t in state.items()}
    for tensor in model.graph.initializer:
        offsets = [int(e.value) for e in tensor.external_data if e.key == "offset"]
        if not offsets:
            continue
        name = tensor.name if tensor.name in state else _WRAPPER_PREFIX + tensor.name
        wanted = state[name].to(contract.dtype).contiguous()
        stored = "<i4" if wanted.element_size() == 4 else "<i2"
        # Copy on write, because torch knows no read-only memory; nothing writes.
        shape = tuple(tensor.dims)
        view = np.memmap(data_path, dtype=stored, mode="c", offset=offsets[0], shape=shape)
        # By their bits: a NaN is to be named later, as a weight that makes no sense.
        if not torch.equal(torch.from_numpy(view), bits(wanted)):
            raise ExportError(f"{data_path}: weight {tensor.name!r} was not written as it is.")
        shared[name] = torch.from_numpy(view).view(contract.dtype)
    module.load_state_dict(shared, assign=True)
    hooks = [] if contract.dtype == torch.float32 else _convert_when_needed(module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.load_state_dict(state, assign=True)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits as integers, which NumPy knows for every data type."""
    kind = torch.int32 if tensor.element_size() == 4 else torch.int16
    return tensor.detach().contiguous().view(kind)


def _rounded(contract: NetworkContract, name: str, tensor: torch.Tensor) -> torch.Tensor:
    rounded = tensor.detach().to(contract.dtype).contiguous()
    was_finite = contract.dtype != torch.float32 and bool(torch.isfinite(tensor).all())
    if was_finite and not torch.isfinite(rounded).all():
        raise ExportError(
            f"{contract.name}: weight {name!r} is not finite in {contract.dtype}. Export this "
            "network in fp32 or bf16."
        )
    return rounded


def _convert_when_needed(module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Convert each layer's own weights to fp32 for the time that it runs."""
    stored: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def convert(layer: nn.Module, _: object) -> None:
        stored[layer] = {name: p.data for name, p in layer.named_parameters(recurse=False)}
        for name, data in stored[layer].items():
            layer.get_parameter(name).data = data.float()

    def give_back(layer: nn.Module, _: object, __: object) -> None:
        for name, data in stored.pop(layer).items():
            layer.get_parameter(name).data = data

    hooks = []
    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            hooks.append(layer.register_forward_pre_hook(convert))
            hooks.append(layer.register_forward_hook(give_back))
    return hooks


def _external(name: str, tensor: torch.Tensor, location: str, offset: int) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=ONNX_TYPES[tensor.dtype], dims=tensor.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries = (("location", location), ("offset", offset), ("length", tensor.nbytes))
    for key, value in entries:
        proto.external_data.add(key=key, value=str(value))
    return proto
