"""Export cache: ONNX files by what they were made from, so that nothing is exported twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdengine.bundle.manifest import FileEntry
from sdengine.bundle.writer import list_files
from sdengine.errors import BundleError, OutputError
from sdengine.storage.cache_place import (
    CACHE_VARIABLE,
    cache_dir,
    cache_limit_bytes,
    say_not_kept,
)
from sdengine.storage.content_hash import sha256_of
from sdengine.storage.file_lock import Holders, asking, hold
from sdengine.storage.regular_file import open_regular
from sdengine.storage.temporary import (
    abandoned,
    remove_abandoned,
    size_of,
    temporary_file,
    temporary_folder,
)
from sdengine.storage.whole_file import whole_file
from sdengine.storage.whole_folder import give_usual_modes

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
        kept: which of the two; where the user's cannot be written it is the other all the same.
        beside: the other's place; the system's temporary folder may be in memory.
    """
    if kept:
        with contextlib.ExitStack() as held:
            cache = OnnxCache(held=held)
            reason = cache.why_not_writable()
            if not reason:
                yield cache
        if not reason:
            cache.make_room(0)
            return
        say_not_kept("exported networks", reason)
    with temporary_folder(beside) as folder:
        yield OnnxCache(folder)


def make_key(content: dict[str, Any]) -> str:
    """Return the name of the entry for some content, made by this release's code."""
    text = json.dumps({**content, "code": _code_sha256()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class OnnxCache:
    """Keep folders by key; several processes may use one cache.

    Args:
        folder: of the cache, None for the user's; it is made when missing.
        held: until when entries that were asked for stay; None where no others write meanwhile.
    """

    def __init__(
        self, folder: Path | None = None, held: contextlib.ExitStack | None = None
    ) -> None:
        self._folder = folder
        self._held = held
        self._checked: set[str] = set()  # in this process, whose weights may have gigabytes

    @property
    def folder(self) -> Path:
        """Return the cache's place.

        Raises:
            OSError: the user has none.
        """
        return cache_dir("onnx") if self._folder is None else self._folder

    def why_not_writable(self) -> str:
        """Return why nothing can be kept; nothing where it can."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary_file(self.folder / RECORD_FILE):
                return ""
        except OSError as error:
            return error.strerror or str(error)

    def find(self, key: str) -> Entry | None:
        """Return an entry whose every file is as it was written; remove a damaged one.

        Files are hashed the first time that this object is asked for the entry.
        """
        try:
            folder = self.folder / key
        except OSError:
            return None
        if not folder.is_dir():
            return None
        self._hold(folder)
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
            self.make_room(needed_bytes)
            with temporary_folder(place) as folder:
                record = _with_files(fill(folder), folder)
                _write(record, folder)
                give_usual_modes(folder)
                # Where another process was quicker its folder has the same content.
                with contextlib.suppress(OSError):
                    folder.rename(place)
        self._hold(place)
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
        with self._errors():
            remove_abandoned(entry.folder)
            with temporary_file(entry.folder / graph) as (temporary, file):
                file.close()
                error = add(temporary)
                temporary.replace(entry.folder / graph)
            give_usual_modes(entry.folder)
            listed = FileEntry(
                path=graph,
                size_bytes=(entry.folder / graph).stat().st_size,
                sha256=sha256_of(entry.folder / graph),
            )
            others = [one for one in entry.record.files if one.path != graph]
            record = entry.record.model_copy(
                update={
                    "files": [*others, listed],
                    "max_error": {**entry.record.max_error, graph: error},
                }
            )
            _write(record, entry.folder)
        return Entry(entry.folder, record)

    def entries(self) -> list[Entry]:
        """Return all entries, the ones used last first; files are not looked at."""
        found: list[tuple[float, Entry]] = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                record = None if folder.name.startswith(".") else _read(folder)
                if record is not None:
                    with contextlib.suppress(OSError):  # another process may remove it meanwhile
                        found.append((folder.stat().st_mtime, Entry(folder, record)))
        return [entry for _, entry in sorted(found, key=lambda one: -one[0])]

    def leftovers(self) -> list[Path]:
        """Return what exports left that were killed."""
        with contextlib.suppress(OSError):
            places = [self.folder, *(entry.folder for entry in self.entries())]
            return [path for place in places for path in abandoned(place)]
        return []

    def clear(self) -> int:
        """Remove every entry that no process uses, and leftovers; return how many bytes."""
        size = 0
        with contextlib.suppress(OSError):
            for place in (self.folder, *(entry.folder for entry in self.entries())):
                size += remove_abandoned(place)
            for folder in list(self.folder.iterdir()):
                if folder.is_dir() and not folder.is_symlink():
                    size += _remove_unused(folder)
        return size

    def make_room(self, needed_bytes: int) -> None:
        """Remove leftovers, then entries from the one used longest ago, none that is in use.

        Args:
            needed_bytes: of what is to be written. It is written also where it exceeds the limit,
                because a build cannot do without.
        """
        limit = cache_limit_bytes()
        remove_abandoned(self.folder)
        entries = self.entries()
        total = needed_bytes + sum(entry.size_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= limit:
                break
            if _remove_unused(entry.folder):
                total -= entry.size_bytes

    def _hold(self, folder: Path) -> None:
        """Let no process remove an entry until the cache is no longer open."""
        if self._held is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                self._held.callback(os.close, descriptor)
                hold(descriptor)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"the cache {self.folder} cannot be written: {error}. {CACHE_VARIABLE} names "
                "another folder."
            ) from error


def _remove_unused(folder: Path) -> int:
    size = size_of(folder)
    with contextlib.suppress(OSError), asking(folder) as holders:
        if holders is not Holders.SOMEBODY:
            shutil.rmtree(folder, ignore_errors=True)
            return size
    return 0


@functools.cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> Record | None:
    try:
        with open_regular(folder / RECORD_FILE) as file:
            return Record.model_validate_json(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValidationError):
        return None


def _write(record: Record, folder: Path) -> None:
    with whole_file(folder / RECORD_FILE) as file:
        file.write(f"{record.model_dump_json(indent=2)}\n".encode())


def _with_files(record: Record, folder: Path) -> Record:
    return record.model_copy(update={"files": list_files(folder)})


def _is_intact(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    try:
        return path.stat().st_size == entry.size_bytes and sha256_of(path) == entry.sha256
    except (OSError, BundleError):
        return False
