"""Hypernetwork: small networks that change what an attention layer's keys and values are made of.

For each width of a context there are two, one for the keys and one for the values; each adds to the
context what it makes of it. They are trained by web UIs, whose pictures ask for them.

Source: the files that the Stable Diffusion web UI writes, by their documented settings. Parameters
are numbered through all modules of a network, those without parameters too: so what a parameter is
follows from its shape and the order, not from its number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import AdapterError, BundleError, CheckpointError
from sdengine.storage.content_hash import hash_open_file, sha256_of
from sdengine.storage.pickle_reader import TensorRecord
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import to_float32
from sdengine.storage.torch_archive import TorchFile

_Floats = NDArray[np.float32]
ENDINGS = (".pt",)
_MAX_WIDTHS = 16
_MAX_PARAMETERS = 200
_EPSILON = 1e-5  # of LayerNorm, as torch has it
_LINEAR = re.compile(r"linear\.([0-9]{1,4})\.(weight|bias)")
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}


def _erf(x: _Floats) -> _Floats:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64)), np.float32)


def _softplus(x: _Floats) -> _Floats:
    return np.asarray(np.logaddexp(x, np.float32(0)), np.float32)


def _sigmoid(x: _Floats) -> _Floats:
    return np.asarray(np.exp(-_softplus(-x)), np.float32)


def _elu(x: _Floats) -> _Floats:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _hardswish(x: _Floats) -> _Floats:
    return x * np.clip(x / 6 + 0.5, 0, 1)


# By the names that files have: torch's in lower case, and "swish", which is not torch's SiLU.
ACTIVATIONS: Mapping[str, Callable[[_Floats], NDArray[Any]]] = MappingProxyType({
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "rrelu": lambda x: np.where(x > 0, x, x * (1 / 8 + 1 / 3) / 2),  # the mean of its slopes
    "leakyrelu": lambda x: np.where(x > 0, x, x * 0.01),
    "elu": _elu,
    "celu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(
        x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))
    ),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "swish": _hardswish,
    "hardswish": _hardswish,
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "tanh": np.tanh,
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "tanhshrink": lambda x: x - np.tanh(x),
    "sigmoid": _sigmoid,
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "logsigmoid": lambda x: -_softplus(-x),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
})  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer: x @ weight.T + bias, the activation, and then perhaps a LayerNorm."""

    weight: _Floats
    bias: _Floats
    activation: str
    norm: tuple[_Floats, _Floats] | None

    def __call__(self, x: _Floats) -> _Floats:
        """Map [..., in] fp32 to [..., out]."""
        x = ACTIVATIONS[self.activation](x @ self.weight.T + self.bias).astype(np.float32)
        if self.norm is not None:
            weight, bias = self.norm
            centred = x - x.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            x = centred / np.sqrt(variance + _EPSILON) * weight + bias
        return x


@dataclass(frozen=True)
class Hypernetwork:
    """The networks of a file.

    Args:
        name: of the file, without its ending.
        sha256: of the file.
        networks: by width of the context, the layers for keys and those for values.
    """

    name: str
    sha256: str
    networks: Mapping[int, tuple[tuple[Layer, ...], tuple[Layer, ...]]]

    def added_to(
        self, keys: _Floats, values: _Floats, strength: float = 1.0
    ) -> tuple[_Floats, _Floats]:
        """Return what an attention layer makes its keys and its values of.

        Args:
            keys, values: [..., width] fp32 that it would make them of without, mostly the same; of
                a width that the file has no networks for, they stay.
            strength: factor on what the networks add.
        """
        pair = self.networks.get(keys.shape[-1])
        if pair is None:
            return keys, values
        of_keys, of_values = pair
        factor = np.float32(strength)
        return keys + factor * _run(of_keys, keys), values + factor * _run(of_values, values)


@dataclass(frozen=True)
class HypernetworkUse:
    """A hypernetwork of a request, with its strength; what it holds is read later.

    Args:
        name, sha256: of its file.
        strength: factor on what it adds.
        path: of the file; None where only the record is known.
    """

    name: str
    sha256: str
    strength: float
    path: Path | None = field(default=None, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        return {"name": self.name, "sha256": self.sha256, "strength": self.strength}

    def tag(self) -> str:
        """Return what a prompt of web UIs says of it; "" where no tag can name it."""
        return "" if set(self.name) & set("<>:") else f"<hypernet:{self.name}:{self.strength:g}>"

    def __str__(self) -> str:
        """Return a line such as "fog:0.8 (0123456789)"."""
        return f"{self.name}:{self.strength:g} ({self.sha256[:10]})"

    @classmethod
    def of(cls, path: Path, strength: float) -> HypernetworkUse:
        """Hash a file.

        Raises:
            AdapterError: it cannot be read.
        """
        try:
            with open_regular(path) as file:
                found = hash_open_file(file, path)
        except (OSError, ValueError, BundleError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            message = f"hypernetwork {str(path)!r} cannot be read: {reason}."
            raise AdapterError.of_reading(message, error) from None
        name = path.stem.encode("utf-8", "replace").decode()  # it ends up in pictures' metadata
        return cls(name, found.sha256, strength, path)


def is_hypernetwork(content: Any) -> bool:
    """Say whether that is what a pickle of one describes."""
    return isinstance(content, dict) and any(
        type(key) is int and isinstance(value, (tuple, list)) for key, value in content.items()
    )


def read_hypernetwork(path: Path) -> Hypernetwork:
    """Read a file; nothing of it is run.

    Where it does not say: the structure is 1, 2, 1, there is neither activation nor norm, and the
    last layer has an activation too. Dropout is for training, and passed over.

    Raises:
        CheckpointError: it is damaged, no hypernetwork, of an unknown activation, holds NaN, or its
            parameters are not those that its settings ask for.
    """
    file = _BoundedFile(path)
    content = file.content
    if not is_hypernetwork(content):
        raise CheckpointError(f"{path}: it is no hypernetwork; expected networks by their widths.")
    widths = [key for key in content if type(key) is int]
    if len(widths) > _MAX_WIDTHS or not all(0 < width <= 1 << 16 for width in widths):
        raise CheckpointError(f"{path}: it has networks for the widths {str(widths)[:80]}.")
    settings = _Settings.of(path, content)
    networks = {}
    for width in widths:
        pair = content[width]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise CheckpointError(f"{path}: width {width}: expected one network for keys and one "
                                  "for values.")  # fmt: skip
        keys, values = (
            _layers(f"{path}: width {width}, {of}", file, state, width, settings)
            for of, state in zip(("keys", "values"), pair, strict=True)
        )
        networks[width] = (keys, values)
    return Hypernetwork(path.stem, sha256_of(path), MappingProxyType(networks))


class _BoundedFile(TorchFile):
    """A file of which no more numbers are given out than it has bytes: tensors may share theirs."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._left = path.stat().st_size

    def array_of(self, name: str, record: TensorRecord) -> NDArray[Any]:
        """Return a tensor; see `TorchFile.array_of`."""
        array = super().array_of(name, record)
        self._left -= array.size
        if self._left < 0:
            raise CheckpointError(f"{self.path}: its tensors claim more numbers than it holds.")
        return array


@dataclass(frozen=True)
class _Settings:
    """What a file says of all its networks."""

    structure: tuple[float, ...]
    activation: str
    has_norm: bool
    activates_output: bool

    @classmethod
    def of(cls, path: Path, content: Mapping[Any, Any]) -> _Settings:
        structure = content.get("layer_structure")
        structure = [1, 2, 1] if structure is None else structure
        numbers = isinstance(structure, (list, tuple)) and all(
            type(one) in (int, float) and 0 < one <= 64 for one in structure
        )
        if not numbers or not 2 <= len(structure) <= _MAX_PARAMETERS or structure[0] != 1:
            raise CheckpointError(
                f"{path}: layer_structure {str(structure)[:80]} is not accepted; expected factors "
                "of the width, the first and last of them 1."
            )
        activation = content.get("activation_func") or "linear"
        known = isinstance(activation, str) and activation.lower() in ACTIVATIONS
        if not known:
            raise CheckpointError(
                f"{path}: activation_func {str(activation)[:40]!r} is not accepted; expected one "
                f"of {', '.join(ACTIVATIONS)}."
            )
        activates = content.get("activate_output", True)
        has_norm = content.get("is_layer_norm", False)
        return cls(tuple(structure), activation.lower(), bool(has_norm), bool(activates))


def _layers(
    where: str, file: TorchFile, state: Any, width: int, settings: _Settings
) -> tuple[Layer, ...]:
    modules = _modules(where, file, state)
    places = [i for i, module in enumerate(modules) if module["weight"].ndim == 2]
    count = len(settings.structure) - 1
    if len(places) != count or places[0] != 0:
        raise CheckpointError(
            f"{where}: {len(places)} layers; layer_structure {list(settings.structure)} asks for "
            f"{count}."
        )
    if len(modules) > 2 * count:
        raise CheckpointError(f"{where}: it has more norms than layers.")
    layers: list[Layer] = []
    size = width
    for number, place in enumerate(places):
        module, following = modules[place], modules[place + 1 : place + 2]
        norm = following[0] if following and following[0]["weight"].ndim == 1 else None
        wanted = int(width * settings.structure[number + 1])
        _require(where, f"layer {number + 1}", module, (wanted, size))
        if (norm is not None) != settings.has_norm:
            found = "has none" if norm is None else "has one"
            raise CheckpointError(
                f"{where}: is_layer_norm is {settings.has_norm}, but layer {number + 1} {found}."
            )
        if norm is not None:
            _require(where, f"the norm of layer {number + 1}", norm, (wanted,))
        is_idle = number == count - 1 and not settings.activates_output
        layers.append(
            Layer(
                module["weight"],
                module["bias"],
                "linear" if is_idle else settings.activation,
                None if norm is None else (norm["weight"], norm["bias"]),
            )
        )
        size = wanted
    if size != width:
        raise CheckpointError(f"{where}: it gives {size} numbers for {width}.")
    return tuple(layers)


def _modules(where: str, file: TorchFile, state: Any) -> list[dict[str, _Floats]]:
    """Return weight and bias of each module that has them, in their order."""
    if not isinstance(state, dict) or len(state) > _MAX_PARAMETERS:
        raise CheckpointError(f"{where}: expected a dict of parameters.")
    found: dict[int, dict[str, _Floats]] = {}
    for key, record in state.items():
        owner, dot, name = str(key).rpartition(".")
        match = _LINEAR.fullmatch(_OLD_NAMES.get(owner, owner) + dot + name)
        if match is None or not isinstance(record, TensorRecord):
            raise CheckpointError(f"{where}: {str(key)[:60]!r} is no parameter of a hypernetwork.")
        array = file.array_of(str(key), record)
        shown = f"{where}: {key!r} is {record.storage.dtype} {list(array.shape)}"
        if record.storage.dtype not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(f"{shown}; expected numbers with a fraction.")
        with np.errstate(over="ignore"):
            values = np.array(to_float32(array), np.float32, order="C")
        if not np.isfinite(values).all():
            raise CheckpointError(f"{shown} and holds NaN or infinity.")
        found.setdefault(int(match[1]), {})[match[2]] = values
    modules = [found[number] for number in sorted(found)]
    for module in modules:
        if module.keys() != {"weight", "bias"} or module["weight"].ndim not in (1, 2):
            raise CheckpointError(f"{where}: every layer and norm needs a weight and a bias.")
    if not modules:
        raise CheckpointError(f"{where}: it has no parameters.")
    return modules


def _require(where: str, what: str, module: Mapping[str, _Floats], shape: tuple[int, ...]) -> None:
    found = module["weight"].shape, module["bias"].shape
    if found != (shape, shape[:1]):
        raise CheckpointError(
            f"{where}: {what} has a weight {list(found[0])} and a bias {list(found[1])}; expected "
            f"{list(shape)} and {list(shape[:1])}."
        )


def _run(layers: tuple[Layer, ...], x: _Floats) -> _Floats:
    for layer in layers:
        x = layer(x)
    return x
