"""Few-step LoRAs: recognised by their names, with the sampling that they were distilled for.

Source: the model cards of LCM-LoRA, SDXL-Lightning, Hyper-SD, DMD2, TCD and PCM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TITLES = ("ss_output_name", "modelspec.title")
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
_WORD = r"(?:^|[^a-z]){}(?:$|[^a-z])"


@dataclass(frozen=True)
class FewSteps:
    """What a few-step LoRA wants; with other sampling its pictures are blurred or burnt.

    Args:
        name: of the method.
        sampler, schedule: names of request fields.
        steps: that the file is for, or that are usual.
        guidance_scale: 1 where the guidance was distilled into the weights.
    """

    name: str
    sampler: str
    schedule: str
    steps: int
    guidance_scale: float


# A style may be called after lightning, so that a method's name alone is not enough for some.
_METHODS = (
    (re.compile(_WORD.format("lcm")), FewSteps("LCM", "lcm", "normal", 4, 1.0)),
    (re.compile(_WORD.format("tcd")), FewSteps("TCD", "tcd", "normal", 4, 1.0)),
    (re.compile(_WORD.format("dmd2")), FewSteps("DMD2", "lcm", "normal", 4, 1.0)),
    (re.compile(_WORD.format("pcm")), FewSteps("PCM", "ddim", "sgm_uniform", 4, 1.0)),
    (
        re.compile(r"(sdxl|sd15|xl)[-_ ]?lightning|lightning[-_ ]\d+[-_ ]?step"),
        FewSteps("Lightning", "euler", "sgm_uniform", 4, 1.0),
    ),
    (
        re.compile(r"hyper[-_ ]?sd|hyper\w*[-_ ]\d+[-_ ]?step"),
        FewSteps("Hyper-SD", "ddim", "sgm_uniform", 4, 1.0),
    ),
)


def few_steps(name: str, metadata: Mapping[str, str]) -> FewSteps | None:
    """Return what a LoRA wants if it is one for few steps.

    Args:
        name: of its file.
        metadata: of its file.
    """
    for text in (name, *(metadata.get(key, "") for key in _TITLES)):
        text = text[:500].lower()
        for pattern, found in _METHODS:
            if pattern.search(text):
                told = _STEPS.search(text)
                steps = int(told[1]) if told and int(told[1]) > 0 else found.steps
                return FewSteps(
                    found.name, found.sampler, found.schedule, steps, found.guidance_scale
                )
    return None
