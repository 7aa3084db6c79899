"""Control options: `--control NAME=FILE,...` of the command, and what a recorded image adds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.control import CONTROL_FIELDS, Control
from sdengine.request.fields import Flag
from sdengine.request.preprocessors import PREPROCESSORS

CONTROL_METAVAR = "NAME=FILE[,KEY=VALUE]..."
_OPTION = re.compile(r"([A-Za-z_]+)=(.*)", re.DOTALL)
_FLAGS = {"true": True, "false": False}


def parse_control(text: str) -> dict[str, Any]:
    """Return the fields of a control that an option's value gives, not yet checked.

    Raises:
        ConfigError: it has another form, or names a field that a control does not have.
    """
    name, is_there, rest = text.partition("=")
    found: dict[str, Any] = {}
    while "," in rest:
        before, _, last = rest.rpartition(",")
        option = _OPTION.fullmatch(last.strip())
        if option is None:  # part of a file's name
            break
        key, value = option.groups()
        if key not in _READERS:
            raise ConfigError.for_field("--control", last, f"keys {', '.join(_READERS)}")
        place = found.setdefault(_OPTIONS, {}) if key in _PREPROCESS_READERS else found
        if key in place:
            raise ConfigError.for_field("--control", text, f"{key} once")
        place[key] = _READERS[key](last, value)
        rest = before
    if not is_there or not name or not rest:
        raise ConfigError.for_field("--control", text, "NAME=FILE, such as canny=edges.png")
    return {"network": name, "image": rest, **found}


def merged_controls(
    recorded: Iterable[Control], given: Sequence[Mapping[str, Any]]
) -> list[Control | dict[str, Any]]:
    """Return the controls of a recorded image, with the pictures and options that are given.

    The first one given of a name goes with the first one recorded of it, and so on; others are
    added. Those recorded that nobody gives a picture of are refused when the request is run.
    """
    left = list(given)
    found: list[Control | dict[str, Any]] = []
    for control in recorded:
        own = next((one for one in left if one["network"] == control.network), None)
        if own is None:
            found.append(control)
        else:
            left = [one for one in left if one is not own]
            found.append({**{name: getattr(control, name) for name in CONTROL_FIELDS}, **own})
    return [*found, *map(dict, left)]


def _number(option: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError.for_field("--control", option, "a number behind =") from None


def _weights(option: str, value: str) -> list[float]:
    return [_number(option, one) for one in value.split("/")]


def _flag(option: str, value: str) -> bool:
    if value.lower() not in _FLAGS:
        raise ConfigError.for_field("--control", option, "true or false behind =")
    return _FLAGS[value.lower()]


def _word(option: str, value: str) -> str:
    return value


def _value(option: str, value: str) -> int | float:
    number = _number(option, value)
    return int(number) if number.is_integer() else number


_OPTIONS = "preprocess_options"
_Readers = Mapping[str, Callable[[str, str], Any]]
_PREPROCESS_READERS: _Readers = {
    name: _flag if isinstance(info.check, Flag) else _value
    for one in PREPROCESSORS.values()
    if one.in_requests
    for name, info in one.options.items()
    if name != "background"
}
_READERS: _Readers = {
    "scale": _number,
    "start": _number,
    "end": _number,
    "mode": _word,
    "layer_weights": _weights,
    "resize": _word,
    "masked": _flag,
    "control_type": _word,
    "preprocess": _word,
    **_PREPROCESS_READERS,
}
CONTROL_HELP = (
    "steer by a picture: the control's name in the bundle, a file, and any of its options, as in "
    "canny=edges.png,scale=0.8,end=0.6; repeatable; keys are "
    f"{', '.join(name for name in _READERS if name not in _PREPROCESS_READERS)}, and with "
    f"preprocess {', '.join(_PREPROCESS_READERS)}"
)
