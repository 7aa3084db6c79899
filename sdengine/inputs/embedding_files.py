"""Embedding files: every form in which textual inversions are shared, read as data.

Source: the files that the Stable Diffusion web UI, diffusers, ComfyUI and trainers of LoRAs write,
as their documents and readers describe them. Everything beside the vectors is passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.inputs.embedding_pictures import read_picture_content
from sdengine.inputs.embeddings import (
    ENCODER_KEYS,
    MAX_VECTORS,
    ONLY,
    Embedding,
    Vectors,
    name_fault,
)
from sdengine.inputs.hypernetworks import is_hypernetwork
from sdengine.inputs.picture import read_file
from sdengine.storage.content_hash import FileVersion, sha256_of
from sdengine.storage.pickle_reader import TensorRecord
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_open_file, to_float32
from sdengine.storage.torch_archive import TorchFile

PICTURE_ENDINGS = (".png", ".webp")
PICKLE_ENDINGS = (".pt", ".bin", ".pth", ".ckpt")
SAFETENSORS_ENDINGS = (".safetensors", ".sft")
ENDINGS = SAFETENSORS_ENDINGS + PICKLE_ENDINGS + PICTURE_ENDINGS
MAX_FILES = 10_000  # of a folder
_MAX_ENTRIES = 100_000  # of a pickle
_FIELD = "embeddings"
_PREVIEW = ".preview"
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.[^.]*|emb_params|clip_[lgh](?:_out)?)")
_OF_LORAS = re.compile(r"lora_(up|down|A|B|unet|te)|hada_w|lokr_w")
_PARAMS = "emb_params"
_KEYS = f"string_to_param, {_PARAMS}, {', '.join(ENCODER_KEYS)}, or one key alone"
_BEHIND = tuple(f"{key}_out" for key in ENCODER_KEYS)  # OneTrainer's output embeddings
_MAX_SHOWN = 5
_Array = NDArray[Any]


@dataclass(frozen=True)
class Skipped:
    """A file of a folder that is of no use, or a name of one.

    Args:
        name: that a prompt would call it by.
        file: its path.
        reason: a sentence.
    """

    name: str
    file: str
    reason: str


def read_embeddings(path: str | os.PathLike[str], name: str = "") -> tuple[Embedding, ...]:
    """Read a file; one of a LoRA may hold several embeddings.

    Args:
        path: of a file that ends as one of ENDINGS.
        name: what prompts call it; by default the file's name without its ending, of a picture the
            name that it holds, and of several those that they have.

    Raises:
        ConfigError: it cannot be read, holds no embedding, or one that is damaged, has NaN, or more
            than 75 vectors; the message names the file, and the tensor with its shape.
    """
    place = Path(path)
    shown = repr(str(place)[:200])
    ending = place.suffix.lower()
    if place.is_dir():
        raise ConfigError(
            f"{_FIELD}: {shown} is a folder. Give its files, or all of them with --embeddings, or "
            "to `load` and `Engine.add_embeddings`."
        )
    if ending not in ENDINGS and place.exists():
        raise ConfigError(
            f"{_FIELD}: {shown} does not end as a file of an embedding; accepted are "
            f"{', '.join(ENDINGS)}."
        )
    try:
        version = FileVersion.of(place.stat())
        if ending in PICTURE_ENDINGS:
            found, inner = _in_picture(place, shown)
        elif ending in PICKLE_ENDINGS:
            found, inner = {ONLY: _in_pickle(place)}, ""
        else:
            found, inner = _in_safetensors(place), ""
        parts = {own: _vectors(shown, own, tensors) for own, tensors in found.items()}
        sha256 = sha256_of(place)
        if FileVersion.of(place.stat()) != version:
            raise ConfigError(f"{_FIELD}: {shown} was changed while it was read. Try again.")
    except (CheckpointError, BundleError) as error:
        raise ConfigError(f"{_FIELD}: {error}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{_FIELD}: {shown} cannot be read: {reason}.") from None
    if name and len(parts) > 1:
        raise ConfigError(
            f"{_FIELD}: {shown} holds {len(parts)} embeddings with names of their own, "
            f"{_listed(parts)}; give it without the name {name!r}."
        )
    made = []
    for own, vectors in parts.items():
        called = name or own or inner or place.stem
        if fault := name_fault(called):
            raise ConfigError(f"{_FIELD}: {shown}: the name {called[:60]!r}: {fault}.")
        made.append(Embedding(called, sha256, vectors, str(place)))
    return tuple(made)


def read_embedding_folder(folder: Path) -> tuple[list[Embedding], list[Skipped]]:
    """Read the files of a folder and the folders in it, in the order of their paths.

    Pictures that hold no embedding are none of it; other files that end as embeddings do and are
    none, or damaged, are skipped. Of two files with one name the second is.

    Raises:
        ConfigError: the folder cannot be read, or has more than MAX_FILES such files.
    """
    found: list[Embedding] = []
    skipped: list[Skipped] = []
    for path in _files(folder):
        try:
            found += read_embeddings(path)
        except ConfigError as error:
            if not (isinstance(error, _NoEmbedding) and path.suffix.lower() in PICTURE_ENDINGS):
                skipped.append(Skipped(path.stem, str(path), str(error)))
    return found, skipped


class _NoEmbedding(ConfigError):
    """Report a file that is sound and holds no embedding."""


def _files(folder: Path) -> list[Path]:
    failed: list[OSError] = []
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=failed.append):
        folders.sort()
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            is_preview = stem.lower().endswith(_PREVIEW)
            if ending.lower() in ENDINGS and not (is_preview and ending in PICTURE_ENDINGS):
                found.append(Path(root, name))
        if len(found) > MAX_FILES:
            raise ConfigError.for_field(
                _FIELD, str(folder), f"a folder of at most {MAX_FILES} files of embeddings"
            )
    if failed:
        raise ConfigError(f"{_FIELD}: {str(folder)!r} cannot be read: {failed[0].strerror}.")
    return found


def _in_picture(path: Path, shown: str) -> tuple[dict[str, Any], str]:
    content = read_picture_content(_FIELD, read_file(_FIELD, path), shown)
    if content is None:
        raise _NoEmbedding(f"{_FIELD}: {shown} is a picture that holds no embedding.")
    inner = content.get("name")
    return {ONLY: content}, inner if isinstance(inner, str) else ""


def _in_pickle(path: Path) -> Any:
    file = TorchFile(path)
    left = _MAX_ENTRIES

    def arrays(value: Any, name: str, depth: int) -> Any:
        """Return the tensors of a tree of dicts and lists, which says nothing else of use."""
        nonlocal left
        left -= 1
        if left < 0:  # a few bytes of a pickle make lists that hold each other many times
            raise CheckpointError(f"{path}: it has more than {_MAX_ENTRIES} entries.")
        if isinstance(value, TensorRecord):
            return file.array_of(name, value)
        if isinstance(value, dict) and depth:
            texts = {key: one for key, one in value.items() if isinstance(key, str)}
            made = {key: arrays(one, key, depth - 1) for key, one in texts.items()}
            return {key: one for key, one in made.items() if one is not None}
        if isinstance(value, list) and depth:
            return [one for v in value if (one := arrays(v, name, depth - 1)) is not None]
        return None

    if is_hypernetwork(file.content):
        raise _NoEmbedding(
            f"{_FIELD}: {str(path)[:200]!r} is a hypernetwork: give it with --hypernetwork, or "
            "hypernetworks=."
        )
    return arrays(file.content, "", 3)


def _in_safetensors(path: Path) -> dict[str, Any]:
    """Return the tensors of the file's embedding, or of each that a LoRA brings, by its name."""
    with open_regular(path) as file:
        tensors, _ = map_open_file(file, path)
    bundled: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if match := _BUNDLED.fullmatch(name):
            own, kind = match.groups()
            key = _PARAMS if kind.startswith("string_to_param") else kind
            bundled.setdefault(own, {})[key] = tensor
    return bundled or {ONLY: tensors}


def _vectors(shown: str, own: str, content: Any) -> dict[str, Vectors]:
    """Return the vectors by text encoder, from whatever names they have."""
    named = dict(_tensors(content))
    if not named:
        raise _NoEmbedding(f"{_FIELD}: {shown} holds no embedding; expected tensors under {_KEYS}.")
    where = f"{_FIELD}: {shown}" + (f", embedding {own[:60]!r}" if own else "")
    if behind := [key for key in _BEHIND if key in named]:
        raise ConfigError(
            f"{where}: tensor {behind[0]!r} is added to what a text encoder puts out, which is not "
            "done here. Train it without output embeddings."
        )
    keyed = {key: named[key] for key in ENCODER_KEYS if key in named}
    if not keyed:
        key = _PARAMS if _PARAMS in named else next(iter(named))
        if len(named) > 1 and key != _PARAMS:
            raise _NoEmbedding(
                f"{where} holds {len(named)} tensors, {_listed(named)}; an embedding has {_KEYS}."
                + (" It is a LoRA: give it with --lora, or loras=." if _is_lora(named) else "")
            )
        return {ONLY: _checked(where, key, named[key])}
    found = {key: _checked(where, key, tensor) for key, tensor in keyed.items()}
    if len({len(vectors) for vectors in found.values()}) > 1:
        shapes = " and ".join(f"{key} is {list(v.shape)}" for key, v in found.items())
        raise ConfigError(
            f"{where}: {shapes}; both text encoders must have equally many vectors. Get the file "
            "again."
        )
    return found


def _is_lora(names: Iterable[str]) -> bool:
    return any(_OF_LORAS.search(name) for name in names)


def _tensors(content: Any) -> Iterator[tuple[str, _Array]]:
    """Yield the tensors of one embedding by what they are called, joined where they are pieces."""
    if isinstance(content, list):  # of dicts, whose tensors follow on each other
        pieces: dict[str, list[_Array]] = {}
        for one in content:
            for key, tensor in _tensors(one):
                name = key if key in ENCODER_KEYS else f"width {tensor.shape[-1:]}"
                pieces.setdefault(name, []).append(np.atleast_2d(tensor))
        widths = [name for name in pieces if name not in ENCODER_KEYS]
        if len(widths) == 2 and {_width(pieces[name]) for name in widths} == {768, 1280}:
            pieces = {"clip_l" if _width(p) == 768 else "clip_g": p for p in pieces.values()}
        for name, tensors in pieces.items():
            same = {(t.shape[-1], t.dtype) for t in tensors if t.ndim == 2}
            if len(same) == 1 and all(t.ndim == 2 for t in tensors):
                yield name, np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
            else:
                yield from ((f"{name}, {i}", t) for i, t in enumerate(tensors))
        return
    if not isinstance(content, Mapping):
        return
    inner = content.get("string_to_param")
    if isinstance(inner, Mapping):
        content = inner
    yield from ((key, value) for key, value in content.items() if isinstance(value, np.ndarray))


def _width(tensors: list[_Array]) -> int:
    return int(tensors[0].shape[-1])


def _checked(where: str, key: str, tensor: _Array) -> Vectors:
    """Return vectors [n,D] fp32 of their own, so that the file may change and go."""
    dtype = "bfloat16" if tensor.dtype == np.uint16 else str(tensor.dtype)  # its bits
    told = f"{where}: tensor {key[:60]!r} is {dtype} {list(tensor.shape)}"
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise ConfigError(f"{told}; expected numbers of 16, 32 or 64 bits with a fraction.")
    shaped = tensor[None] if tensor.ndim == 1 else tensor
    if shaped.ndim != 2 or 0 in shaped.shape:
        raise ConfigError(f"{told}; expected [vectors, width of the text encoder].")
    if len(shaped) > MAX_VECTORS:
        raise ConfigError(
            f"{told}: {len(shaped)} vectors; at most {MAX_VECTORS} fit into a chunk of a prompt."
        )
    with np.errstate(over="ignore"):
        vectors = np.array(to_float32(shaped), np.float32, order="C")
    if not np.isfinite(vectors).all():
        raise ConfigError(f"{told} and holds NaN or infinity. Get the file again, or train anew.")
    return vectors


def _listed(names: Mapping[str, object]) -> str:
    shown = ", ".join(repr(name[:60]) for name in list(names)[:_MAX_SHOWN])
    return shown + (", ..." if len(names) > _MAX_SHOWN else "")
