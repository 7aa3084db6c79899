"""Runtime cache: kernels that TensorRT-RTX compiled at an engine's first run, for later loads."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.backends.cache_file import (
    MAX_BYTES,
    Key,
    Kind,
    cache_path,
    load,
    save,
)
from sdengine.storage.cache_files import CacheFiles
from sdengine.storage.cache_place import LIMIT_VARIABLE, say_not_kept

KIND = Kind("runtime cache", b"sdengine runtime cache 1\n", "runtime")
KEPT = CacheFiles("tensorrt", f"{KIND.prefix}-*.cache")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeKey(Key):
    """Name what compiled kernels hold for.

    Args:
        driver: release of NVIDIA's driver, or "unknown".
        engine: SHA-256 of the engine's file.
    """

    driver: str
    engine: str

    def __str__(self) -> str:
        return f"{super().__str__()}, driver {self.driver}, engine {self.engine[:12]}"


class RuntimeCache:
    """The kernels of one engine; all its contexts add to them.

    No request fails here: what cannot be read, used or written is said in a warning, and the
    engine compiles as it does without.

    Args:
        key: what the kernels hold for.
    """

    def __init__(self, key: RuntimeKey) -> None:
        self._key = key
        self._path: Path | None = None
        try:
            self._path = cache_path(KIND, key, key.engine[:32])
        except OSError as error:
            say_not_kept("compiled kernels", error.strerror)
        self._cache: Any = None
        self._kept_sha256 = ""  # of what the file holds, as far as it is known here
        self._is_used = self._is_written = self._path is not None

    def config(self, engine: Any, strategy: Any) -> Any:
        """Return what a new context is to be made with.

        Args:
            engine: of TensorRT's.
            strategy: who gives the context its scratch.

        Returns:
            A configuration, to be held as long as the context; None where this TensorRT has none
            or none with a cache.
        """
        make = getattr(engine, "create_runtime_config", None)
        if make is None:
            return None
        try:
            config = make()
            if not hasattr(config, "create_runtime_cache"):  # full TensorRT compiles ahead
                return None
            config.set_execution_context_allocation_strategy(strategy)
            _compile_at_once(config)
        except Exception as error:  # whatever it is, a context can be made without
            self._do_without(error)
            return None
        if self._is_used:
            self._join(config)
        return config

    def _join(self, config: Any) -> None:
        """Let a context take kernels from here and leave its own."""
        try:
            if self._cache is None:
                self._cache = self._opened(config)
            if self._cache is None or not config.set_runtime_cache(self._cache):
                raise RuntimeError("TensorRT takes none")
        except Exception as error:  # whatever it is, the engine can do without
            self._do_without(error)

    def _do_without(self, error: Exception) -> None:
        if self._is_used:
            self._warn(f"is not used: {error}")
        self._is_used = self._is_written = False

    def save(self) -> None:
        """Write the file if there are other kernels than it holds; nothing may be running."""
        if self._cache is None or self._path is None or not self._is_written:
            return
        try:
            content = memoryview(self._cache.serialize())
            if content.nbytes > MAX_BYTES:
                raise OSError(None, f"it would have {content.nbytes} bytes; {MAX_BYTES} are kept")
            sha256 = hashlib.sha256(content).hexdigest()
            if content.nbytes and sha256 != self._kept_sha256:
                if not KEPT.make_room(content.nbytes):
                    raise OSError(None, f"it exceeds {LIMIT_VARIABLE} or what the disk has free")
                save(self._path, KIND, self._key, bytes(content))
                self._kept_sha256 = sha256
        except Exception as error:  # the pictures are made, whatever happened to the kernels
            self._is_written = False
            self._warn(f"cannot be written: {getattr(error, 'strerror', None) or error}")

    def _opened(self, config: Any) -> Any:
        """Return a cache with the kept kernels, or an empty one."""
        assert self._path is not None  # or the cache is not used
        loaded = load(self._path, KIND, self._key)
        self._is_written = loaded.replaceable
        if loaded.reason:
            self._warn(f"is not used: {loaded.reason}")
        cache = config.create_runtime_cache()
        if cache is not None and loaded.content:
            if cache.deserialize(loaded.content):
                self._kept_sha256 = hashlib.sha256(loaded.content).hexdigest()
            else:
                self._warn("is not used: TensorRT refuses what it holds")
                cache = config.create_runtime_cache()
        return cache

    def _warn(self, text: str) -> None:
        _log.warning("runtime cache %s %s", self._path, text)


def _compile_at_once(config: Any) -> None:
    """Have an engine's first run at a shape wait for the kernels made for that shape.

    By default they are compiled beside it and others run meanwhile, which a graph that is captured
    after the first run would hold for good.
    """
    name = "dynamic_shapes_kernel_specialization_strategy"
    if hasattr(config, name):
        setattr(config, name, type(getattr(config, name)).EAGER)
