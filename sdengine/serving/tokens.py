"""Tokens of clients: who asks, by a secret of which only the hash is kept, and their quotas."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.errors import ConfigError, OutputError
from sdengine.storage.regular_file import open_regular
from sdengine.storage.whole_file import whole_file

LOCAL = "local"  # who asks where no tokens are needed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_FILE_BYTES = 1 << 20
_KEYS = {"name", "sha256", "max_queue", "images_per_hour"}


@dataclass(frozen=True)
class Token:
    """One client.

    Args:
        name: for logs and metrics.
        sha256: of its secret.
        max_queue: of its requests that may wait; None for the server's usual number.
        images_per_hour: that it may ask for, as many at once as it has not used; None for any.
    """

    name: str
    sha256: str
    max_queue: int | None = None
    images_per_hour: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            accepted = "letters, digits, '.', '_' and '-', at most 60"
            raise ConfigError.for_field("name", self.name, accepted)
        if not isinstance(self.sha256, str) or not _HASH.fullmatch(self.sha256):
            raise ConfigError.for_field("sha256", self.sha256, "64 hexadecimal digits")
        for name in ("max_queue", "images_per_hour"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError.for_field(name, value, "an integer from 1")


class Tokens:
    """The clients of a server.

    Args:
        tokens: of different names.
    """

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._by_hash = {token.sha256: token for token in tokens}
        self._by_name = {token.name: token for token in self._by_hash.values()}

    def __len__(self) -> int:
        return len(self._by_hash)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._by_hash.values())

    def named(self, name: str) -> Token | None:
        """Return the token of a name."""
        return self._by_name.get(name)

    def of(self, secret: str) -> Token | None:
        """Return whose secret this is, in a time that tells nothing of the others."""
        given = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        found = None
        for sha256, token in self._by_hash.items():
            if hmac.compare_digest(sha256, given):
                found = token
        return found


def read_tokens(path: str | os.PathLike[str]) -> list[Token]:
    """Read a file of tokens: a JSON list of objects with the fields of `Token`.

    Raises:
        ConfigError: it cannot be read, or an entry is not acceptable; the message names it.
    """
    shown = str(path)[:200]
    try:
        with open_regular(Path(path)) as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        entries = json.loads(content) if len(content) <= _MAX_FILE_BYTES else None
    except OSError as error:
        raise ConfigError(f"tokens: {shown!r} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        accepted = "a JSON list of objects, as `sdengine serve --add-token NAME` writes it"
        raise ConfigError.for_field("tokens", shown, accepted)
    if not entries:  # without any, the server would ask for none
        hint = "`sdengine serve --tokens FILE --add-token NAME` makes one."
        raise ConfigError.for_field("tokens", shown, "at least one token in it", hint)
    found: list[Token] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"name", "sha256"} <= set(entry) <= _KEYS:
            accepted = "an object of name, sha256 and perhaps max_queue, images_per_hour"
            raise ConfigError.for_field(f"tokens[{number}]", entry, accepted)
        token = Token(**entry)
        if any(token.name == one.name or token.sha256 == one.sha256 for one in found):
            raise ConfigError.for_field(f"tokens[{number}].name", token.name, "each name once")
        found.append(token)
    return found


def add_token(path: str | os.PathLike[str], name: str) -> str:
    """Add a token to a file, which is made where it is not there, and return its secret.

    The secret is written nowhere; the file can be read by its owner alone.

    Raises:
        ConfigError: the name is taken or not acceptable, or the file is no file of tokens.
        OutputError: the file cannot be written.
    """
    place = Path(path)
    known = read_tokens(place) if place.exists() else []
    if any(one.name == name for one in known):
        raise ConfigError.for_field("name", name, "a name that no token has yet")
    secret = f"sd-{secrets.token_urlsafe(32)}"
    token = Token(name, hashlib.sha256(secret.encode()).hexdigest())
    entries: list[dict[str, Any]] = [
        {k: v for k, v in vars(one).items() if v is not None} for one in (*known, token)
    ]
    try:
        with whole_file(place) as file:
            file.write(json.dumps(entries, indent=2).encode() + b"\n")
            os.chmod(file.name, 0o600)
    except OSError as error:
        raise OutputError(f"{str(place)[:200]!r} cannot be written: {error.strerror}.") from None
    return secret


class Allowance:
    """What a token may still ask for: it grows evenly up to an hour's worth.

    Args:
        per_hour: images.
    """

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._left = float(per_hour)
        self._seen = time.monotonic()

    def seconds_until(self, images: int) -> float | None:
        """Return after how long so many may be asked for, 0 for now, None for never."""
        now = time.monotonic()
        grown = (now - self._seen) * self._per_hour / 3600
        self._left, self._seen = min(self._left + grown, float(self._per_hour)), now
        if images > self._per_hour:
            return None
        return max(0.0, (images - self._left) * 3600 / self._per_hour)

    def use(self, images: int) -> None:
        """Take some of it."""
        self._left -= images
