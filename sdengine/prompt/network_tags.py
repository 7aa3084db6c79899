"""Network tags in a prompt: `<lora:name:0.8>` and its kin, which ask for changed weights.

Source: the extra networks that the Stable Diffusion web UI documents. They are no part of the text.
"""

from __future__ import annotations

import re

_KINDS = ("lora", "lyco", "locon", "loha", "lokr", "hypernet")
_TAG = re.compile(rf"<(?:{'|'.join(_KINDS)}):[^<>]+>", re.IGNORECASE)


def split_tags(text: str) -> tuple[str, list[str]]:
    """Return a prompt without its tags, and the tags as they are written."""
    return _TAG.sub("", text), _TAG.findall(text)
