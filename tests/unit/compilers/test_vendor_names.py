"""Every name of TensorRT's that the code uses is in the bindings of the product that it is used of.

The code is read, not run: what is reached on a GPU only counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.vendor_names import MODULES, Names, has, names_of

import sdengine

ROOT = Path(sdengine.__file__).parent
FILES = sorted(
    path
    for room in ("backends/tensorrt", "compilers/tensorrt")
    for path in (ROOT / room).glob("*.py")
    if "plugin" not in path.name  # whose names are of another module; see its own test below
)
# What an expression is in TensorRT's words, by file, class or function, and how it is written.
RECEIVERS = {
    ("backends/tensorrt/engine.py", "GpuEngine", "runtime"): "Runtime",
    ("backends/tensorrt/engine.py", "GpuEngine", "self._engine"): "ICudaEngine",
    ("backends/tensorrt/engine.py", "GpuEngine", "context"): "IExecutionContext",
    ("backends/tensorrt/engine.py", "GpuContext", "self._context"): "IExecutionContext",
    ("backends/tensorrt/runtime_cache.py", "RuntimeCache", "engine"): "ICudaEngine",
    ("backends/tensorrt/runtime_cache.py", "RuntimeCache", "config"): "IRuntimeConfig",
    ("backends/tensorrt/runtime_cache.py", "RuntimeCache", "self._cache"): "IRuntimeCache",
    ("backends/tensorrt/runtime_cache.py", "RuntimeCache", "cache"): "IRuntimeCache",
    ("backends/tensorrt/runtime_cache.py", "_compile_at_once", "config"): "IRuntimeConfig",
    ("compilers/tensorrt/builder.py", "build_engine", "builder"): "Builder",
    ("compilers/tensorrt/builder.py", "build_engine", "parser"): "OnnxParser",
    ("compilers/tensorrt/builder.py", "build_engine", "profile"): "IOptimizationProfile",
    ("compilers/tensorrt/builder.py", "build_engine", "config"): "IBuilderConfig",
    ("compilers/tensorrt/builder.py", "_make_config", "builder"): "Builder",
    ("compilers/tensorrt/builder.py", "_make_config", "config"): "IBuilderConfig",
    ("compilers/tensorrt/builder.py", "_let_attention_decompose", "network"): "INetworkDefinition",
    ("compilers/tensorrt/builder.py", "_let_attention_decompose", "layer"): "IAttentionInputLayer",
    ("compilers/tensorrt/builder.py", "_let_attention_decompose", "layer.attention"): "IAttention",
    ("compilers/tensorrt/builder.py", "TimingCache", "config"): "IBuilderConfig",
    ("compilers/tensorrt/builder.py", "TimingCache", "cache"): "ITimingCache",
    ("compilers/tensorrt/engine_timing.py", "_times", "runtime"): "Runtime",
    ("compilers/tensorrt/engine_timing.py", "_time", "engine"): "ICudaEngine",
    ("compilers/tensorrt/engine_timing.py", "_time", "context"): "IExecutionContext",
    ("compilers/tensorrt/kernel_timing.py", "EngineTimer", "self._runtime"): "Runtime",
    ("compilers/tensorrt/kernel_timing.py", "EngineTimer", "engine"): "ICudaEngine",
    ("compilers/tensorrt/kernel_timing.py", "EngineTimer", "context"): "IExecutionContext",
}
# Names that one product lacks, and why the code does without them there.
LACKING = {
    "tensorrt": {
        # Capabilities are named to TensorRT-RTX alone: `target_capabilities` gives full TensorRT
        # none.
        "ComputeCapability",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
        # Asked for before they are used.
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "IExecutionContext.is_stream_capturable",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        # Of the cache that is not made without `create_runtime_cache`.
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.serialize",
        "IRuntimeCache.deserialize",
    },
    "tensorrt_rtx": set(),
}


@dataclass(frozen=True)
class Use:
    """A name that the code uses: where, of what, and whether the code asks for it first."""

    file: str
    line: int
    name: str
    is_asked: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name}"


def uses_in(path: Path, used: set[tuple[str, str, str]]) -> Iterator[Use]:
    """Yield the names that a file uses of TensorRT's; note in `used` which receivers occur."""
    file = path.relative_to(ROOT).as_posix()
    for top in ast.parse(path.read_text()).body:
        scope = getattr(top, "name", "")
        literals = {
            node.targets[0].id: node.value.value
            for node in ast.walk(top)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute):
                receiver, asked, name = node.value, False, node.attr
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                given = node.args[1]
                literal = given.value if isinstance(given, ast.Constant) else None
                if isinstance(given, ast.Name):
                    literal = literals.get(given.id)
                if not isinstance(literal, str):
                    continue
                receiver, asked, name = node.args[0], True, literal
            else:
                continue
            written = ast.unparse(receiver)
            if name.startswith("__"):
                continue
            module, _, inner = written.partition(".")
            if written == "self._trt" or written.startswith("self._trt."):
                module, inner = "trt", written.removeprefix("self._trt").lstrip(".")
            if module == "trt":
                yield Use(file, node.lineno, f"{inner}.{name}" if inner else name, asked)
            elif (file, scope, written) in RECEIVERS:
                used.add((file, scope, written))
                kind = RECEIVERS[file, scope, written]
                yield Use(file, node.lineno, f"{kind}.{name}", asked)
            else:
                yield Use(file, node.lineno, f"?.{name}", asked)


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    used: set[tuple[str, str, str]] = set()
    found = [use for path in FILES for use in uses_in(path, used)]
    assert used == RECEIVERS.keys(), "the table has receivers that the code no longer has"
    return found


@pytest.fixture(scope="module", params=MODULES)
def product(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Names]:
    return request.param, names_of(request.param, tmp_path_factory.mktemp("libraries"))


def test_what_is_used_is_there(uses: list[Use], product: tuple[str, Names]) -> None:
    name, names = product
    known = [use for use in uses if not use.name.startswith("?.")]
    assert len({use.name for use in known}) > 50
    missing = {use.name for use in known if not has(names, use.name)}
    lacking = {use.name for use in known if _is_in(use.name, LACKING[name])}
    assert missing == lacking, [str(use) for use in known if use.name in missing ^ lacking]


def _is_in(name: str, lacking: set[str]) -> bool:
    return any(name == known or name.startswith(f"{known}.") for known in lacking)


def test_what_one_product_lacks_is_asked_for_first(uses: list[Use]) -> None:
    asked = {use.name for use in uses if use.is_asked and not use.name.startswith("?.")}
    assert asked == {
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "ICudaEngine.create_runtime_config",
        "IExecutionContext.is_stream_capturable",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    }


def test_no_use_is_overlooked(uses: list[Use], product: tuple[str, Names]) -> None:
    """A method that only TensorRT's objects have is called on none that the table does not name."""
    _, names = product
    theirs = {
        attribute
        for kind in names.values()
        for attribute in kind
        if "_" in attribute.strip("_") and not attribute.startswith("_")
    }
    ours = {"compute_capability"}
    unknown = [
        str(use)
        for use in uses
        if use.name.startswith("?.") and use.name.removeprefix("?.") in theirs - ours
    ]
    assert unknown == []


def test_what_plugins_use_is_there(tmp_path: Path) -> None:
    names = names_of("tensorrt", tmp_path, "plugin")
    sources = sorted((ROOT / "compilers/tensorrt").glob("*plugin*.py"))
    used = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trtp"
    }
    assert len(used) >= 8 and used - names.keys() <= {"__name__"}
