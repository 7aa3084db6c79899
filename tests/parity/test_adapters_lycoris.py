"""Adapters against LyCORIS: what its modules save changes a layer as their own forward does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import ATTENTION_1, CONV, LINEAR, NORM, draw, flat, read, shape_of
from tolerances import assert_close
from torch import nn

from sdengine.adapters.changes import merged

modules: Any = pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")

# Name of the module, options, layers.
KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "LoCon": ("locon.LoConModule", {}, (LINEAR, CONV)),
    "LoCon, rank-stabilised": ("locon.LoConModule", {"rs_lora": True}, (LINEAR, CONV)),
    "LoCon, core": ("locon.LoConModule", {"use_tucker": True}, (CONV,)),
    "LoCon, scalar": ("locon.LoConModule", {"use_scalar": True}, (LINEAR,)),
    "DoRA by rows": ("locon.LoConModule", {"weight_decompose": True}, (ATTENTION_1, CONV)),
    "DoRA by columns": (
        "locon.LoConModule",
        {"weight_decompose": True, "wd_on_out": False},
        (ATTENTION_1, CONV),
    ),
    "LoHa": ("loha.LohaModule", {}, (LINEAR, CONV)),
    "LoHa, core": ("loha.LohaModule", {"use_tucker": True}, (CONV,)),
    "LoHa, DoRA": ("loha.LohaModule", {"weight_decompose": True}, (LINEAR, CONV)),
    "LoKr": ("lokr.LokrModule", {}, (LINEAR, CONV)),
    "LoKr, both low": ("lokr.LokrModule", {"decompose_both": True, "factor": 4}, (LINEAR, CONV)),
    "LoKr, core": ("lokr.LokrModule", {"use_tucker": True, "factor": 4}, (CONV,)),
    "LoKr, whole": ("lokr.LokrModule", {"full_matrix": True}, (LINEAR, CONV)),
    "LoKr, absurd rank": ("lokr.LokrModule", {"lora_dim": 10**10, "alpha": 1.0}, (LINEAR, CONV)),
    "LoKr, DoRA": ("lokr.LokrModule", {"weight_decompose": True}, (LINEAR, CONV)),
    "IA3, output": ("ia3.IA3Module", {"train_on_input": False}, (LINEAR,)),
    "IA3, input": ("ia3.IA3Module", {"train_on_input": True}, (LINEAR,)),
    "full": ("full.FullModule", {}, (LINEAR, CONV)),
    "norm": ("norms.NormModule", {}, (NORM,)),
}


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, row in KINDS.items() for path in row[2]]
)
def test_what_lycoris_saves_changes_a_layer_as_its_module_does(
    tmp_path: Path, kind: str, path: str
) -> None:
    place, options, _ = KINDS[kind]
    file, _, class_name = place.partition(".")
    kind_of_module = getattr(getattr(modules, file), class_name)
    layer, inputs = layer_and_inputs(path)
    before = {name: value.detach().numpy().copy() for name, value in layer.named_parameters()}
    settings = {"lora_dim": 3, "alpha": 2.0, **options}
    adapter_module = kind_of_module(flat(path), layer, 1.0, **settings).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapter_module.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + noise) if "dora" in name else noise)
    adapter_module.apply_to()
    with torch.no_grad():
        wanted = adapter_module(inputs).numpy()
    state = adapter_module.state_dict()
    if hasattr(adapter_module, "custom_state_dict"):
        state = adapter_module.custom_state_dict() or state
    tensors = {f"{flat(path)}.{name}": value.detach().numpy() for name, value in state.items()}
    adapter = read(tmp_path, tensors)
    changed, _ = layer_and_inputs(path)
    own = dict(changed.named_parameters())
    with torch.no_grad():
        for change in adapter.changes["unet"]:
            name = change.parameter.rpartition(".")[2]
            own[name].copy_(torch.from_numpy(merged(before[name], [(change, 1.0)])))
        found = changed(inputs).numpy()
        plain = layer_and_inputs(path)[0](inputs).numpy()
    assert np.abs(wanted - plain).max() > 1e-3
    assert_close("layer with an adapter", "float32", found, wanted)


def layer_and_inputs(path: str) -> tuple[nn.Module, torch.Tensor]:
    """Return the layer of a tiny U-Net, seeded, and what it may read."""
    shape = shape_of(path)
    layer: nn.Module
    if len(shape) == 1:
        layer, inputs = nn.GroupNorm(4, shape[0]), torch.from_numpy(draw(2, shape[0], 4, 4))
    elif len(shape) == 2:
        layer = nn.Linear(shape[1], shape[0], bias=False)
        inputs = torch.from_numpy(draw(5, shape[1]))
    else:
        layer = nn.Conv2d(shape[1], shape[0], 3, padding=1)
        inputs = torch.from_numpy(draw(2, shape[1], 6, 6))
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.from_numpy(draw(*parameter.shape, seed=seed + 50)))
    return layer, inputs * 10
