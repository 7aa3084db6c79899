"""Request options: the fields of a request as options of a command, made from their list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from sdengine.cli.control_options import CONTROL_HELP, CONTROL_METAVAR, parse_control
from sdengine.cli.embedding_options import EMBEDDING_HELP, EMBEDDING_METAVAR
from sdengine.cli.ip_adapter_options import (
    IP_ADAPTER_HELP,
    IP_ADAPTER_METAVAR,
    parse_ip_adapter,
)
from sdengine.cli.lora_options import (
    HYPERNETWORK_HELP,
    HYPERNETWORK_METAVAR,
    LORA_HELP,
    LORA_METAVAR,
    parse_hypernetworks,
    parse_loras,
)
from sdengine.cli.model_options import MODEL_HELP, MODEL_METAVAR, parse_model
from sdengine.cli.region_options import REGION_HELP, REGION_METAVAR, parse_region
from sdengine.errors import ConfigError
from sdengine.request.control import Controls
from sdengine.request.embeddings import Embeddings
from sdengine.request.fields import (
    Choice,
    FieldInfo,
    Flag,
    Integer,
    Interval,
    Number,
    OneOrEach,
    Pair,
)
from sdengine.request.ip_adapters import IPAdapters
from sdengine.request.keywords import IMAGES_PER_PROMPT, WEB_UI_CLIP_SKIP
from sdengine.request.picture_fields import FILES
from sdengine.request.region import Regions
from sdengine.request.request import FIELDS, nearest_field
from sdengine.request.weight_fields import Hypernetworks, Loras, Model

_SHORT = {"negative_prompt": "-n"}
_METAVARS = {
    "embeddings": EMBEDDING_METAVAR,
    "regions": REGION_METAVAR,
    "loras": LORA_METAVAR,
    "model": MODEL_METAVAR,
    "hypernetworks": HYPERNETWORK_METAVAR,
    "crop": "LEFTxTOP",
    "background": "#RRGGBB",
    "outpaint": "SIDE=N,...",
    "hires": "2x|WxH",
    **dict.fromkeys(FILES, "FILE"),
}
# Checks of what an option is given once for each of, and its help.
_LISTS = {
    Controls: CONTROL_HELP,
    Embeddings: EMBEDDING_HELP,
    IPAdapters: IP_ADAPTER_HELP,
    Loras: LORA_HELP,
    Model: MODEL_HELP,
    Hypernetworks: HYPERNETWORK_HELP,
    Regions: REGION_HELP,
}
# One option for two fields.
_SEED_SIZE = "seed_size"
_SEED_SIDES = ("seed_width", "seed_height")
_CLIP_SKIP = FIELDS["clip_skip"]
# What a request itself does not take, because it records what was drawn.
_MORE = {"seed": "; -1 is random", "variation_seed": "; -1 is random"}


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a request, in the place of its parameter `fields`.

    That parameter gets those that were given, as keywords of `Engine.request`. An option has the
    field's name, its shorter name for commands, and diffusers' name.
    """
    # The command's annotations are texts, which must be looked up where it was written.
    signature = inspect.signature(command, eval_str=True)
    own, made = list(signature.parameters.values()), list(_parameters())
    place = [one.name for one in own].index("fields")

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {one.name: values.pop(one.name) for one in made}
        command(**values, fields=_fields(options))

    parameters = [*own[:place], *made, *own[place + 1 :]]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameters() -> Iterator[inspect.Parameter]:
    for info in FIELDS.values():
        if info.name != "prompt" and info.name not in _SEED_SIDES:
            alias = info.alias if info.alias != IMAGES_PER_PROMPT else ""
            # The plural of an embedding or a LoRA is a folder of them, which is no field.
            name = "" if isinstance(info.check, Embeddings | Hypernetworks | Loras) else info.name
            spellings = [one for one in (info.option, name, alias) if one]
            yield _parameter(info.name, _kind(info), spellings, _help(info), _metavar(info))
    each = "images of each prompt, one after the other"
    yield _parameter(IMAGES_PER_PROMPT, int, [IMAGES_PER_PROMPT], each)
    counted = f"clip_skip as web UIs count it, from the last layer ({_CLIP_SKIP.check.range})"
    yield _parameter(WEB_UI_CLIP_SKIP, int, [WEB_UI_CLIP_SKIP], counted)
    yield _parameter(_SEED_SIZE, str, [_SEED_SIZE], "take the noise of this image size", "WxH")


def _parameter(
    name: str, kind: type, spellings: list[str], help: str, metavar: str | None = None
) -> inspect.Parameter:
    names = [f"--{one.replace('_', '-')}" for one in spellings]
    names += [_SHORT[name]] if name in _SHORT else []
    option = typer.Option(*names, metavar=metavar, help=f"{help[0].upper()}{help[1:]}.")
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _kind(info: FieldInfo) -> type:
    check = info.check.check if isinstance(info.check, OneOrEach) else info.check
    kinds: dict[type, type] = {Integer: int, Number: float, Flag: bool}
    kinds |= dict.fromkeys(_LISTS, list[str])
    return kinds.get(type(check), str)


def _help(info: FieldInfo) -> str:
    if type(info.check) in _LISTS:
        return _LISTS[type(info.check)]
    shown = info.help + _MORE.get(info.name, "")
    return shown + (f" ({info.check.range})" if info.check.range else "")


def _metavar(info: FieldInfo) -> str | None:
    if isinstance(info.check, Pair):
        return _METAVARS.get(info.name, "WxH")
    if isinstance(info.check, Controls):
        return CONTROL_METAVAR
    if isinstance(info.check, IPAdapters):
        return IP_ADAPTER_METAVAR
    if info.name in _METAVARS:
        return _METAVARS[info.name]
    if isinstance(info.check, Interval):
        return "LO,HI"
    return "TEXT" if isinstance(info.check, (OneOrEach, Choice)) and _kind(info) is str else None


def near_option(wrong: str) -> str | None:
    """Return the option that a wrong one is probably meant for, by its field's other names."""
    field = nearest_field(wrong.lstrip("-"))
    return f"--{(FIELDS[field].option or field).replace('_', '-')}" if field else None


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `Engine.request` that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    if controls := given.pop("controls", None):
        given["controls"] = [parse_control(one) for one in controls]
    if adapters := given.pop("ip_adapters", None):
        given["ip_adapters"] = [parse_ip_adapter(one) for one in adapters]
    if regions := given.pop("regions", None):
        given["regions"] = [parse_region(one) for one in regions]
    if embeddings := given.pop("embeddings", None):
        given["embeddings"] = embeddings
    if loras := given.pop("loras", None):
        given["loras"] = parse_loras(loras)
    if hypernetworks := given.pop("hypernetworks", None):
        given["hypernetworks"] = parse_hypernetworks(hypernetworks)
    if model := given.pop("model", None):
        given["model"] = parse_model(model)
    for name in given.keys() & {_SEED_SIZE, *_PAIRS}:
        given[name] = _pair(name.replace("_", "-"), given[name])
    if _SEED_SIZE in given:
        given |= zip(_SEED_SIDES, given.pop(_SEED_SIZE), strict=True)
    for name in given.keys() & set(_INTERVALS):
        given[name] = _interval(name.replace("_", "-"), given[name])
    if "outpaint" in given:
        given["outpaint"] = _sides("outpaint", given["outpaint"])
    return given


_PAIRS = tuple(info.name for info in FIELDS.values() if isinstance(info.check, Pair))
_INTERVALS = tuple(info.name for info in FIELDS.values() if isinstance(info.check, Interval))


def _pair(option: str, value: str) -> tuple[int, int]:
    first, _, second = value.lower().partition("x")
    try:
        return int(first), int(second)
    except ValueError:
        raise ConfigError.for_field(option, value, "two integers such as 512x768") from None


def _interval(option: str, value: str) -> tuple[float, float]:
    first, _, last = value.partition(",")
    try:
        return float(first), float(last)
    except ValueError:
        raise ConfigError.for_field(option, value, "two numbers such as 0.2,0.8") from None


def _sides(option: str, value: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in value.split(","):
        side, _, pixels = part.strip().partition("=")
        try:
            number = int(pixels)
        except ValueError:
            number = None
        if number is None or side in found:
            raise ConfigError.for_field(option, value, "sides such as left=64,top=32 or all=64")
        found[side] = number
    return found
