"""Tokenizer files: a checkpoint's BPE vocabulary, in either of the two published forms."""

from __future__ import annotations

import json
from typing import Any

from sdengine.checkpoints.folder import CheckpointFolder
from sdengine.errors import CheckpointError
from sdengine.storage.regular_file import open_regular

VOCAB, MERGES, COMBINED = "vocab.json", "merges.txt", "tokenizer.json"
_HEADER = "#version: 0.2"
_MAX_BYTES = 64 << 20


def read_tokenizer(folder: CheckpointFolder, part: str = "tokenizer") -> dict[str, bytes]:
    """Return the contents of vocab.json and merges.txt.

    Recent transformers write both into one tokenizer.json; then they are taken out of it.

    Raises:
        CheckpointError: neither form is there, or it is not a BPE vocabulary.
    """
    files = [folder.find(f"{part}/{name}") for name in (VOCAB, MERGES)]
    if all(files) or not folder.find(f"{part}/{COMBINED}"):
        return {name: _read(folder, f"{part}/{name}") for name in (VOCAB, MERGES)}
    model = folder.json(f"{part}/{COMBINED}").get("model")
    place = folder.root / part / COMBINED
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{place}: not a BPE tokenizer, which CLIP's is.")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{place}: model.vocab or model.merges is missing.")
    lines = [_HEADER, *(_merge_line(place, merge) for merge in merges)]
    return {
        VOCAB: json.dumps(vocab, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        MERGES: ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"),
    }


def read_vocabulary(files: dict[str, bytes]) -> tuple[object, list[bytes]]:
    """Return a tokenizer's content in a form that compares equal however it was written.

    Raises:
        CheckpointError: vocab.json is not JSON.
    """
    try:
        return json.loads(files[VOCAB]), files[MERGES].split()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{VOCAB} is not valid JSON: {str(error)[:120]}.") from None


def _read(folder: CheckpointFolder, name: str) -> bytes:
    path = folder.file(name)
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    if len(content) > _MAX_BYTES:
        raise CheckpointError(f"{path}: larger than {_MAX_BYTES} bytes.")
    return content


def _merge_line(place: Any, merge: Any) -> str:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
        raise CheckpointError(f"{place}: model.merges holds {str(merge)[:60]!r}, not a pair.")
    return " ".join(pair)
