"""The list of a request's fields, and everything that must not differ from it."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

import click
import pytest
import typer

import sdengine
from sdengine.cli.generate import generate
from sdengine.errors import ConfigError
from sdengine.images import web_ui_text
from sdengine.request.control import Control
from sdengine.request.ip_adapters import IPAdapter
from sdengine.request.keywords import ALIASES, WEB_UI_CLIP_SKIP, RequestOptions
from sdengine.request.picture_fields import FILES, HIRES_FIELDS, OPTIONS_OF, PICTURES
from sdengine.request.region import REGION_OPTIONS, Region
from sdengine.request.request import FIELDS, Request
from sdengine.request.tile_fields import TILE_OPTIONS
from sdengine.samplers import SAMPLERS, SamplerOptions

PROMPTS = ("prompt", "negative_prompt")
# What only this command or the web UI's text leaves out, because they have no place for it.
WITHOUT_A_LABEL = {
    *PROMPTS,
    *("batch_size", "controls", "embeddings", "ip_adapters", "loras", "model", *PICTURES),
    "hypernetworks",
    "outpaint",
    *{*sum(OPTIONS_OF.values(), ())} - {*HIRES_FIELDS},
    "hires_model",
    *("tiled_diffusion", *TILE_OPTIONS),
    *("regions", *REGION_OPTIONS),
    *("original_size", "crop", "target_size", "aesthetic_score", "negative_aesthetic_score"),
}


def or_none(hint: Any) -> set[Any]:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    listed = {tuple[int, ...]: Sequence[int], tuple[str, ...]: Sequence[str]}
    return {listed.get(part, part) for part in parts} | {types.NoneType}


def test_keywords_are_the_fields_with_their_types() -> None:
    hints = typing.get_type_hints(Request)
    keywords = typing.get_type_hints(RequestOptions)
    expected = {name: or_none(hints[name]) for name in FIELDS if name not in PROMPTS}
    # Whatever can be read as one.
    read = ("embeddings", "loras", "model", "hypernetworks", *FILES, "outpaint", "hires")
    expected |= {name: or_none(typing.Any) for name in read}
    expected["controls"] = or_none(Sequence[Control] | Control)
    expected["ip_adapters"] = or_none(Sequence[IPAdapter] | IPAdapter)
    expected["regions"] = or_none(Sequence[Region] | Region)
    expected |= {alias: or_none(hints[name]) for alias, name in ALIASES.items()}
    expected[WEB_UI_CLIP_SKIP] = expected["clip_skip"]
    assert {name: or_none(hint) for name, hint in keywords.items()} == expected


def test_help_of_generate_shows_every_option() -> None:
    shown = inspect.getdoc(sdengine.Engine.generate) or ""
    described = [line.strip() for line in shown.splitlines()]
    for name in [*FIELDS, *ALIASES]:
        assert any(line.startswith((f"{name}:", f"{name} (")) for line in described), name
    assert "steps (1 to 1000): sampler steps." in shown
    assert "{" not in shown and "{" not in str(Request.__doc__)
    assert max(map(len, str(sdengine.Engine.generate.__doc__).splitlines())) <= 100
    assert max(map(len, str(Request.__doc__).splitlines())) <= 100


def command() -> click.Command:
    app = typer.Typer()
    app.command()(generate)
    return typing.cast(click.Command, typer.main.get_command(app))


def test_the_command_has_every_field() -> None:
    options = {name for one in command().params for name in one.opts}
    for info in FIELDS.values():
        for name in {info.option or info.name, info.name, info.alias} - {"prompt", ""}:
            if not name.startswith("seed_"):  # --seed-size
                assert f"--{name.replace('_', '-')}" in options, name
    assert {"--seed-size", "--guidance", "--batch", "-n", "-o"} <= options


def test_the_web_uis_labels_are_complete() -> None:
    assert {name for name, info in FIELDS.items() if not info.labels} == WITHOUT_A_LABEL
    read = {info.name for infos in web_ui_text._FIELDS.values() for info in infos}
    assert read == FIELDS.keys() - WITHOUT_A_LABEL


def test_samplers_options_are_fields() -> None:
    options = {name for info in SAMPLERS.values() for name in info.options}
    assert options == set(SamplerOptions.__dataclass_fields__)
    assert options < FIELDS.keys()


def test_defaults_pass_their_checks() -> None:
    request = Request("")
    for name, info in FIELDS.items():
        assert info.checked(getattr(request, name)) == getattr(request, name)


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_accepted_where_it_is_the_default(name: str) -> None:
    info = FIELDS[name]
    if info.default is None:
        assert info.checked(None) is None
    else:
        with pytest.raises(ConfigError, match=name):
            info.checked(None)
