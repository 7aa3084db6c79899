"""Pickle reader for files of torch.save, without a way to run anything.

Python's own unpickler builds whatever a pickle names by calling it, so that even a restricted one
is only as safe as its list; and a few bytes make its memo take gigabytes. This reader goes through
the opcodes that `pickletools` decodes and keeps a stack of its own. It has no instruction that
calls, imports or sets an attribute: a tensor becomes a `TensorRecord`, a mapping a dict of its keys
that are texts or integers, and the objects that training frameworks leave in checkpoints become
`Inert`. What a pickle only names, such as a data type or a class among the settings, stays a name.
What it asks to be called, if it is not on the list of plain values, is refused by its name, because
a checkpoint has no use for it and an attack has.

Source: the documentation of `pickletools`, and the layout of torch.save's pickles as
`torch.serialization` documents it.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from sdengine.errors import CheckpointError
from sdengine.storage.tensor_file import NUMPY_DTYPES

# Global name -> data type in the words of the safetensors format.
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
    "UntypedStorage": "U8",  # of types that have no class of their own; its numbers are bytes
}  # fmt: skip
_OF_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
# Packages whose objects training leaves in checkpoints: callbacks, settings, counters.
_INERT_PACKAGES = frozenset(
    {
        "argparse", "datetime", "decimal", "diffusers", "fractions", "lightning",
        "lightning_fabric", "lightning_utilities", "numpy", "omegaconf", "pytorch_lightning",
        "torchmetrics", "transformers", "uuid",
    }
)  # fmt: skip
_INERT_NAMES = frozenset(
    {
        "_codecs.encode", "builtins.complex", "builtins.dict",
        "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list", "builtins.range",
        "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple", "builtins.xrange",
        "collections.Counter", "collections.defaultdict", "collections.deque",
        "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
        "pathlib.WindowsPath", "torch.Generator", "torch.device",
        "torch.serialization._get_layout",
        "torch.torch_version.TorchVersion", "types.SimpleNamespace",
    }
)  # fmt: skip
# An old torch wrote its module of parameters whole, others a dict of them.
_PARAMETERS = "torch.nn.modules.container.ParameterDict"
# How torch rebuilds tensors of kinds that no network's weights are: sparse, quantised, on "meta".
_OTHER_TENSORS = "torch._utils._rebuild_"
_MAX_NAME = 1000  # characters
_MAX_COPIED = 1 << 22  # items of lists and dicts that are made of others
_MAX_DIMENSIONS = 64
# Python hashes an integer by its remainder, so that larger ones can be chosen to collide.
_MAX_KEY = 1 << 60
_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {
        "BINBYTES", "BINBYTES8", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINSTRING",
        "BINUNICODE", "BINUNICODE8", "FLOAT", "INT", "LONG", "LONG1", "LONG4", "SHORT_BINBYTES",
        "SHORT_BINSTRING", "SHORT_BINUNICODE", "STRING", "UNICODE",
    }
)  # fmt: skip
_IGNORED = frozenset(("PROTO", "FRAME"))


@dataclass(frozen=True)
class Global:
    """The name of something that may be named; never looked up."""

    name: str


@dataclass(frozen=True)
class Inert:
    """Stand for an object that is of no use here and was never built."""

    name: str


class _Parameters(dict[str, Any]):
    """Stand for a ParameterDict, which is a dict by what it holds."""


@dataclass(frozen=True)
class StorageRecord:
    """Say which of the archive's storages a tensor lies in, and how many numbers it claims."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """Describe a tensor: a view of a storage, in elements. Nothing of it is checked yet."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(file: IO[bytes], storages: dict[str, StorageRecord] | None = None) -> Any:
    """Return what a pickle describes: dicts, lists, tuples, literals and the records above.

    Args:
        file: in memory, at the pickle's first byte; left behind its last.
        storages: receives every storage that the pickle refers to, by its key.

    Raises:
        CheckpointError: the pickle is damaged, uses what checkpoints have no use for, or calls
            something that is not on the list.
    """
    try:
        with warnings.catch_warnings():
            # Of escapes in text that the pickle holds, which Python's decoder warns about.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _Machine({} if storages is None else storages).run(file)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"not a valid pickle: {str(error)[:120]}") from None


class _Machine:
    """The pickle machine: a stack, a memo, and no instruction that runs anything."""

    def __init__(self, storages: dict[str, StorageRecord]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name not in _IGNORED:
                raise CheckpointError(f"its pickle uses {name}, which weights have no use for")
        raise CheckpointError("its pickle has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop_tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1]
        self.push(tuple(items))

    def memoize(self, index: int | None) -> None:
        place = len(self.memo) if index is None else index
        if place >= _MAX_KEY:
            raise CheckpointError("its pickle numbers what it holds by far too large numbers")
        self.memo[place] = self.stack[-1]

    def copy(self, *items: Any) -> None:
        """Count what is about to be copied: a few bytes of a pickle name the same list again."""
        self.copied += sum(len(one) for one in items if isinstance(one, list | tuple | dict))
        if self.copied > _MAX_COPIED:
            raise CheckpointError("its pickle makes far more of its lists than it holds")

    def store(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if _is_key(key):
                    target[key] = value

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def name_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        if len(name) > _MAX_NAME:
            raise CheckpointError(f"its pickle names {name[:40]!r}..., of {len(name)} characters")
        # What the module is called in Python 2, whose names protocol 2 keeps.
        module = "builtins" if module == "__builtin__" else module
        self.push(Global(f"{module}.{attribute}"))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError("its pickle names what is not a name")
        self.name_global(f"{module[: _MAX_NAME + 1]} {name[: _MAX_NAME + 1]}")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(arguments, tuple):
            self.copy(*arguments)
        self.push(_build(function, arguments))

    def discard_state(self) -> None:
        self.stack.pop()

    def build_object(self) -> None:
        """Take of a module's state its parameters; of all else nothing is of use."""
        state, target = self.stack.pop(), self.stack[-1]
        held = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(target, _Parameters) and isinstance(held, dict):
            self.copy(held)
            target.update(held)

    def persistent(self) -> None:
        identity = self.stack.pop()
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            self.push(identity[1])  # a class with its source, which the oldest format keeps
            return
        record = _storage(identity)
        self.storages[record.key] = record
        self.push(record)


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.push(_MARK),
    "POP": lambda m, _: m.discard_state(),
    "POP_MARK": lambda m, _: m.pop_to_mark().clear(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "DICT": lambda m, _: _replace_mark(m, {}, _Machine.store),
    "LIST": lambda m, _: _replace_mark(m, [], _Machine.append),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.pop_tuple(1),
    "TUPLE2": lambda m, _: m.pop_tuple(2),
    "TUPLE3": lambda m, _: m.pop_tuple(3),
    "SETITEM": lambda m, _: m.store([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.store(m.pop_to_mark()),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_to_mark()),
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "PUT": _Machine.memoize,
    "MEMOIZE": _Machine.memoize,
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": _Machine.name_global,
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build_object(),
    "BINPERSID": lambda m, _: m.persistent(),
}


def _replace_mark(
    machine: _Machine, empty: Any, fill: Callable[[_Machine, list[Any]], None]
) -> None:
    items = machine.pop_to_mark()
    machine.push(empty)
    fill(machine, items)


def _is_key(key: Any) -> bool:
    """Say whether it names anything here; hashing anything else may recurse."""
    return type(key) is str or (type(key) is int and abs(key) < _MAX_KEY)


def _build(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global | Inert) or not isinstance(arguments, tuple):
        raise CheckpointError("its pickle calls what is not a function")
    if isinstance(function, Inert):
        return function
    if function.name in _BUILDERS:
        return _BUILDERS[function.name](*arguments)
    _check_call(function.name)
    return Inert(function.name)


def _check_call(name: str) -> None:
    package = name.partition(".")[0]
    if name in _INERT_NAMES or package in _INERT_PACKAGES or name.startswith(_OTHER_TENSORS):
        return
    raise CheckpointError(
        f"its pickle calls {name[:80]!r}, which weights have no use for and an attack could use; "
        "nothing of it was run. Get the model as .safetensors from a source that you trust"
    )


def _storage(identity: Any) -> StorageRecord:
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise CheckpointError("its pickle refers to what is not a storage")
    _, kind, key, _, numel = identity[:5]
    module, _, attribute = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    known = module in ("torch", "torch.storage") and attribute in _STORAGES
    if not known or type(key) is not str or type(numel) is not int or numel < 0:
        raise CheckpointError(f"its pickle refers to a storage {str(key)[:40]!r} of no known type")
    if len(identity) > 5 and identity[5] is not None:
        raise CheckpointError("its pickle uses views of storages, which were given up in 2017")
    return StorageRecord(key, _STORAGES[attribute], numel)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRecord:
    if max(len(shape), len(stride)) > _MAX_DIMENSIONS:
        raise CheckpointError(f"its pickle describes a tensor of {len(shape)} dimensions")
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, StorageRecord) or not all(type(s) is int for s in sizes):
        raise CheckpointError("its pickle describes a tensor by what are not numbers")
    return TensorRecord(storage, offset, tuple(shape), tuple(stride))


def _typed_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    dtype: Any,
    *_: Any,
) -> TensorRecord:
    """Describe a tensor whose storage is of bytes, as torch writes types newer than its classes."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in _OF_DTYPES or not isinstance(storage, StorageRecord) or storage.dtype != "U8":
        raise CheckpointError(f"its pickle describes a tensor of no known type {name[:40]!r}")
    kind = _OF_DTYPES[name]
    held = StorageRecord(storage.key, kind, storage.numel // np.dtype(NUMPY_DTYPES[kind]).itemsize)
    return _tensor(held, offset, shape, stride)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    # Python 2 passes pairs.
    return {pair[0]: pair[1] for pair in pairs if _is_key(pair[0])}


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": lambda size: tuple(size),
    _PARAMETERS: lambda *_: _Parameters(),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
}
