"""The torch backend: the networks run eagerly from their modules; the baseline and reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sdengine.backends.base import Array, Module, require_cpu_precision
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes, symbol_sizes
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DeviceError,
    EngineBuildError,
    OutOfMemoryError,
)

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork
    from sdengine.models.contracts import NetworkContract

Compute = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_COMPUTED = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Numbers with more digits than a shorter type keeps: in bf16, 999 would become 1000.
_KEPT_IN_FP32 = ("timestep", "time_ids")
# What a network of a bundle leaves out of its module: the autoencoder is two networks, and the
# token table is looked up on the host.
_LEFT_OUT = {
    "text_encoder": ("text_model.embeddings.token_embedding",),
    "text_encoder_2": ("text_model.embeddings.token_embedding",),
    "unet": (),
    "vae_decoder": ("encoder", "quant_conv"),
    "vae_encoder": ("decoder", "post_quant_conv"),
}


class TorchModule:
    """One network at fixed shapes, computed by torch.

    Args:
        name: of the network, for messages.
        compute: takes the inputs in order and returns the outputs in order, both on any device;
            it is closed with this module if it has a `close`.
        inputs, outputs: with numbers for shapes.
        dtype: what it computes in.
        threads: CPU threads, or None for torch's choice.
        device: where it reads its inputs.
    """

    def __init__(
        self,
        name: str,
        compute: Compute,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dtype: torch.dtype,
        threads: int | None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self._compute: Compute | None = compute
        self._dtype = dtype
        self._threads = threads
        self._device = device

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; every input must be given at its static shape.

        They are in the host's memory when this returns: nothing is left to wait for.
        """
        if self._compute is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        tensors = [self._tensor(spec, inputs) for spec in self.inputs]
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                computed = self._compute(*(tensor.to(self._device) for tensor in tensors))
                if isinstance(computed, torch.Tensor):
                    computed = (computed,)
                arrays = [tensor.float().contiguous().cpu().numpy() for tensor in computed]
        except (MemoryError, RuntimeError) as error:
            ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if ran_out or "allocate memory" in str(error):
                raise OutOfMemoryError(f"{self.name}: memory ran out while computing.") from None
            raise DeviceError(f"{self.name}: torch failed: {str(error)[:300]}") from error
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def _tensor(self, spec: TensorSpec, inputs: Mapping[str, Array]) -> torch.Tensor:
        try:
            array = inputs[spec.name]
        except KeyError:
            raise ConfigError(f"{self.name}: input {spec.name!r} is not given.") from None
        if array.shape != spec.shape:
            raise ConfigError(
                f"{self.name}: input {spec.name!r} is {list(array.shape)}; this network was loaded "
                f"for {list(spec.shape)}."
            )
        array = np.asarray(array, dtype=spec.dtype, order="C")
        # A read-only array, such as a view of the latents, is fine: nothing here writes to it.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if spec.name in _KEPT_IN_FP32 or not tensor.is_floating_point():
            return tensor
        return tensor.to(self._dtype)

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        close = getattr(self._compute, "close", None)
        self._compute = None
        if close is not None:
            close()


class TorchBackend:
    """Run bundles of target `torch` on the CPU."""

    name = "torch"
    device = "cpu"

    def available(self) -> tuple[bool, str]:
        """Say which torch runs the networks."""
        return True, f"torch {torch.__version__}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what `auto` means here: bf16 where the processor computes in it, else fp32."""
        require_cpu_precision(precision)
        if precision != "auto":
            return precision
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"

    def compile(self, network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
        """Write the network's weights as safetensors, named as in the checkpoint.

        Args:
            network: only its module is used.
            out_dir: an existing folder.
            spec: only its precision is used.

        Raises:
            EngineBuildError: a weight is not finite in this precision.
        """
        from sdengine.checkpoints.weights import save_tensors

        precision = spec.precision
        if precision not in STORED:
            raise ConfigError.for_field("precision", precision, ", ".join(STORED))
        left_out = tuple(f"{part}." for part in _LEFT_OUT[network.name])
        assert network.module is not None  # builds for this target do not export
        state = {}
        for name, tensor in network.module.state_dict().items():
            if name.startswith(left_out):
                continue
            state[name] = tensor.to(STORED[precision]).contiguous()
            if not torch.isfinite(state[name]).all():
                raise EngineBuildError(
                    f"{network.name}: weight {name!r} is not finite in {precision}. Build with "
                    "--precision fp32."
                )
        path = out_dir / f"{network.name}.safetensors"
        save_tensors(state, path)
        return Compiled([path.name])

    def load(
        self,
        bundle: Bundle,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        precision: str = "auto",
        threads: int | None = None,
    ) -> Module:
        """Build one network's module and give it its weights; see `Backend.load`."""
        entry = bundle.network(network)
        dtype = self._dtype(bundle, network, precision)
        try:
            contract = self._contract(bundle, network, dtype)
        except (CheckpointError, ConfigError) as error:
            raise BundleError(f"{network}: {error}") from None
        except (MemoryError, torch.OutOfMemoryError):
            raise OutOfMemoryError(f"{network}: memory ran out while loading.") from None
        if [spec.name for spec in contract.inputs] != [tensor.name for tensor in entry.inputs]:
            raise BundleError(f"{network}: the manifest's inputs are not those of the network.")
        output_shapes = resolve_shapes(network, entry.outputs, symbol_sizes(entry.inputs, shapes))
        return TorchModule(
            network,
            self._compute(contract.module),
            tuple(TensorSpec(s.name, shapes[s.name], s.dtype) for s in contract.inputs),
            tuple(TensorSpec(s.name, output_shapes[s.name], s.dtype) for s in contract.outputs),
            dtype,
            threads,
            self.device,
        )

    def _dtype(self, bundle: Bundle, network: str, precision: str) -> torch.dtype:
        return _COMPUTED[self.resolve(precision)]

    def _contract(self, bundle: Bundle, network: str, dtype: torch.dtype) -> NetworkContract:
        return self._describe(bundle, network, self._read(bundle, network, dtype))

    def _compute(self, module: nn.Module) -> Compute:
        return module

    def _read(self, bundle: Bundle, network: str, dtype: torch.dtype) -> nn.Module:
        from sdengine.checkpoints.weights import Weights

        files = [bundle.path(name) for name in bundle.network(network).files]
        weights = Weights(files, lambda name: name)
        return weights.load_into(lambda: _build(bundle, network), dtype, self.device)

    def _describe(self, bundle: Bundle, network: str, module: nn.Module) -> NetworkContract:
        from sdengine.models.contracts import make_contract

        inputs = bundle.network(network).inputs
        return make_contract(
            network,
            module,
            downscale=bundle.manifest.architecture.vae.downscale,
            controlnet=any(tensor.name == "mid_residual" for tensor in inputs),
            num_time_ids=_num_time_ids(bundle),
        )


def _num_time_ids(bundle: Bundle) -> int:
    kind = bundle.manifest.architecture.unet.size_conditioning
    return 5 if kind == "aesthetic" else 6


def _build(bundle: Bundle, network: str) -> nn.Module:
    from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
    from sdengine.models.unet import UNet2DConditionModel, UNetConfig
    from sdengine.models.vae import AutoencoderKL, VAEConfig

    architecture = bundle.manifest.architecture
    module: nn.Module
    encoders = {encoder.network: encoder for encoder in architecture.text_encoders}
    if network in encoders:
        module = CLIPTextEncoder(TextEncoderConfig.from_dict(encoders[network].config))
    elif network == "unet":
        module = UNet2DConditionModel(UNetConfig.from_dict(architecture.unet.config))
    elif network in _LEFT_OUT:
        module = AutoencoderKL(VAEConfig.from_dict(architecture.vae.config))
    else:
        raise BundleError(f"network {network!r} is unknown to this release.")
    for part in _LEFT_OUT[network]:
        parent, _, name = part.rpartition(".")
        delattr(module.get_submodule(parent), name)
    return module
