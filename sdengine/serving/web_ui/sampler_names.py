"""Sampler names of the web UI: with a schedule at their end, and schedules by its own names."""

from __future__ import annotations

from typing import Any

from sdengine.errors import ConfigError
from sdengine.images.web_ui_text import SCHEDULES_OF_WEB_UI
from sdengine.samplers import SAMPLERS, SCHEDULES, resolve_names
from sdengine.serving.error_answers import HTTPError

_OWN = {name.lower(): schedule for name, schedule in SCHEDULES_OF_WEB_UI.items()}
_SAME = ("", "use same sampler", "use same scheduler")
# Listed before those that the engine calls so itself.
_LISTED = (
    ("automatic", "Automatic", ()),
    ("uniform", "Uniform", ()),
)


def is_same(name: str) -> bool:
    """Say whether a second pass shall have what the first one has."""
    return name.strip().lower() in _SAME


def sampler_of(field: str, name: str) -> tuple[str, str | None]:
    """Return a sampler, and the schedule that its name ends in or None.

    Raises:
        HTTPError: there is no such sampler; 404, as clients expect it.
    """
    try:
        found = [resolve_names(name, None, other) for other in ("normal", "karras")]
    except ConfigError as error:
        message = f"{field}: {str(error).removeprefix('sampler: ')}"
        raise HTTPError(404, message, "SamplerNotFound") from None
    schedules = {schedule for _, schedule in found}
    return found[0][0], schedules.pop() if len(schedules) == 1 else None


def schedule_of(field: str, name: str) -> str | None:
    """Return a schedule; None for "automatic", which leaves it to the sampler.

    Raises:
        HTTPError: there is no such schedule.
    """
    plain = name.strip().lower()
    if not plain or plain in _OWN:
        return _OWN.get(plain)
    try:
        return resolve_names("euler", plain)[1]
    except ConfigError as error:
        message = f"{field}: {str(error).removeprefix('schedule: ')}"
        raise HTTPError(404, message, "SchedulerNotFound") from None


def usual_schedule(sampler: str) -> str:
    """Return what "automatic" means for a sampler."""
    return SAMPLERS[sampler].default_schedule


def listed_samplers() -> list[dict[str, Any]]:
    """Return the samplers as the web UI lists them."""
    return [
        {"name": one.label, "aliases": [one.name, *one.aliases], "options": {}}
        for one in SAMPLERS.values()
    ]


def listed_schedulers() -> list[dict[str, Any]]:
    """Return the schedules likewise."""
    aliases = {"ddim_uniform": ["ddim"]}
    own = [
        (one.name, one.label, (*one.aliases, *aliases.get(one.name, [])))
        for one in SCHEDULES.values()
    ]
    return [
        {
            "name": name,
            "label": label,
            "aliases": list(others) or None,
            "default_rho": {"karras": 7.0, "polyexponential": 1.0}.get(name, -1),
            "need_inner_model": False,
        }
        for name, label, others in (*_LISTED, *own)
    ]
