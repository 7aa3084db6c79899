"""Added tokens of a checkpoint's tokenizer, from whichever of its files name them.

Source: the files that transformers writes beside a vocabulary: added_tokens.json and
special_tokens_map.json of its first releases, `added_tokens_decoder` in tokenizer_config.json of
later ones, `added_tokens` in tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdengine.errors import CheckpointError
from sdengine.prompt.added_tokens import AddedToken, check_added_tokens, parse_added_token
from sdengine.prompt.tokenizer import BOS_TOKEN, EOS_TOKEN
from sdengine.storage.checkpoint_folder import CheckpointFolder

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
COMBINED = "tokenizer.json"
_DECODER = "added_tokens_decoder"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_CLASSES = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)


class TokenizerSettings:
    """Everything that the small files of a tokenizer say.

    Args:
        folder: the checkpoint.
        part: the tokenizer's subfolder.

    Raises:
        CheckpointError: they are damaged, or of a tokenizer that is not CLIP's.
    """

    def __init__(self, folder: CheckpointFolder, part: str) -> None:
        self._folder, self._part = folder, part
        self.place = folder.root / part
        self._config, self._map = self._json(CONFIG), self._json(SPECIAL)
        kind = self._config.get("tokenizer_class")
        if kind is not None and kind not in _CLASSES:
            raise CheckpointError(
                f"{self.place / CONFIG}: tokenizer_class is {str(kind)[:80]!r}; the text encoders "
                f"of Stable Diffusion read {_CLASSES[0]}'s tokens."
            )
        for name, own in (("bos_token", BOS_TOKEN), ("eos_token", EOS_TOKEN)):
            if (found := self._named(name)) not in (None, own):
                raise CheckpointError(f"{self.place}: {name} is {found!r}; expected {own!r}.")

    @property
    def pad_token(self) -> str:
        """What fills a prompt up."""
        return self._named("pad_token") or EOS_TOKEN

    @property
    def max_length(self) -> int | None:
        """The most tokens of a prompt, with start and end; None where nothing is said."""
        length = self._config.get("model_max_length")
        if length is None:
            return None
        if isinstance(length, bool) or not isinstance(length, (int, float)) or not length >= 3:
            raise CheckpointError(
                f"{self.place / CONFIG}: model_max_length is {str(length)[:40]!r}; expected a "
                "number from 3."
            )
        return int(min(length, 1 << 20))  # no limit is written as 1e30

    def added_tokens(self, vocab: Mapping[str, int]) -> list[AddedToken]:
        """Return the tokens that the vocabulary does not hold or that are looked for as a whole.

        Those that every CLIP tokenizer has, start, end and padding, are not among them.

        Args:
            vocab: of vocab.json.

        Raises:
            CheckpointError: a file is damaged, or a token or an id has two meanings.
        """
        specials = {token["content"]: token for token in self._specials()}
        found: dict[str, AddedToken] = {}
        try:
            for token in self._numbered(specials):
                known = found.setdefault(token.content, token)
                if known.id != token.id:
                    raise ValueError(f"{token.content!r} has the ids {known.id} and {token.id}")
            check_added_tokens(found.values(), vocab)
            for content, special in specials.items():
                if content not in found:
                    last = max([*vocab.values(), *(token.id for token in found.values())])
                    number = vocab.get(content, last + 1)
                    exact = {"normalized": False, **special}
                    found[content] = parse_added_token({**exact, "id": number})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self.place}: {error}.") from None
        usual = {BOS_TOKEN, EOS_TOKEN}
        if self.pad_token in vocab:
            usual.add(self.pad_token)
        return sorted((t for t in found.values() if t.content not in usual), key=lambda t: t.id)

    def _numbered(self, specials: Mapping[str, dict[str, Any]]) -> Iterator[AddedToken]:
        """Yield the tokens whose ids are written; the file that says most about them comes first.

        Raises:
            ValueError: an entry is no token.
        """
        combined = self._json(COMBINED).get("added_tokens", [])
        decoder = self._config.get(_DECODER, {})
        plain = self._json(ADDED)
        if not isinstance(combined, list) or not isinstance(decoder, dict):
            raise ValueError("its added tokens are no list")
        yield from map(parse_added_token, combined)
        for number, entry in decoder.items():
            if not isinstance(entry, dict) or not number.isdecimal() or len(number) > 9:
                raise ValueError(f"{_DECODER} holds {str(entry)[:60]!r} under {number[:20]!r}")
            yield parse_added_token({**entry, "id": int(number)})
        for content, number in plain.items():
            flags = specials.get(content, {"content": content})
            yield parse_added_token({**flags, "id": number})

    def _specials(self) -> Iterator[dict[str, Any]]:
        """Yield the special tokens that the small files name, in the order in which they count."""
        for name in ("unk_token", "pad_token"):
            if token := self._entry(name):
                yield _special(token)
        for name in _LISTS:
            listed = self._entry(name) or ()
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            if not isinstance(listed, (list, tuple)):
                raise CheckpointError(f"{self.place}: {name} is no list of tokens.")
            yield from map(_special, listed)

    def _entry(self, name: str) -> Any:
        """Return what counts of the two files; the map is older than a configuration with ids."""
        if _DECODER not in self._config and self._map.get(name) is not None:
            return self._map[name]
        return self._config.get(name)

    def _named(self, name: str) -> str | None:
        for file, content in ((CONFIG, self._config), (SPECIAL, self._map)):
            token = _text(content.get(name))
            if token is not None and not (isinstance(token, str) and 0 < len(token) <= 200):
                raise CheckpointError(f"{self.place / file}: {name} is not a token.")
        found = _text(self._entry(name))
        return None if found is None else str(found)

    def _json(self, name: str) -> dict[str, Any]:
        path = f"{self._part}/{name}"
        return self._folder.json(path) if self._folder.find(path) else {}


def _text(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _special(token: Any) -> dict[str, Any]:
    given = token if isinstance(token, dict) else {"content": token}
    return {**given, "content": str(given.get("content")), "special": True}
