"""The READMEs: the first one short, links that lead somewhere, commands that exist."""

from __future__ import annotations

import ast
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors import safe_open

import sdengine
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.cli.main import SUBCOMMANDS, _make_app
from sdengine.request.request import Request

ROOT = Path(__file__).parents[2]
READMES = sorted(
    path
    for path in ROOT.rglob("README.md")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
)
MAX_LINES = 160
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`(sdengine [^`]+)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands_of(path: Path) -> list[str]:
    """Return the commands of a README: lines of indented or fenced code, and code in sentences."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line.startswith("sdengine ")]
    inline = [code.replace("\\|", "|") for code in _INLINE.findall(text)]
    return found + [" ".join(code.split()) for code in inline]


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (
        "".join(c for c in heading.lower() if c.isalnum() or c in " -_") for heading in headings
    )
    return {heading.replace(" ", "-") for heading in kept}


COMMANDS = [(path, command) for path in READMES for command in commands_of(path)]


def test_the_readme_is_short_and_begins_with_what_to_try() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    code = [line.split("#")[0].strip() for line in lines if line.startswith("    ")]
    assert code[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    lost = []
    for link in _LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place) if place else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda v: name_of(v) if isinstance(v, Path) else v[9:40]
)
def test_commands_and_their_options_exist(path: Path, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    name, *arguments = words
    if name == "COMMAND":  # stands for any
        return
    assert name in {subcommand.name for subcommand in SUBCOMMANDS}
    group: Any = typer.main.get_command(_make_app(name))
    context = group.make_context("sdengine", [name])
    parsed = group.get_command(context, name)
    if hasattr(parsed, "get_command") and arguments and not arguments[0].startswith("-"):
        group, name, arguments = parsed, arguments[0], arguments[1:]
        context = type(context)(group, info_name="sdengine", parent=context)
        parsed = group.get_command(context, name)
        assert parsed is not None
    own = type(context)(parsed, info_name=name, parent=context)
    parsed.make_parser(own).parse_args(list(arguments))  # refuses options that do not exist


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_pictures_of_the_demo_model_have_a_background(path: Path) -> None:
    """Without one that is named it draws many seeds badly."""
    made = [command for command in commands_of(path) if command.startswith("sdengine generate")]
    prompts = [word for command in made for word in shlex.split(command, comments=True)[2:3]]
    of_one_thing = [
        prompt for prompt in prompts if re.match(r"a (\w+ )*(circle|square|star)\b", prompt)
    ]
    assert [prompt for prompt in of_one_thing if " on " not in prompt] == []


def test_every_command_has_a_task() -> None:
    text = (ROOT / "sdengine" / "cli" / "README.md").read_text(encoding="utf-8")
    table = text.partition("\n## ")[0]
    assert {c.name for c in SUBCOMMANDS} <= set(re.findall(r"`sdengine ([\w-]+)", table))


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_python_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    with sdengine.load("demo") as engine:
        owners = {"sdengine": sdengine, "engine": engine}
    for owner, what in owners.items():
        code = [*re.findall(r"```python\n(.*?)```", text, re.DOTALL), *re.findall(r"`(.*?)`", text)]
        for name in re.findall(rf"(?<![\w./]){owner}\.(?!py\b)(\w+)(?=\W)", "\n".join(code)):
            assert hasattr(what, name) or find_spec(f"sdengine.{name}"), f"{owner}.{name}"


def test_options_of_the_ten_lines_are_fields_of_a_request() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (generate,) = [call for call in calls if ast.unparse(call.func) == "engine.generate"]
    assert {word.arg for word in generate.keywords} <= set(Request.__dataclass_fields__)


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_scripts_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file()
    for module in re.findall(r"python -m (sdengine[\w.]*)", text):
        assert find_spec(module)


def test_the_demo_models_size_is_what_is_written() -> None:
    weights = DEMO_CHECKPOINT / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "numpy") as file:
        count = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no dict
    text = (ROOT / "sdengine" / "training" / "README.md").read_text(encoding="utf-8")
    assert f"A U-Net of {count / 1e6:.1f} million parameters" in text
