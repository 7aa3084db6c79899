"""Sampling as the web UI's clients ask for it: samplers, schedules and options of both passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.samplers import SAMPLERS
from sdengine.serving.web_ui.fields import Generation, Txt2Img
from sdengine.serving.web_ui.sampler_names import (
    is_same,
    sampler_of,
    schedule_of,
    usual_schedule,
)

# What samplers do where nothing is said of eta; of all others it is 1.
_USUAL_ETA = {"ddim": 0.0, "tcd": 0.3}
# Those of churn, and what each is where nothing is said: of s_tmax 0 is no limit.
_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}
_ETA_OF_CLIENTS = 1.0  # which come with every request, whatever its sampler


def sampling_of(
    fields: Generation, settings: Mapping[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """Return sampler and schedule of both passes, and the options that they have.

    Args:
        fields: of the body.
        settings: of the client.
        warnings: takes sentences on options that the samplers do not have.

    Raises:
        HTTPError: a sampler or a schedule is not there.
    """
    field = "sampler_name" if fields.sampler_name else "sampler_index"
    sampler, in_name = sampler_of(field, getattr(fields, field))
    # Where both name one, the end of the sampler's name counts, as in the web UI.
    schedule = in_name or schedule_of("scheduler", fields.scheduler)
    keywords: dict[str, Any] = {
        "sampler": sampler,
        "schedule": schedule or usual_schedule(sampler),
    }
    used = [sampler]
    if isinstance(fields, Txt2Img) and fields.enable_hr:
        again, own = sampler, None
        if not is_same(fields.hr_sampler_name):
            again, own = sampler_of("hr_sampler_name", fields.hr_sampler_name)
            keywords["hires_sampler"] = again
            used.append(again)
        if own is None and not is_same(fields.hr_scheduler):
            own = schedule_of("hr_scheduler", fields.hr_scheduler) or usual_schedule(again)
        found = own or schedule or usual_schedule(again)
        if found != keywords["schedule"] or len(used) > 1:
            keywords["hires_schedule"] = found
    return keywords | _options(fields, settings, used, warnings)


def _options(
    fields: Generation,
    settings: Mapping[str, Any],
    samplers: Sequence[str],
    warnings: list[str],
) -> dict[str, float]:
    """Return eta and churn where they say something else than the samplers do by themselves."""
    wanted: dict[str, float] = {}
    name, usual = ("eta_ddim", 0.0) if samplers[0] == "ddim" else ("eta_ancestral", 1.0)
    eta = fields.eta
    if eta is None and settings[name] != usual:
        eta = settings[name]
    if eta is not None and any(_USUAL_ETA.get(one, 1.0) != eta for one in samplers):
        wanted["eta"] = eta
    for name, usual in _CHURN.items():
        given = getattr(fields, name)
        value = settings[name] if given is None else given
        if value != usual:
            wanted[name] = value
    found = {}
    for name, value in wanted.items():
        if all(name in SAMPLERS[one].options for one in samplers):
            found[name] = value
        elif name != "eta" or value != _ETA_OF_CLIENTS:
            shown = " and ".join(SAMPLERS[one].label for one in samplers)
            warnings.append(f"{name}: it has no effect with sampler {shown}.")
    return found
