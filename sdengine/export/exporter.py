"""Exporter: the networks of a checkpoint as ONNX, each through the cache."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from torch import nn

from sdengine.bundle.controls import is_control
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.checkpoints.part_source import PartSource
from sdengine.errors import ConfigError
from sdengine.export.cache import Entry, OnnxCache, Record, make_key
from sdengine.export.comparison import compare_with_module
from sdengine.export.network import ExportedNetwork, data_file, export_contract
from sdengine.export.process_memory import free_bytes
from sdengine.export.static_shapes import fix_shapes, largest_tensor_bytes
from sdengine.export.weights import written_weights
from sdengine.models.contracts import CONTROLNET, NETWORKS, ContractOptions, make_contract
from sdengine.models.network_contract import NetworkContract
from sdengine.models.t2i_adapter import T2IAdapterConfig
from sdengine.models.tiny_vae import TinyVAEConfig
from sdengine.models.vae import VAEConfig

_PARTS = {
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "tiny_decoder": "tiny_vae",
    "tiny_encoder": "tiny_vae",
}
# Of the memory that is free; onnxruntime keeps the scores of attention and their softmax at a time,
# and in fp16 a rounded copy.
_MEMORY_SHARE = 0.75
_LARGEST_TENSORS = 2.5


def part_of(network: str) -> str:
    """Return the part of a checkpoint that a network is made from."""
    return _PARTS.get(network, network)


class Exporter:
    """Export networks of one checkpoint; weights are read only when the cache lacks something.

    Args:
        source: the checkpoint.
        cache: where exports are kept.
        controlnet: let the U-Net read ControlNet residuals.
    """

    def __init__(self, source: PartSource, cache: OnnxCache, *, controlnet: bool = True) -> None:
        self.source = source
        self.cache = cache
        self.options: ContractOptions = {
            "downscale": _downscale(source),
            "controlnet": controlnet,
            "adapters": any(isinstance(c, T2IAdapterConfig) for c in source.configs.values()),
            "num_time_ids": source.num_time_ids,
        }
        self._loaded: tuple[str, nn.Module] | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """Those that the checkpoint has."""
        configs = self.source.configs
        tiny = configs.get("tiny_vae")
        lacking = set()
        if isinstance(tiny, TinyVAEConfig):
            lacking |= set() if tiny.has_encoder else {"tiny_encoder"}
            lacking |= set() if tiny.has_decoder else {"tiny_decoder"}
        controls = [part for part in configs if part == CONTROLNET or is_control(part)]
        known = (name for name in (*NETWORKS, IMAGE_ENCODER, *controls) if name not in lacking)
        return tuple(name for name in known if part_of(name) in configs)

    @property
    def multiple(self) -> int:
        """Pixels that height and width must be multiples of."""
        return max(self.contract(network).multiple for network in self.networks)

    def contract(self, network: str, precision: str = "fp32") -> NetworkContract:
        """Return what a network reads and writes; its module has no weights."""
        self._check(network)
        return self._contract(network, self.source.skeleton(part_of(network)), precision)

    def module(self, network: str) -> nn.Module:
        """Return the module that a network is made from; the last one is kept."""
        self._check(network)
        part = part_of(network)
        if self._loaded is None or self._loaded[0] != part:
            self._loaded = None  # before the next one takes memory
            self._loaded = (part, self.source.load(part, None))
        return self._loaded[1]

    def forget(self) -> None:
        """Free the weights of the last module."""
        self._loaded = None

    def export(self, network: str, precision: str = "fp32") -> ExportedNetwork:
        """Return a network as ONNX with symbolic shapes, from the cache or freshly exported.

        Args:
            network: one of `networks`.
            precision: "fp32", "bf16" or "fp16".

        Raises:
            CheckpointError: its weights are damaged.
            ExportError: it cannot be exported, or the file computes something else.
            OutputError: the cache cannot be written.
        """
        contract = self.contract(network, precision)
        key = self._key(network, precision)
        entry = self.cache.find(key)
        reused = entry is not None
        if entry is None:
            entry = self._make(key, network, precision)
        graph = f"{_kept_as(network)}.onnx"
        return ExportedNetwork(
            name=network,
            onnx_path=entry.folder / graph,
            inputs=contract.inputs,
            outputs=contract.outputs,
            module=None,
            max_error=entry.record.max_error[graph],
            reused=reused,
        )

    def export_static(
        self,
        network: str,
        precision: str,
        batch: int,
        height: int,
        width: int,
        *,
        check: bool = True,
    ) -> ExportedNetwork:
        """Return a network as ONNX whose every shape is a number.

        The file shares the weights of `export`'s, which it makes where the cache lacks it. Its
        `max_error` is None where comparing it takes more memory than there is: attention at large
        sizes, whose scores onnxruntime keeps as a whole.

        Args:
            network, precision: as for `export`.
            batch: rows of the inputs.
            height, width: image size in pixels.
            check: compare it; at large sizes that takes minutes.
        """
        contract = self.contract(network, precision).at_size(batch, height, width)
        key = self._key(network, precision)
        entry = self.cache.find(key)
        if entry is None:
            entry = self._make(key, network, precision)
        size = f"{batch}x{height}x{width}"
        graph = f"{_kept_as(network)}.{f'{batch}' if _is_sizeless(contract) else size}.onnx"
        known = entry.record.max_error
        reused = graph in known and not (check and known[graph] is None)
        if not reused:
            folder, sizes = entry.folder, (batch, height, width)
            entry = self.cache.extend(
                entry, graph, lambda path: self._fix(folder, path, contract, sizes, check)
            )
        return ExportedNetwork(
            name=network,
            onnx_path=entry.folder / graph,
            inputs=contract.inputs,
            outputs=contract.outputs,
            module=None,
            max_error=entry.record.max_error[graph],
            reused=reused,
        )

    def _make(self, key: str, network: str, precision: str) -> Entry:
        module = self.module(network)
        name = _kept_as(network)
        contract = replace(self._contract(network, module, precision), name=name)

        def fill(folder: Path) -> Record:
            exported = export_contract(contract, module, folder)
            return Record(
                checkpoint=self.source.name,
                network=name,
                precision=precision,
                max_error={f"{name}.onnx": exported.max_error},
            )

        item_bytes = contract.dtype.itemsize
        needed = item_bytes * sum(map(math.prod, self.source.shapes(part_of(network)).values()))
        return self.cache.add(key, fill, needed)

    def _fix(
        self,
        folder: Path,
        path: Path,
        contract: NetworkContract,
        size: tuple[int, int, int],
        check: bool,
    ) -> float | None:
        """Write a graph of fixed shapes and compare it where that is wanted and memory suffices."""
        symbolic = folder / f"{_kept_as(contract.name)}.onnx"
        fixed = fix_shapes(onnx.load(symbolic, load_external_data=False), contract)
        onnx.save(fixed, path)
        needed_bytes = _LARGEST_TENSORS * largest_tensor_bytes(fixed)
        if not check or needed_bytes > _MEMORY_SHARE * free_bytes():
            return None
        whole = self._contract(contract.name, self.module(contract.name), "fp32")
        checked = replace(contract, module=whole.module)
        with written_weights(fixed, checked, data_file(symbolic)):
            return compare_with_module(path, fixed, checked, [size])

    def _contract(self, network: str, module: nn.Module, precision: str) -> NetworkContract:
        return make_contract(network, module, **self.options, precision=precision)

    def _check(self, network: str) -> None:
        if network not in self.networks:
            raise ConfigError.for_field("network", network, ", ".join(self.networks))

    def _key(self, network: str, precision: str) -> str:
        return make_key(
            {
                "network": _kept_as(network),
                "precision": precision,
                "part": self.source.part_sha256(part_of(network)),
                "options": self.options,
                "torch": torch.__version__,
            }
        )


def _kept_as(network: str) -> str:
    """Return what the cache calls a network: that of a control is the same under any name."""
    return CONTROLNET if is_control(network) else network


def _downscale(source: PartSource) -> int:
    vae = source.configs.get("vae")
    return vae.downscale if isinstance(vae, VAEConfig) else 8


def _is_sizeless(contract: NetworkContract) -> bool:
    return contract.multiple == 1  # a text encoder
