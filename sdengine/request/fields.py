"""Request fields: what each accepts, and what the command, documents and other tools call it."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import operator
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sdengine.errors import ConfigError
from sdengine.inputs import depth, picture
from sdengine.inputs.recorded import Recorded

_KEY = "about"
_DOC_WIDTH = 100


class Check(Protocol):
    """A check of one value: returns it as a plain Python value, or raises naming the field."""

    @property
    def accepted(self) -> str:
        """The accepted values in words, as after "expected"."""
        ...

    @property
    def range(self) -> str:
        """The accepted values in short, such as "1 to 12"; empty where they are not a few."""
        ...

    def __call__(self, name: str, value: Any) -> Any:
        """Return the plain value; raises ConfigError."""
        ...


@dataclass(frozen=True)
class Text:
    """Valid Unicode text of a bounded length."""

    max_characters: int
    accepted: str = "text"
    range: str = ""

    def __call__(self, name: str, value: Any) -> str:
        """Return the text."""
        if not isinstance(value, str):
            raise ConfigError.for_field(name, value, self.accepted)
        if len(value) > self.max_characters:
            raise ConfigError(
                f"{name}: {len(value)} characters; at most {self.max_characters} are accepted."
            )
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError.for_field(name, value, "valid Unicode text") from None
        return str(value)


PROMPT = Text(100_000)


@dataclass(frozen=True)
class Name:
    """A name that another place knows the meaning of."""

    accepted: str
    range: str = ""

    def __call__(self, name: str, value: Any) -> str:
        """Return the name, not looked up."""
        if not isinstance(value, str):
            raise ConfigError.for_field(name, value, self.accepted)
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    @property
    def range(self) -> str:
        """The names."""
        return ", ".join(self.names)

    @property
    def accepted(self) -> str:
        """The names in words."""
        return f"one of {self.range}"

    def __call__(self, name: str, value: Any) -> str:
        """Return the name."""
        if not isinstance(value, str) or value not in self.names:
            raise ConfigError.for_field(name, value, self.accepted)
        return value


@dataclass(frozen=True)
class Integer:
    """An integer in a range; NumPy's count, booleans do not."""

    low: int
    high: int
    multiple: int = 1

    @property
    def accepted(self) -> str:
        """The range in words."""
        return f"an integer from {self.range}"

    @property
    def range(self) -> str:
        """Lowest and highest."""
        return f"{self.low} to {'2**64 - 1' if self.high == 2**64 - 1 else self.high}"

    def __call__(self, name: str, value: Any) -> int:
        """Return an int."""
        if isinstance(value, bool):
            raise ConfigError.for_field(name, value, self.accepted)
        try:
            integer = operator.index(value)
        except TypeError:
            raise ConfigError.for_field(name, value, self.accepted) from None
        if not self.low <= integer <= self.high:
            raise ConfigError.for_field(name, _Shown(integer), self.accepted)
        if integer % self.multiple:
            lower = integer - integer % self.multiple
            hint = f"Nearest: {lower} and {lower + self.multiple}."
            raise ConfigError.for_field(name, integer, f"a multiple of {self.multiple}", hint)
        return integer


@dataclass(frozen=True)
class Number:
    """A finite number in a range."""

    low: float
    high: float

    @property
    def accepted(self) -> str:
        """The range in words."""
        return f"a number from {self.range}"

    @property
    def range(self) -> str:
        """Lowest and highest."""
        return f"{self.low:g} to {self.high:g}"

    def __call__(self, name: str, value: Any) -> float:
        """Return a float."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigError.for_field(name, value, self.accepted)
        try:
            real = float(value)
        except OverflowError:
            real = math.inf
        if not (math.isfinite(real) and self.low <= real <= self.high):
            raise ConfigError.for_field(name, real, self.accepted)
        return real


@dataclass(frozen=True)
class Pair:
    """Two integers in a range."""

    low: int
    high: int

    @property
    def accepted(self) -> str:
        """The range in words."""
        return f"two integers from {self.range}"

    @property
    def range(self) -> str:
        """Lowest and highest of each."""
        return f"{self.low} to {self.high}"

    def __call__(self, name: str, value: Any) -> tuple[int, int]:
        """Return a tuple of ints."""
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ConfigError.for_field(name, value, "two integers")
        side = Integer(self.low, self.high)
        return side(name, value[0]), side(name, value[1])


@dataclass(frozen=True)
class Flag:
    """True or False; numbers are neither."""

    accepted: str = "True or False"
    range: str = ""

    def __call__(self, name: str, value: Any) -> bool:
        """Return a bool."""
        if not isinstance(value, bool):
            raise ConfigError.for_field(name, value, self.accepted)
        return value


@dataclass(frozen=True)
class Color:
    """A colour as in CSS: "#" and six hexadecimal digits."""

    accepted: str = 'a colour such as "#ffffff"'
    range: str = ""

    def __call__(self, name: str, value: Any) -> str:
        """Return the colour in small letters."""
        if not isinstance(value, str) or re.fullmatch("#[0-9a-fA-F]{6}", value) is None:
            raise ConfigError.for_field(name, value, self.accepted)
        return value.lower()


@dataclass(frozen=True)
class FileField:
    """What stands in a file or is given in its place, and is read at once.

    Args:
        accepted: for messages.
        read: reads it, given the field's name.
    """

    accepted: str
    read: Callable[[str, Any], Recorded]
    range: str = ""

    def __call__(self, name: str, value: Any) -> Recorded:
        """Return what was read."""
        return self.read(name, value)


PICTURE = FileField(picture.ACCEPTED, picture.read_picture)
DEPTH = FileField(depth.ACCEPTED, depth.read_depth)


@dataclass(frozen=True)
class Interval:
    """Two finite numbers in a range, the first no more than the second."""

    low: float
    high: float

    @property
    def accepted(self) -> str:
        """The range in words."""
        return f"two numbers from {self.range}, the first no more than the second"

    @property
    def range(self) -> str:
        """Lowest and highest of each."""
        return Number(self.low, self.high).range

    def __call__(self, name: str, value: Any) -> tuple[float, float]:
        """Return a tuple of floats."""
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ConfigError.for_field(name, value, self.accepted)
        end = Number(self.low, self.high)
        first, last = end(name, value[0]), end(name, value[1])
        if first > last:
            raise ConfigError.for_field(name, (first, last), self.accepted)
        return first, last


@dataclass(frozen=True)
class OneOrEach:
    """One value for all images, or a list or tuple of one an image."""

    check: Check

    @property
    def accepted(self) -> str:
        """What a single value accepts."""
        return self.check.accepted

    @property
    def range(self) -> str:
        """The same in short."""
        return self.check.range

    def __call__(self, name: str, value: Any) -> Any:
        """Return the value, or a tuple."""
        if isinstance(value, (list, tuple)):
            return tuple(self.check(name, one) for one in value)
        return self.check(name, value)


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """Everything about one field of a request but its type.

    Args:
        name: of the field.
        default: of `Request`; None where the field may be None.
        check: of its values.
        help: what it is, a phrase.
        labels: of the web UI's text; the first one is written, all are read.
        alias: diffusers' spelling, which `Engine.generate` takes too.
        option: of the command, where that is not the name.
    """

    name: str
    default: Any
    check: Check
    help: str
    labels: tuple[str, ...] = ()
    alias: str = ""
    option: str = ""

    def checked(self, value: Any) -> Any:
        """Return the plain value; None only where the default is None.

        Raises:
            ConfigError: it has the wrong type or is out of range.
        """
        return None if value is None and self.default is None else self.check(self.name, value)


def about(
    check: Check,
    help: str,
    labels: tuple[str, ...] = (),
    alias: str = "",
    option: str = "",
) -> dict[str, Any]:
    """Return the metadata of a dataclass's field; arguments as for `FieldInfo`."""
    made = functools.partial(
        FieldInfo, check=check, help=help, labels=labels, alias=alias, option=option
    )
    return {_KEY: made}


def field_infos(cls: type) -> dict[str, FieldInfo]:
    """Return what `about` was told of each field of a dataclass, by name; keywords come last."""
    return {
        field.name: field.metadata[_KEY](name=field.name, default=field.default)
        for field in sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))
    }


def as_arguments(infos: Iterable[FieldInfo], indent: int) -> str:
    """Write fields as the lines of a docstring's `Args:`, to be put behind that many spaces."""
    return ("\n" + " " * indent).join(
        line for info in infos for line in _lines(info, _DOC_WIDTH - indent)
    )


def _lines(info: FieldInfo, width: int) -> list[str]:
    shown = f" ({info.check.range})" if info.check.range else ""
    also = ", or a list of one an image" if isinstance(info.check, OneOrEach) else ""
    text = f"{info.name}{shown}: {info.help}{also}."
    return textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)


class _Shown:
    """Show an integer however long: Python refuses to print the longest ones in full."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __repr__(self) -> str:
        digits = self._value.bit_length() * 0.30103
        return repr(self._value) if digits < 100 else f"a number of about {digits:.0f} digits"
