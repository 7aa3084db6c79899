"""Added tokens: those of a tokenizer that its vocabulary and merges do not make.

Fine-tunes give a word of their own an id behind the vocabulary and a row of the token table. The
list has the form in which a tokenizer.json holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MAX_TOKENS = 100_000
_MAX_ID = 1 << 24
_MAX_CHARACTERS = 200


@dataclass(frozen=True)
class AddedToken:
    """One token: the text that it stands for, and how it is looked for in a prompt.

    Args:
        content: the text.
        id: its row in the token table.
        single_word: only where no letter or digit is beside it.
        lstrip, rstrip: it takes the white space on that side.
        normalized: looked for in the text in lower case, so that every spelling means it.
        special: as the start and the end token are.
    """

    content: str
    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no token; raises ValueError."""
        if not isinstance(self.content, str) or not 0 < len(self.content) <= _MAX_CHARACTERS:
            raise ValueError(f"{str(self.content)[:60]!r} is not the text of a token")
        try:
            self.content.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{ascii(self.content)[:60]} is not valid Unicode text") from None
        if type(self.id) is not int or not 0 <= self.id <= _MAX_ID:
            raise ValueError(f"{self.content!r} has the id {str(self.id)[:40]!r}")
        if not all(isinstance(getattr(self, name), bool) for name in _FLAGS):
            raise ValueError(f"{self.content!r} has a flag that is neither true nor false")

    @property
    def flags(self) -> dict[str, bool]:
        """Everything but content and id, by name."""
        return {name: getattr(self, name) for name in _FLAGS}

    def to_dict(self) -> dict[str, Any]:
        """Return the token as `parse_added_token` reads it."""
        return asdict(self)


_FLAGS = tuple(field.name for field in fields(AddedToken) if field.name not in ("content", "id"))


def parse_added_token(entry: object) -> AddedToken:
    """Read one token; keys beside its own are no part of it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(entry, Mapping) or not {"content", "id"} <= entry.keys():
        raise ValueError(f"{str(entry)[:60]!r} is not an added token")
    return AddedToken(**{f.name: entry[f.name] for f in fields(AddedToken) if f.name in entry})


def parse_added_tokens(content: object, vocab: Mapping[str, int]) -> list[AddedToken]:
    """Read a list of tokens and check it against a vocabulary.

    Raises:
        ValueError: it is none, or a token or an id has two meanings.
    """
    if not isinstance(content, list) or len(content) > MAX_TOKENS:
        raise ValueError(f"expected a list of at most {MAX_TOKENS} tokens")
    tokens = [parse_added_token(entry) for entry in content]
    check_added_tokens(tokens, vocab)
    return tokens


def check_added_tokens(tokens: Collection[AddedToken], vocab: Mapping[str, int]) -> None:
    """Raise ValueError if a token or an id has two meanings, the vocabulary's among them."""
    names = {number: token for token, number in vocab.items()}
    ids = dict(vocab)
    for token in tokens:
        if ids.setdefault(token.content, token.id) != token.id:
            raise ValueError(f"{token.content!r} has the ids {ids[token.content]} and {token.id}")
        if names.setdefault(token.id, token.content) != token.content:
            raise ValueError(f"{token.content!r} and {names[token.id]!r} have the id {token.id}")
