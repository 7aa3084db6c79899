"""Sessions of one backend object: what belongs to a bundle is not shared."""

from __future__ import annotations

import pytest

import sdengine
from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend, NativeSession
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.engine import Engine
from sdengine.errors import ConfigError


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("demo", verify="size")


def test_a_limit_of_one_native_session_is_not_the_others(bundle: Bundle) -> None:
    backend = NativeBackend()
    before, limited, after = (
        backend.open(bundle, SessionOptions(precision="bf16", memory_bytes=limit))
        for limit in (None, 50_000_000, None)
    )
    assert limited.budget.available_bytes == 50_000_000 and limited.budget.needs
    for session in (before, after):
        assert isinstance(session, NativeSession)
        assert not session.budget.needs and not session._budget.weight_limits
    assert isinstance(limited, NativeSession) and limited._budget.weight_limits


def test_engines_on_one_backend_have_precisions_and_threads_of_their_own(bundle: Bundle) -> None:
    backend = NativeBackend()
    with (
        Engine(bundle, backend, SessionOptions("fp32", 1)) as first,
        Engine(bundle, backend, SessionOptions("bf16", 2)) as second,
    ):
        assert first.session is not second.session
        options = {"steps": 1, "seed": 3}
        exact, rounded = (e.generate("a star", **options).arrays[0] for e in (first, second))  # type: ignore[arg-type]
        first.close()
        again = second.generate("a star", **options).arrays[0]  # type: ignore[arg-type]
    assert (exact != rounded).any() and (again == rounded).all()


def test_native_networks_take_the_planners_limit_of_chunks() -> None:
    with sdengine.load("demo") as engine:
        assert engine.session.max_chunks is None
        with pytest.raises(ConfigError, match=r"prompt: .* 41 chunks of 75; at most 40 chunks"):
            engine.generate("cat " * 3000 + "dog", steps=1)
