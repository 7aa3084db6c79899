"""Export cache: ONNX files by what they were made from, so that nothing is exported twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdengine.bundle.manifest import FileEntry
from sdengine.bundle.reader import sha256_of
from sdengine.bundle.writer import list_files
from sdengine.errors import BundleError, OutputError
from sdengine.storage.cache_files import CACHE_VARIABLE, cache_dir

RECORD_FILE = "record.json"
_MAX_RECORD_BYTES = 1 << 20
_PACKAGE = Path(__file__).parent.parent
# What decides how a graph looks; a change of any of it makes other entries.
_CODE = ("models/*.py", "export/trace.py", "export/weights.py")
_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """Say what an entry holds.

    Args:
        checkpoint: name of what it was made from, for people.
        network, precision: as in the graph's contract.
        files: of the entry, the record left out.
        max_error: by graph, the largest difference from the module relative to the largest output;
            None where the two were not compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, Field(max_length=200)]
    network: Annotated[str, Field(max_length=40)]
    precision: Annotated[str, Field(max_length=40)]
    files: list[FileEntry] = Field(default_factory=list, max_length=1000)
    max_error: dict[str, _Error | None] = Field(max_length=1000)


@dataclass(frozen=True)
class Entry:
    """A folder of the cache and what it holds."""

    folder: Path
    record: Record

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.record.files)


@contextmanager
def open_cache(kept: bool, beside: Path) -> Iterator[OnnxCache]:
    """Give the user's cache, or one that is gone afterwards.

    Args:
        kept: which of the two.
        beside: the other's place; the system's temporary folder may be in memory.
    """
    if kept:
        yield OnnxCache()
        return
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder:
        yield OnnxCache(Path(folder))


def make_key(content: dict[str, Any]) -> str:
    """Return the name of the entry for some content, made by this release's code."""
    text = json.dumps({**content, "code": _code_sha256()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class OnnxCache:
    """Keep folders by key; several processes may use one cache.

    Args:
        folder: of the cache; it is made when missing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_dir("onnx") if folder is None else folder
        self._checked: set[str] = set()  # in this process, whose weights may have gigabytes

    def find(self, key: str) -> Entry | None:
        """Return an entry whose every file is as it was written; remove a damaged one.

        Files are hashed the first time that this object is asked for the entry.
        """
        folder = self.folder / key
        if not folder.is_dir():
            return None
        record = _read(folder)
        if record is not None and (
            key in self._checked or all(_is_intact(folder, file) for file in record.files)
        ):
            self._checked.add(key)
            with contextlib.suppress(OSError):
                os.utime(folder)  # the time of the last use
            return Entry(folder, record)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def add(self, key: str, fill: Callable[[Path], Record], needed_bytes: int) -> Entry:
        """Write an entry, whole or not at all.

        Args:
            key: under which it will be found.
            fill: writes the files into the folder that it is given and returns the record, whose
                `files` are replaced by what is found there.
            needed_bytes: how large the files will be, about.

        Raises:
            OutputError: the folder cannot be written, or the disk is too small.
        """
        place = self.folder / key
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self.folder).free
            if free_bytes < needed_bytes:
                raise OutputError(
                    f"exporting needs about {needed_bytes / 1e9:.1f} GB in {self.folder}, where "
                    f"{free_bytes / 1e9:.1f} GB are free. `sdengine cache --clear` makes room, and "
                    f"{CACHE_VARIABLE} names another folder."
                )
            folder = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
            try:
                record = _with_files(fill(folder), folder)
                _write(record, folder)
                folder.chmod(0o755)
                # Where another process was quicker its folder has the same content.
                with contextlib.suppress(OSError):
                    folder.rename(place)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self._checked.add(key)
        return Entry(place, record)

    def extend(self, entry: Entry, graph: str, add: Callable[[Path], float | None]) -> Entry:
        """Write one more graph into an entry, beside the weights that it shares.

        Args:
            entry: as it is now.
            graph: the file's name.
            add: writes the graph under the path that it is given and returns its error.

        Raises:
            OutputError: the folder cannot be written.
        """
        temporary = entry.folder / f".{os.getpid()}.{graph}"
        with self._errors():
            try:
                error = add(temporary)
                temporary.replace(entry.folder / graph)
            finally:
                temporary.unlink(missing_ok=True)
            file = FileEntry(
                path=graph,
                size_bytes=(entry.folder / graph).stat().st_size,
                sha256=sha256_of(entry.folder / graph),
            )
            others = [one for one in entry.record.files if one.path != graph]
            record = entry.record.model_copy(
                update={
                    "files": [*others, file],
                    "max_error": {**entry.record.max_error, graph: error},
                }
            )
            _write(record, entry.folder)
        return Entry(entry.folder, record)

    def entries(self) -> list[Entry]:
        """Return all entries, the ones used last first; files are not looked at."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                record = None if folder.name.startswith(".") else _read(folder)
                if record is not None:
                    found.append(Entry(folder, record))
        return sorted(found, key=lambda entry: -entry.folder.stat().st_mtime)

    def clear(self) -> int:
        """Remove every entry and what interrupted exports left; return how many bytes."""
        size = 0
        with contextlib.suppress(FileNotFoundError):
            for folder in list(self.folder.iterdir()):
                if folder.is_dir() and not folder.is_symlink():
                    size += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                    shutil.rmtree(folder, ignore_errors=True)
        return size

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"the cache {self.folder} cannot be written: {error}. {CACHE_VARIABLE} names "
                "another folder."
            ) from error


@functools.cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> Record | None:
    try:
        with (folder / RECORD_FILE).open("rb") as file:
            return Record.model_validate_json(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValidationError):
        return None


def _write(record: Record, folder: Path) -> None:
    temporary = folder / f".{os.getpid()}.{RECORD_FILE}"
    temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD_FILE)


def _with_files(record: Record, folder: Path) -> Record:
    return record.model_copy(update={"files": list_files(folder)})


def _is_intact(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    try:
        return path.stat().st_size == entry.size_bytes and sha256_of(path) == entry.sha256
    except (OSError, BundleError):
        return False
