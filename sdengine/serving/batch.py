"""Batch: rows of requests made one by one, each known by a hash of all that its pictures depend on.

What is done is what is there: a row whose files are whole is not made again, by whichever process
and on whichever run. So any number of processes may work in one folder and end at any moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdengine.engine import Engine
from sdengine.errors import ConfigError, DeviceLostError, OutputError, SdengineError
from sdengine.images.result import Result, Step
from sdengine.loading import load
from sdengine.pipeline.plan import Plan
from sdengine.request.keywords import RANDOM_SEED
from sdengine.serving.batch_rows import Row
from sdengine.serving.begun_rows import BegunRows
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.folder_pictures import FolderPictures
from sdengine.serving.payload import read_payload
from sdengine.storage.regular_file import open_regular

_NAME_DIGITS = 32  # of the hash: 128 bits
_MAX_ID_CHARACTERS = 1000
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class BatchJob:
    """What a process must know to make rows; its paths are absolute.

    Args:
        requests: the file of the rows.
        output: an existing folder.
        options: keywords of `sdengine.load`.
        folders: of `Catalogue`.
    """

    requests: Path
    output: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def opened(self) -> Iterator[RowMaker]:
        """Load the engine, and give what makes rows with it.

        Raises:
            SdengineError: an option is invalid, or the bundle cannot be run.
        """
        catalogue = Catalogue(self.folders)
        folder = self.folders.get
        with load(
            **self.options,
            # What prompts name by themselves.
            loras_folder=folder("lora"),
            hypernetworks_folder=folder("hypernetwork"),
            embeddings=folder("embedding"),
        ) as engine:
            try:
                yield RowMaker(engine, catalogue, self.requests.parent, self.output)
            finally:
                BegunRows(self.output).clear()


@dataclass(frozen=True)
class Record:
    """What became of a row.

    Args:
        number: of its line.
        status: "made", "kept" where its files were there already, or "error".
        content: what the manifest says of it.
    """

    number: int
    status: str
    content: Mapping[str, Any]

    @classmethod
    def of_error(cls, number: int, error: Exception, row_id: Any = None) -> Record:
        """Return that of a row that could not be made."""
        known = {} if row_id is None else {"id": row_id}
        message = str(error) if isinstance(error, SdengineError) else repr(error)
        told = {"type": type(error).__name__, "message": message[:2000]}
        return cls(number, "error", {"row": number, **known, "error": told})

    @property
    def num_files(self) -> int:
        """Its pictures."""
        return len(self.content.get("files", ()))


class RowMaker:
    """Make rows with one engine.

    Args:
        engine: loaded.
        catalogue: what names of files stand for.
        pictures: the folder that paths of pictures start from.
        output: an existing folder.
    """

    def __init__(self, engine: Engine, catalogue: Catalogue, pictures: Path, output: Path) -> None:
        self.engine = engine
        self.catalogue = catalogue
        self.pictures = FolderPictures(pictures)
        self.output = output
        self._begun = BegunRows(output)

    def make(self, row: Row) -> Record:
        """Make a row whose files are not there yet, and say what became of it.

        Raises:
            OutputError, DeviceLostError: nothing can be written, or run, whichever the row.
        """
        row_id = None
        try:
            fields = row.fields()
            row_id = _checked_id(fields.get("id"))
            return self._made(row.number, fields, row_id)
        except (OutputError, DeviceLostError):
            raise
        except Exception as error:  # of this row: the others go on
            return Record.of_error(row.number, error, row_id)

    def _made(self, number: int, fields: Mapping[str, Any], row_id: Any) -> Record:
        plan = self._planned(fields)
        digest = request_hash(plan, self.engine)
        names = output_names(digest, plan.request.batch_size)
        hashes = self._whole(names)
        status = "kept"
        if hashes is None:
            status = "made"
            with self._begun.begin(digest[:_NAME_DIGITS]):
                hashes = self._run(plan, digest, names)
        files = [
            {"file": name, "sha256": sha256, "seed": seed}
            for name, sha256, seed in zip(names, hashes, plan.request.seeds, strict=True)
        ]
        content: dict[str, Any] = {"row": number}
        if row_id is not None:
            content["id"] = row_id
        content |= {"hash": digest, "files": files}
        for name in ("warnings", "notes"):
            if told := getattr(plan, name):
                content[name] = list(told)
        return Record(number, status, {**content, "request": plan.request.to_dict()})

    def _planned(self, fields: Mapping[str, Any]) -> Plan:
        own = {name: value for name, value in fields.items() if name != "id"}
        keywords = read_payload(with_seeds(own, fields), self.catalogue, self.pictures)
        return self.engine.plan(self.engine.request(**keywords))

    def _run(self, plan: Plan, digest: str, names: list[str]) -> list[str]:
        # Called after each step, so that a signal is noticed there.
        result = self.engine.run(plan.request, progress=_nothing)
        path = self.output / f"{digest[:_NAME_DIGITS]}.png"
        _of_any_threads(result).save(path, overwrite=True)
        hashes = self._whole(names)
        if hashes is None:
            raise OutputError(f"{str(path)!r} was removed or changed as soon as it was written.")
        return hashes

    def _whole(self, names: list[str]) -> list[str] | None:
        """Return the SHA-256 of a row's files; None if one is not there, or not all of it."""
        hashes = []
        for name in names:
            try:
                with open_regular(self.output / name) as file:
                    content = file.read()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise OutputError(f"{name!r} cannot be read: {error.strerror}.") from None
            if not (content.startswith(_PNG_START) and content.endswith(_PNG_END)):
                return None
            hashes.append(hashlib.sha256(content).hexdigest())
        return hashes


def request_hash(plan: Plan, engine: Engine) -> str:
    """Return the SHA-256 of what a request's pictures depend on.

    That is the request with every default, with the hashes of all files that it or its prompts
    name, the bundle, and what computes it in which precision.
    """
    known = engine.provenance
    content = {
        "request": plan.request.to_dict(),
        "bundle": known.bundle_hash,
        "backend": known.backend,
        "precision": known.precision,
    }
    return hashlib.sha256(_canonical(content)).hexdigest()


def output_names(digest: str, count: int) -> list[str]:
    """Return the names of a row's files."""
    name = digest[:_NAME_DIGITS]
    return [f"{name}.png"] if count == 1 else [f"{name}-{n}.png" for n in range(1, count + 1)]


def with_seeds(fields: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's fields with seeds where they would be drawn: the same in every run.

    Args:
        fields: of the request.
        row: all that the seeds are made of, `id` included.
    """
    found = dict(fields)
    content = _canonical(row)

    def drawn(name: str, index: int = 0) -> int:
        digest = hashlib.sha256(b"%s %s %d" % (content, name.encode(), index)).digest()
        return int.from_bytes(digest[:4], "big")

    if found.get("seed") is None:
        found["seed"] = drawn("seed")
    if found.get("variation_strength") and found.get("variation_seed") is None:
        found["variation_seed"] = drawn("variation_seed")
    for name in ("seed", "variation_seed"):
        value = found.get(name)
        if isinstance(value, list):
            found[name] = [
                drawn(name, index) if _is_random(one) else one for index, one in enumerate(value)
            ]
        elif _is_random(value):
            found[name] = drawn(name)
    return found


def _is_random(seed: Any) -> bool:
    return type(seed) is int and seed == RANDOM_SEED


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _checked_id(value: Any) -> Any:
    is_text = isinstance(value, str) and len(value) <= _MAX_ID_CHARACTERS
    if value is not None and not is_text and type(value) is not int:
        accepted = f"an integer, or a text of at most {_MAX_ID_CHARACTERS} characters"
        raise ConfigError.for_field("id", value, accepted)
    return value


def _of_any_threads(result: Result) -> Result:
    """Return a result whose files do not say how many threads made it, where that is all one.

    So a row has the same bytes in one process and in many that share the processor.
    """
    if result.provenance.backend != "native":
        return result
    return replace(result, provenance=replace(result.provenance, threads=None))


def _nothing(step: Step) -> None:
    """Do nothing."""
