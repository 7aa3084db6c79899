"""Models as OpenAI's clients name them: bundles, and checkpoints that take a bundle's place."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.models import OWN
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.service import Service

_MAX_SHOWN = 20


def models(service: Service) -> dict[str, Path]:
    """Return what stands for each model: the folder of a bundle, or a checkpoint.

    A checkpoint that is called as a bundle is cannot be named, and is left out.
    """
    found = {name: engine.bundle.root for name, engine in service.engines.items()}
    return found | {
        name: path
        for name, path in service.catalogue.files("model").items()
        if name not in service.engines
    }


def model_object(name: str, path: Path) -> dict[str, Any]:
    """Return what clients are told of a model."""
    changed = 0
    with contextlib.suppress(OSError):  # it went meanwhile
        changed = int(path.stat().st_mtime)
    return {"id": name, "object": "model", "created": changed, "owned_by": "sdengine"}


def bundle_and_model(service: Service, model: Any, bundle: Any) -> tuple[str, Any]:
    """Return the bundle of a call, and the `model` of its request; None for the bundle's own.

    Args:
        service: whose models they are.
        model: a name, or shares by name; None for the first bundle.
        bundle: the name of the one that runs a checkpoint; None for the first.

    Raises:
        HTTPError: there is no such model.
        ConfigError: there is no such bundle, or the two are different ones.
    """
    if bundle is not None and (not isinstance(bundle, str) or bundle not in service.engines):
        raise ConfigError.for_field("bundle", bundle, f"one of {', '.join(service.engines)}")
    usual = bundle or next(iter(service.engines))
    if model is None or isinstance(model, dict):
        return usual, model
    if not isinstance(model, str):
        raise ConfigError.for_field("model", model, "a name, or shares by name")
    if model in service.engines:
        if bundle not in (None, model):
            raise ConfigError(f"model, bundle: {model!r} is another bundle than {bundle!r}.")
        return model, None
    if model != OWN:
        require_model(service, model)
    return usual, model


def require_model(service: Service, name: str) -> Path:
    """Return what stands for a model.

    Raises:
        HTTPError: there is none of that name.
    """
    known = models(service)
    if name not in known:
        shown = ", ".join(list(known)[:_MAX_SHOWN]) + (", ..." if len(known) > _MAX_SHOWN else "")
        message = f"model: {name[:80]!r} is not a model of this server. It has {shown}."
        raise HTTPError(404, message, "model_not_found", field="model")
    return known[name]
