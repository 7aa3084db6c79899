"""Model: weights that take the place of a bundle's, those of a checkpoint or of a mixture.

A mixture is a sum of checkpoints, each times its share, and the shares make 1: {"a": 0.7, "b": 0.3}
is what mergers call a weighted sum, {"a": 1, "b": 0.5, "c": -0.5} adds half the difference between
b and c to a. What a checkpoint lacks, the bundle's own stands in for: a network that is not in its
file, and the first convolution's channels for a mask or a depth map, where it is for text alone.

Numbers are rounded once, to what the bundle stores: a bundle that is built of the checkpoint holds
the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.sources.own import TOKEN_TABLE, Own, part_of
from sdengine.adapters.sources.source import Source, read_source
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.models import OWN, ModelTerm, find_model
from sdengine.machine import usable_processors
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

Array = NDArray[Any]
# From here on numbers become infinite in fp16, and in bf16.
_TOO_LARGE = {np.dtype(np.float16): 65520.0, np.dtype(np.uint16): 3.3961775e38}
_TYPES = {np.dtype(np.float16): "fp16", np.dtype(np.uint16): "bf16", np.dtype(np.float32): "fp32"}
_AT_ONCE = 1 << 20  # numbers that are looked at
_MOST_REMEMBERED = 1000
# Hashes of what was looked at, with the type that a bundle stores it in.
_checked: set[tuple[str, str, np.dtype[Any]]] = set()


@dataclass(frozen=True)
class Term:
    """One of a mixture's checkpoints.

    Args:
        source: it; None is the bundle itself.
        share: that its numbers are multiplied with.
    """

    source: Source | None
    share: float


@dataclass(frozen=True)
class Model:
    """Weights for the networks of a bundle; nothing of them is read before it is asked for.

    Args:
        terms: one, or those of a mixture; their shares make 1.
        own: what the bundle has.
    """

    terms: tuple[Term, ...]
    own: Own = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Its checkpoint's name, or those of a mixture with their shares."""
        named = [(OWN if t.source is None else t.source.found.name, t.share) for t in self.terms]
        if len(named) == 1:
            return named[0][0]
        return " + ".join(f"{share:g} {name}" for name, share in named).replace("+ -", "- ")

    @property
    def sha256(self) -> str:
        """The hash of its checkpoint's files; of a mixture one that no other has; "" of none."""
        return _digest(self._shares(lambda source: source.found.sha256))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        found = {note: t.source for t in self.terms if t.source for note in t.source.notes}
        return tuple(f"{source.found.name}: {note}" for note, source in found.items())

    def identity(self, network: str) -> str:
        """Return a text that tells a network's weights from all others; "" for the bundle's own."""
        part = part_of(network)
        return _digest(self._shares(lambda source: source.part_sha256(part)))

    def weights(self, network: str, own: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return a network's tensors, each made when it is asked for.

        Args:
            network: of the bundle.
            own: what the bundle holds of it; tensors that are no parameters stay as they are.

        Returns:
            Tensors of the same names, shapes and types.
        """
        return _Exchanged(self, part_of(network), own) if self.identity(network) else own

    def changed(self, network: str) -> Collection[str]:
        """Name a network's parameters that are its own."""
        return self.own.parts[part_of(network)] if self.identity(network) else ()

    def token_rows(self, network: str, own: Array, token_ids: Array) -> Array:
        """Return rows of a text encoder's token table, in the type of the bundle's.

        Args:
            network: the text encoder.
            own: the bundle's table [vocab, hidden_size].
            token_ids: of any shape.
        """
        if not self.identity(network):
            rows: Array = own[token_ids]
            return rows
        return self.parameter(network, TOKEN_TABLE, own, token_ids)

    def require_unchanged(self) -> None:
        """Refuse files whose bytes are not those that were checked.

        Raises:
            CheckpointError: one was overwritten.
        """
        for term in self.terms:
            files = () if term.source is None else term.source.files
            if term.source and any(file.is_overwritten() for file in files):
                raise CheckpointError(
                    f"model {str(term.source.found.path)!r} was overwritten after it was checked. "
                    "Give it again."
                )

    def parameter(self, part: str, name: str, own: Array, rows: Array | None = None) -> Array:
        """Return one parameter, or rows of it, in the type and shape of the bundle's own.

        Raises:
            CheckpointError: of a mixture a number is not finite in that type.
        """
        there = [t for t in self.terms if t.source is not None and part in t.source.parts]
        arrays = [t.source.array(part, name, own.shape) for t in there if t.source is not None]
        if rows is not None:
            arrays, own = [array[rows] for array in arrays], own[rows]
        if len(self.terms) == 1 and arrays and arrays[0].shape == own.shape:
            return _rounded(arrays[0], own.dtype)
        total = np.zeros(own.shape, np.float32)
        own_share = sum(t.share for t in self.terms if t not in there)
        for term, values in zip(there, arrays, strict=True):
            share = np.float32(term.share)
            if values.shape == own.shape:
                total += share * to_float32(values)
            else:  # the first convolution of a model of text for one that reads more
                channels = values.shape[1]
                total[:, :channels] += share * to_float32(values)
                total[:, channels:] += share * to_float32(own[:, channels:])
        if own_share:
            total += np.float32(own_share) * to_float32(own)
        made = _rounded(total, own.dtype)
        if not largest(made) < _too_large(own.dtype):
            raise CheckpointError(
                f"model {self.name!r}: {part}: tensor {name!r} is not finite in "
                f"{_TYPES[own.dtype]}, which the bundle stores. Give smaller shares."
            )
        return made

    def _shares(self, hash_of: Callable[[Source], str]) -> list[tuple[str, float]]:
        """Return hashes with their shares, in an order of their own; those of nothing left out."""
        found: dict[str, float] = {}
        for term in self.terms:
            sha256 = "" if term.source is None else hash_of(term.source)
            found[sha256] = found.get(sha256, 0.0) + term.share
        return sorted((sha256, share) for sha256, share in found.items() if share)


class _Exchanged(Mapping[str, Array]):
    def __init__(self, model: Model, part: str, own: Mapping[str, Array]) -> None:
        self._model, self._part, self._own = model, part, own
        self._known = model.own.parts[part]

    def __getitem__(self, name: str) -> Array:
        own = self._own[name]
        return self._model.parameter(self._part, name, own) if name in self._known else own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def read_model(given: Sequence[ModelTerm], own: Own) -> Model:
    """Open the checkpoints of a model and check all of them.

    Args:
        given: as `model_terms` returns them.
        own: what the bundle has; see `own_parameters`.

    Raises:
        ConfigError: only the record of a checkpoint is given, and not its file.
        CheckpointError: one does not fit the bundle; see `read_source`.
    """
    model = Model(tuple(_read(term, own) for term in given), own)
    for term in model.terms:
        if term.source is not None:
            _check_numbers(term.source, own)
    return model


def _read(term: ModelTerm, own: Own) -> Term:
    if term.is_own:
        return Term(None, term.share)
    if term.path is None:
        raise ConfigError(
            f"model: {term.name!r}, with SHA-256 {term.sha256}, is only known by its record. Give "
            "its file again: --model FILE in the command, model in Python."
        )
    found = find_model(term.path)
    if found.sha256 != term.sha256:
        raise CheckpointError(
            f"model {str(term.path)!r} was overwritten after it was checked. Give it again."
        )
    return Term(read_source(found, own), term.share)


def largest(values: Array) -> float:
    """Return the largest magnitude of an array; NaN where it holds one."""
    if values.dtype == np.float64:
        return float(np.abs(values).max(initial=0.0))
    kind = np.uint32 if values.dtype.itemsize == 4 else np.uint16
    magnitude = kind((1 << (8 * values.dtype.itemsize - 1)) - 1)
    flat = values.reshape(-1).view(kind)
    # Without its sign a float's bits grow with it, and those of NaN lie beyond infinity.
    pieces = (flat[at : at + _AT_ONCE] for at in range(0, flat.size, _AT_ONCE))
    bits = max((int((piece & magnitude).max()) for piece in pieces), default=0)
    found = np.array([bits], kind)
    return float(to_float32(found if values.dtype == np.uint16 else found.view(values.dtype))[0])


def _check_numbers(source: Source, own: Own) -> None:
    wanted = [
        (part, name, array)
        for part in source.parts
        for name, array in own.parts[part].items()
        if (source.part_sha256(part), part, array.dtype) not in _checked
    ]

    def check(item: tuple[str, str, Array]) -> None:
        part, name, array = item
        values = source.array(part, name, array.shape)
        found = largest(values)
        if found < _too_large(array.dtype):
            return
        said = f"model {str(source.found.path)!r}: {part}: tensor {name!r} {list(values.shape)}"
        if not np.isfinite(found):
            raise CheckpointError(
                f"{said} holds NaN or infinity, so that the file is damaged. Nothing was changed."
            )
        raise CheckpointError(
            f"{said} reaches {found:g}, which {_TYPES[array.dtype]}, in which the bundle stores "
            "it, does not hold. Build the bundle with --precision fp32."
        )

    with ThreadPoolExecutor(min(8, usable_processors().threads)) as pool:
        list(pool.map(check, wanted))
    if len(_checked) > _MOST_REMEMBERED:
        _checked.clear()
    _checked.update((source.part_sha256(part), part, array.dtype) for part, _, array in wanted)


def _too_large(stored: np.dtype[Any]) -> float:
    return _TOO_LARGE.get(stored, float("inf"))


def _digest(shares: list[tuple[str, float]]) -> str:
    if not shares or shares == [("", 1.0)]:
        return ""
    if len(shares) == 1 and shares[0][1] == 1:
        return shares[0][0]
    return hashlib.sha256(json.dumps(shares).encode()).hexdigest()


def _rounded(values: Array, like: np.dtype[Any]) -> Array:
    if values.dtype == like:
        return values
    exact = to_float32(values)
    return to_bf16_bits(exact) if like == np.uint16 else exact.astype(like, copy=False)
