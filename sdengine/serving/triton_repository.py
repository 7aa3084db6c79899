"""Model repository of Triton Inference Server: a bundle with the files that let it be served.

FOLDER/NAME/config.pbtxt    the tensors, batches, instances, limits
FOLDER/NAME/1/model.py      hands the server `TritonPythonModel`
FOLDER/NAME/1/bundle/       the bundle, whole, so that the folder may be moved into a container
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdengine.backends.base import PRECISIONS
from sdengine.backends.registry import BACKENDS
from sdengine.bundle.manifest import MANIFEST_NAME, Manifest
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError, OutputError
from sdengine.request.fields import Choice, Integer
from sdengine.request.request import MAX_BATCH
from sdengine.serving.triton_model import BUNDLE_FOLDER
from sdengine.serving.triton_settings import Limits
from sdengine.serving.triton_tensors import (
    IMAGES,
    OUTPUTS,
    PIXEL_TYPES,
    SPELLINGS,
    Spelling,
    Tensor,
    inputs_of,
)
from sdengine.storage.whole_folder import write_folder

DEFAULT_NAME = "stable_diffusion"
CONFIG_NAME = "config.pbtxt"
# A client may ask for sizes that nobody foresaw where the bundle takes any.
_FREE_SIZES = 4
# How long a request waits for others that could be made with it: next to the seconds that a picture
# takes, little.
_DELAY_MICROSECONDS = 100_000
_GPU_BACKENDS = ("tensorrt-rtx", "tensorrt", "torch-cuda", "triton")
_VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_BLOCK_BYTES = 1 << 20
_MODEL = '''"""Model of Triton Inference Server's Python backend; it is in the package sdengine."""

from sdengine.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Export:
    """How a bundle is to be served; constructing it checks every field.

    Args:
        name: of the model, and of its folder.
        max_batch: elements that the server may put into one batch; 0 is without batches.
        instances: of the model, on each GPU or on the machine's processors together.
        precision, backend: as for `sdengine.load`.
        threads: of each instance on the CPU; None shares the processors out.
        spelling: of the tensors' names.
        pixels: of images, "uint8" (0 to 255), "fp16" or "fp32" (0 to 1).

    Raises:
        ConfigError: a field is not acceptable.
    """

    name: str = DEFAULT_NAME
    max_batch: int = 0
    instances: int = 1
    precision: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    spelling: Spelling = "capitals"
    pixels: str = "uint8"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            accepted = "letters, digits, '_', '.' and '-', at most 100, a letter or digit first"
            raise ConfigError.for_field("name", self.name, accepted)
        Integer(0, MAX_BATCH)("max_batch", self.max_batch)
        Integer(1, 1000)("instances", self.instances)
        Choice(PRECISIONS)("precision", self.precision)
        Choice(("auto", *BACKENDS))("backend", self.backend)
        Choice(SPELLINGS)("tensors", self.spelling)
        Choice(tuple(PIXEL_TYPES))("pixels", self.pixels)
        if self.threads is not None:
            Integer(1, 4096)("threads", self.threads)


def export_triton(
    bundle: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    export: Export | None = None,
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a model of a model repository, whole or not at all.

    Args:
        bundle: a folder that `sdengine.build` wrote, or "demo"; every file is hashed on the way.
        folder: the repository, which may hold other models; made if its parent is there.
        export: how it is to be served.
        force: replace a model of this name that was written so before.
        progress: called for each file of the bundle with its name, number and their count.

    Returns:
        The model's folder.

    Raises:
        ConfigError: something is asked for that the bundle does not run.
        BundleError: the bundle is missing, foreign, incomplete or altered.
        OutputError: the place is taken or cannot be written.
    """
    export = export or Export()
    opened = open_bundle(bundle, verify="size")
    text = config_text(export, opened.manifest)
    repository = Path(folder)

    def fill(model: Path) -> None:
        (model / CONFIG_NAME).write_text(text, encoding="utf-8")
        version = model / _VERSION
        version.mkdir()
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        _copy(opened, version / BUNDLE_FOLDER, progress)

    with _made(repository):
        return write_folder(
            repository / export.name,
            fill,
            what="model",
            marker=f"{_VERSION}/{BUNDLE_FOLDER}/{MANIFEST_NAME}",
            force=force,
        )


def config_text(export: Export, manifest: Manifest) -> str:
    """Return `config.pbtxt`: the text form of the server's `inference.ModelConfig`.

    Raises:
        ConfigError: threads are given for a GPU.
        BackendUnavailableError: the backend does not run bundles of this target.
    """
    backend = _backend(export.backend, manifest.target)
    is_gpu = backend in _GPU_BACKENDS
    if is_gpu and export.threads is not None:
        raise ConfigError.for_field("threads", export.threads, f"none for backend {backend}")
    is_batched = export.max_batch > 0
    blocks = [f'name: "{export.name}"\nbackend: "python"\nmax_batch_size: {export.max_batch}']
    if export.max_batch > 1:
        blocks.append(
            f"dynamic_batching {{\n  max_queue_delay_microseconds: {_DELAY_MICROSECONDS}\n}}"
        )
    blocks += [_tensor("input", one, export, is_batched) for one in inputs_of(is_batched)]
    blocks += [_tensor("output", one, export, is_batched) for one in OUTPUTS]
    kind = "KIND_GPU" if is_gpu else "KIND_CPU"
    blocks.append(f"instance_group {{\n  count: {export.instances}\n  kind: {kind}\n}}")
    most = max(width * height for width, height in manifest.resolutions)
    limits = Limits(most * (1 if manifest.size_multiple is None else _FREE_SIZES))
    parameters = {
        "backend": export.backend,
        "precision": export.precision,
        "threads": "" if export.threads is None else str(export.threads),
        "max_pixels": str(limits.max_pixels),
        "max_steps": str(limits.max_steps),
    }
    if not is_batched:
        parameters["max_images"] = str(limits.max_images)
    blocks += [
        f'parameters {{\n  key: "{key}"\n  value {{ string_value: "{value}" }}\n}}'
        for key, value in parameters.items()
    ]
    return "\n".join(blocks) + "\n"


def _tensor(what: str, tensor: Tensor, export: Export, is_batched: bool) -> str:
    pixel_type = PIXEL_TYPES[export.pixels]
    lines = [
        f'name: "{tensor.spelled(export.spelling)}"',
        f"data_type: {pixel_type if tensor is IMAGES else tensor.data_type}",
        f"dims: {list(tensor.dims_of(is_batched))}",
    ]
    if what == "input" and tensor.is_optional:
        lines.append("optional: true")
    return "\n  ".join([f"{what} {{", *lines]) + "\n}"


def _backend(name: str, target: str) -> str:
    """Return what will run the bundle, on a machine that need not be this one."""
    chosen = target if name == "auto" else name
    runs = BACKENDS[chosen].target or chosen if chosen in BACKENDS else None
    if runs != target:
        raise BackendUnavailableError(
            f"backend {chosen} cannot run this bundle, which was built for {target}."
        )
    return chosen


def _copy(bundle: Bundle, folder: Path, progress: Callable[[str, int, int], None] | None) -> None:
    """Copy the manifest and what it lists, and compare all of it with its hashes."""
    hashes = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    hashes[MANIFEST_NAME] = bundle.sha256
    for number, (path, sha256) in enumerate(hashes.items()):
        if progress is not None:
            progress(path, number, len(hashes))
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        source = (bundle.root / path).open("rb") if path == MANIFEST_NAME else bundle.open(path)
        with source, place.open("xb") as copy:
            while block := source.read(_BLOCK_BYTES):
                found.update(block)
                copy.write(block)
        if found.hexdigest() != sha256:
            raise BundleError(f"{bundle.root / path}: it is not what the manifest says.")


@contextlib.contextmanager
def _made(repository: Path) -> Iterator[None]:
    """Make a folder that is not there, and remove it again where nothing comes into it."""
    is_new = not repository.exists()
    if is_new:
        if not repository.parent.is_dir():
            raise OutputError(f"folder {str(repository.parent)!r} does not exist; make it first.")
        try:
            repository.mkdir()
        except OSError as error:
            raise OutputError(f"folder {str(repository)!r} cannot be made: {error}.") from error
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                repository.rmdir()
        raise
