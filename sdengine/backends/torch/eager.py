"""The torch backend: the networks run eagerly from their modules; the baseline and reference."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from sdengine.adapters.changes import merged
from sdengine.adapters.own_weights import own_weights
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import (
    DEFAULTS,
    Array,
    Module,
    Session,
    SessionOptions,
    require_cpu_precision,
    require_no_device,
    require_no_split,
)
from sdengine.backends.memory_budget import MemoryBudget, unplanned_budget
from sdengine.bundle.controls import control_name, is_control, is_feature
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes, symbol_sizes
from sdengine.checkpoints.weights import Weights
from sdengine.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DeviceError,
    OutOfMemoryError,
)
from sdengine.machine import usable_processors
from sdengine.models.contracts import LEFT_OUT, make_contract
from sdengine.models.controls import control_config, make_control
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.network_contract import KEPT_IN_FP32, NetworkContract
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.models.tiny_vae import TinyAutoencoder, TinyVAEConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

Compute = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]


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
        with torch_errors(self.name), torch.inference_mode(), current_gpu(self._device):
            computed = self._compute(*(tensor.to(self._device) for tensor in tensors))
            if isinstance(computed, torch.Tensor):
                computed = (computed,)
            arrays = [tensor.float().contiguous().cpu().numpy() for tensor in computed]
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
        if spec.name in KEPT_IN_FP32 or not tensor.is_floating_point():
            return tensor
        return tensor.to(self._dtype)

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        close = getattr(self._compute, "close", None)
        self._compute = None
        if close is not None:
            close()


def current_gpu(device: str) -> AbstractContextManager[Any]:
    """Make a device the thread's GPU: streams are made there, and Triton's kernels start there."""
    return nullcontext() if device == "cpu" else torch.cuda.device(device)


@contextmanager
def torch_errors(network: str) -> Iterator[None]:
    """Let what torch cannot do in the block be an error of ours that names the network.

    Raises:
        OutOfMemoryError: memory ran out.
        DeviceError: it failed otherwise.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if ran_out or "allocate memory" in str(error):
            raise OutOfMemoryError(f"{network}: memory ran out while computing.") from None
        raise DeviceError(f"{network}: torch failed: {str(error)[:300]}") from error


class TorchSession:
    """One bundle of target `torch` on the CPU; see `sdengine.backends.base.Session`.

    A network's weights are held once, whatever the shapes that it is loaded for.

    Args:
        bundle: an open bundle.
        precision: a key of `TORCH_DTYPES`.
        threads: CPU threads, or None for torch's choice.
        budget: of memory.
        device: where networks compute.
    """

    max_chunks: int | None = None
    works_after_fork: bool = False  # torch's threads stay in the parent

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str = "cpu",
    ) -> None:
        self.bundle = bundle
        self.precision = precision
        self.budget = budget
        self.device = device
        self._threads = threads
        # By network and by what is merged into it.
        self._modules: weakref.WeakValueDictionary[tuple[str, str], nn.Module] = (
            weakref.WeakValueDictionary()
        )

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Build one network's module and give it its weights."""
        entry = self.bundle.network(network)
        dtype = self.dtype_of(network)
        try:
            contract = self._describe(network, self._module(network, dtype, weights))
        except (CheckpointError, ConfigError) as error:
            raise BundleError(f"{network}: {error}") from None
        except (MemoryError, torch.OutOfMemoryError):
            raise OutOfMemoryError(f"{network}: memory ran out while loading.") from None
        if [spec.name for spec in contract.inputs] != [tensor.name for tensor in entry.inputs]:
            raise BundleError(f"{network}: the manifest's inputs are not those of the network.")
        output_shapes = resolve_shapes(network, entry.outputs, symbol_sizes(entry.inputs, shapes))
        inputs = tuple(TensorSpec(s.name, shapes[s.name], s.dtype) for s in contract.inputs)
        outputs = [TensorSpec(s.name, output_shapes[s.name], s.dtype) for s in contract.outputs]
        return self._make(network, contract.module, inputs, tuple(outputs), dtype)

    def dtype_of(self, network: str) -> torch.dtype:
        """Return what a network computes in."""
        return TORCH_DTYPES[self.precision]

    def close(self) -> None:
        """Do nothing: nothing is left once the modules are closed."""

    def _make(
        self,
        network: str,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dtype: torch.dtype,
    ) -> TorchModule:
        """Return a loaded network, given a module of its contract and shapes of numbers."""
        compute = self._compute(module)
        return TorchModule(network, compute, inputs, outputs, dtype, self._threads, self.device)

    def _compute(self, module: nn.Module) -> Compute:
        return module

    def _module(self, network: str, dtype: torch.dtype, weights: WeightSet) -> nn.Module:
        """Return a network's module with its weights, the one that others use if there is one."""
        key = network, weights.identity(network)
        module = self._modules.get(key)
        if module is None:
            module = self._read(network, dtype, weights)
            self._prepare(network, module)
            self._modules[key] = module
        return module

    def _prepare(self, network: str, module: nn.Module) -> None:
        """Change a network just read into what shall be computed."""

    def _read(self, network: str, dtype: torch.dtype, weights: WeightSet) -> nn.Module:
        files = [self.bundle.path(name) for name in self.bundle.network(network).files]
        stored = Weights(files, lambda name: name)
        if weights.identity(network):
            weights.require_unchanged()  # reading a mapped file that was cut off is fatal
            pristine = weights.pristine(network, own_weights(self.bundle, network))
            changes = weights.changes(network)
            stored.derive = lambda name, _: _tensor_of(
                merged(pristine[name], changes.get(name, ()))
            )
        module = stored.load_into(lambda: _build(self.bundle, network), dtype, self.device)
        weights.require_unchanged()
        return module

    def _describe(self, network: str, module: nn.Module) -> NetworkContract:
        inputs = self.bundle.network(network).inputs
        architecture = self.bundle.manifest.architecture
        return make_contract(
            network,
            module,
            downscale=architecture.vae.downscale,
            controlnet=any(tensor.name == "mid_residual" for tensor in inputs),
            adapters=any(is_feature(tensor.name) for tensor in inputs),
            num_time_ids=5 if architecture.unet.size_conditioning == "aesthetic" else 6,
        )


class TorchBackend:
    """Run bundles of target `torch` on the CPU."""

    name = "torch"

    def available(self) -> tuple[bool, str]:
        """Say which torch runs the networks."""
        return True, f"torch {torch.__version__}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what `auto` means here: bf16 where the processor computes in it, else fp32."""
        require_cpu_precision(precision)
        if precision != "auto":
            return precision
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session; see `Backend.open`. torch takes memory as it needs it."""
        require_no_device(self.name, options.device)
        require_no_split(self.name, options.split_guidance)
        budget = unplanned_budget(self.name, options.memory_bytes)
        # Its own choice knows no quota.
        threads = options.threads or usable_processors().threads_by_quota
        return TorchSession(bundle, self.resolve(options.precision), threads, budget)


def _tensor_of(array: Array) -> torch.Tensor:
    """Return an array, of bf16 the bits, as a tensor."""
    tensor = torch.from_numpy(np.ascontiguousarray(array).copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _build(bundle: Bundle, network: str) -> nn.Module:
    """Return a network's module without weights."""
    architecture = bundle.manifest.architecture
    module: nn.Module
    encoders = {encoder.network: encoder for encoder in architecture.text_encoders}
    if network in encoders:
        module = CLIPTextEncoder(TextEncoderConfig.from_dict(encoders[network].config))
    elif network == "unet":
        module = UNet2DConditionModel(UNetConfig.from_dict(architecture.unet.config))
    elif is_control(network):  # which a manifest describes
        control = architecture.controls[control_name(network)]
        module = make_control(control_config(control.config))
    elif network.startswith("tiny_") and architecture.tiny_vae is not None:
        module = TinyAutoencoder(TinyVAEConfig.from_dict(architecture.tiny_vae))
    elif network.startswith("vae_") and network in LEFT_OUT:
        module = AutoencoderKL(VAEConfig.from_dict(architecture.vae.config))
    else:
        raise BundleError(f"network {network!r} is unknown to this release.")
    for part in LEFT_OUT.get(network, ()):
        parent, _, name = part.rpartition(".")
        if hasattr(module.get_submodule(parent), name):
            delattr(module.get_submodule(parent), name)
    return module
