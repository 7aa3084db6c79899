"""The rules of the house: which room may import which, and what an `__init__.py` may hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdengine"
# A room imports rooms that stand before it, at the head of a file or inside a function.
RUN_TIME = (
    "version",
    "errors",
    "machine",
    "storage",
    "inputs",
    "request",
    "samplers",
    "bundle",
    "adapters",
    "backends",
    "prompt",
    "images",
    "pipeline",
    "opened_bundle",
    "engine",
    "loading",
    "serving",
)
BUILD_TIME = (
    "kernels",
    "models",
    "checkpoints",
    "export",
    "backends.torch",
    "compilers",
    "building",
    "training",
)
FACES = ("benchmarks", "cli", "examples")
ORDER = RUN_TIME + BUILD_TIME + FACES
AT_THE_ROOT = {
    "__init__.py",
    "__main__.py",
    "_native.pyi",
    "README.md",
    "engine.py",
    "errors.py",
    "loading.py",
    "machine.py",
    "opened_bundle.py",
    "py.typed",
    "version.py",
}


def sources() -> dict[str, Path]:
    """Return every module of the package by name, with kernels and benchmarks as installed."""
    found: dict[str, Path] = {}
    for folder, name in ((PACKAGE, "sdengine"), (ROOT / "kernels", "sdengine.kernels")):
        found |= _modules(folder, name)
    return found | _modules(ROOT / "benchmarks", "sdengine.benchmarks")


def _modules(folder: Path, name: str) -> dict[str, Path]:
    found = {}
    for path in folder.rglob("*.py"):
        parts = (name, *path.relative_to(folder).with_suffix("").parts)
        linked = name == "sdengine" and parts[1] in ("kernels", "benchmarks")
        if not linked:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the names of ours that a file imports, as `module` or `module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sdengine":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sdengine."))


def room_of(module: str) -> str:
    """Return the room of a module: the folder below the package, or the file at its root."""
    if module.startswith("sdengine.backends.torch."):
        return "backends.torch"
    return module.split(".")[1]


MODULES = sources()


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"sdengine", "sdengine.__main__"}))
def test_a_room_imports_only_rooms_before_it(module: str) -> None:
    room = room_of(module)
    before = ORDER[: ORDER.index(room) + 1]
    for name in imports(MODULES[module]):
        if name not in ("sdengine._native", "sdengine.__version__"):
            assert room_of(name) in before, f"{module} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: _targets(path) - {module} for module, path in MODULES.items()}
    del graph["sdengine"]  # the face of the package looks names up on first use
    while True:
        imported = set().union(*graph.values()) if graph else set()
        ends = [
            module for module in graph if module not in imported or not graph[module] & set(graph)
        ]
        if not ends:
            break
        for module in ends:
            del graph[module]
    assert not graph, f"in a circle, or between two: {', '.join(sorted(graph))}"


def _targets(path: Path) -> set[str]:
    return {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}


@pytest.mark.parametrize(
    "path", sorted(p for p in MODULES.values() if p.name == "__init__.py"), ids=str
)
def test_an_init_file_hands_names_on_and_defines_nothing(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        pytest.skip("the face of the package looks names up on first use")
    for node in ast.parse(path.read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert is_docstring or is_all or isinstance(node, (ast.Import, ast.ImportFrom))


def test_nothing_else_stands_at_the_root() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file() and path.suffix != ".so"}
    assert files <= AT_THE_ROOT


def test_every_module_says_what_it_is() -> None:
    for module, path in MODULES.items():
        said = ast.get_docstring(ast.parse(path.read_text()))
        assert said, f"{module} has no docstring"
        first = said.split()[0]
        assert first not in ("What", "Where", "How", "Which", "Whose", "When"), f"{module}: {said}"
