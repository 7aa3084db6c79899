"""Tokenizer files: a checkpoint's BPE vocabulary in either of the two published forms, and what was
added to it.
"""

from __future__ import annotations

import json
from typing import Any

from sdengine.checkpoints.added_tokens import ADDED, COMBINED, TokenizerSettings
from sdengine.errors import CheckpointError
from sdengine.storage.checkpoint_folder import CheckpointFolder
from sdengine.storage.regular_file import open_regular

VOCAB, MERGES = "vocab.json", "merges.txt"
# What a tokenizer.json of CLIP does with a text, by the types of its steps.
_STEPS = {
    "normalizer": ("normalizers", ["NFC", "Replace", "Lowercase"]),
    "pre_tokenizer": ("pretokenizers", ["Split", "ByteLevel"]),
}
_HEADER = "#version: 0.2"
_MAX_BYTES = 64 << 20


def read_tokenizer(folder: CheckpointFolder, part: str = "tokenizer") -> dict[str, bytes]:
    """Return the contents of vocab.json, merges.txt, and of added_tokens.json if there are any.

    Recent transformers write all into one tokenizer.json; then they are taken out of it. The added
    tokens come in the form of that file, whichever file names them.

    Raises:
        CheckpointError: neither form is there, or it is not CLIP's tokenizer.
    """
    contents = _read_bpe(folder, part)
    vocab, _ = read_vocabulary(contents)
    settings = TokenizerSettings(folder, part)
    if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
        raise CheckpointError(f"{settings.place / VOCAB}: expected an object of token -> id.")
    if added := settings.added_tokens(vocab):
        listed = [token.to_dict() for token in added]
        contents[ADDED] = json.dumps(listed, ensure_ascii=False, indent=2).encode()
    return contents


def _read_bpe(folder: CheckpointFolder, part: str) -> dict[str, bytes]:
    files = [folder.find(f"{part}/{name}") for name in (VOCAB, MERGES)]
    if all(files) or not folder.find(f"{part}/{COMBINED}"):
        return {name: _read(folder, f"{part}/{name}") for name in (VOCAB, MERGES)}
    content = folder.json(f"{part}/{COMBINED}")
    model = content.get("model")
    place = folder.root / part / COMBINED
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{place}: not a BPE tokenizer, which CLIP's is.")
    _check_steps(place, content)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{place}: model.vocab or model.merges is missing.")
    lines = [_HEADER, *(_merge_line(place, merge) for merge in merges)]
    return {
        VOCAB: json.dumps(vocab, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        MERGES: ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"),
    }


def _check_steps(place: Any, content: dict[str, Any]) -> None:
    for name, (key, expected) in _STEPS.items():
        step = content.get(name)
        inner = step.get(key) if isinstance(step, dict) else None
        listed = inner if isinstance(inner, list) else [step]
        found = [str(one.get("type"))[:40] if isinstance(one, dict) else "none" for one in listed]
        if found != expected:
            raise CheckpointError(
                f"{place}: its {name} is {', '.join(found)}; CLIP's is {', '.join(expected)}."
            )


def read_vocabulary(files: dict[str, bytes]) -> tuple[object, list[bytes]]:
    """Return vocabulary and merges in a form that compares equal however it was written.

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
