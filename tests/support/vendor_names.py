"""Names in NVIDIA's own bindings of TensorRT and TensorRT-RTX, looked up in a process of its own.

The bindings of full TensorRT are on the index without the libraries that they load. They take nine
functions of these, all to make an object; with stand-ins in their place the module can be imported
and asked for its names. Nothing of it is called.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MODULES = {"tensorrt": "tensorrt_bindings", "tensorrt_rtx": "tensorrt_rtx"}
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_ASK = """
import importlib, json, sys
module = sys.modules["tensorrt"] = importlib.import_module(sys.argv[1])
if sys.argv[2]:
    module = importlib.import_module(".".join(sys.argv[1:]))
def names(value, depth):
    found = {}
    for name in dir(value):
        if not name.startswith("__"):
            inner = getattr(value, name, None)
            found[name] = names(inner, depth - 1) if depth and isinstance(inner, type) else {}
    return found
print(json.dumps(names(module, 2)))
"""

Names = dict[str, Any]


def names_of(product: str, folder: Path, inner: str = "") -> Names:
    """Return the names in a product's module, with those in its classes and their enumerations.

    Args:
        product: a key of MODULES.
        folder: an empty one, for the libraries' stand-ins.
        inner: a module inside of it, in its place.
    """
    module = MODULES[product]
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    environment = dict(os.environ)
    if product == "tensorrt":
        environment["LD_LIBRARY_PATH"] = str(_stand_ins(folder))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ASK, module, inner],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: Names = json.loads(done.stdout.splitlines()[-1])
    return found


def has(names: Names, dotted: str) -> bool:
    """Say whether a dotted name is there."""
    for part in dotted.split("."):
        if part not in names:
            return False
        names = names[part]
    return True


def _stand_ins(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is not installed")
    source = folder / "functions.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run([compiler, *flags, str(source)], check=True)
    return folder
