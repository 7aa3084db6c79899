"""Tagged weights: what the tags of a prompt ask for, as fields of the request.

A tag is taken out of the prompt when what it names is found, and stands among the request's fields
from then on: a result's request says each thing once, and gives the same picture again.

Source: the extra networks of the Stable Diffusion web UI: the tags of a batch's first prompt count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sdengine.adapters.library import AdapterLibrary
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora, find_lora
from sdengine.prompt.network_tags import NetworkTag, parse_tag, split_tags
from sdengine.request.request import Request

_MAX_NAMED = 20
Use = TypeVar("Use", bound=Lora | HypernetworkUse)


def with_tags(request: Request, library: AdapterLibrary) -> tuple[Request, tuple[str, ...]]:
    """Return a request with the networks that its prompt names, and sentences on all others.

    A tag counts in place of a strength that is given beside it for the same file. What is not found
    stays in the prompt, of which it is no part; see `PromptPlan.not_applied`.

    Args:
        request: with what is given beside the prompt.
        library: of the files that prompts may name.

    Raises:
        ConfigError: a tag is malformed.
        AdapterError: a file that it names cannot be read.
    """
    found, warnings = _found(request.prompts[0], library)
    loras = _joined(request.loras or (), [x for x in found.values() if isinstance(x, Lora)])
    named = [one for one in found.values() if isinstance(one, HypernetworkUse)]
    nets = _joined(request.hypernetworks or (), named)
    prompts = _without(request.prompt, found)
    negative, in_negative = _without_all(request.negative_prompt)
    warnings += [
        f"negative_prompt: {_shown(tag)} has no effect: such tags count in the prompt alone."
        for tag in in_negative[:_MAX_NAMED]
    ]
    if found and loras:
        request = replace(request, loras=loras)
    if found and nets:
        request = replace(request, hypernetworks=nets)
    if found or in_negative:
        request = replace(request, prompt=prompts, negative_prompt=negative)
    return request, tuple(warnings)


def tagged_loras(prompt: Any, library: AdapterLibrary) -> tuple[Lora, ...]:
    """Return the LoRAs that a prompt names, or the first of several, as far as they are found.

    What is no prompt names none; it is refused where the request is made.
    """
    first = prompt[0] if isinstance(prompt, list | tuple) and prompt else prompt
    found = _found(first, library)[0].values() if isinstance(first, str) else ()
    return tuple(one for one in found if isinstance(one, Lora))


def _found(
    prompt: str, library: AdapterLibrary
) -> tuple[dict[str, Lora | HypernetworkUse], list[str]]:
    """Return what the tags of a prompt ask for and is there, by tag; and what is not clear."""
    found: dict[str, Lora | HypernetworkUse] = {}
    warnings: list[str] = []
    for text in dict.fromkeys(split_tags(prompt)[1]):
        tag = parse_tag(text)
        is_lora = tag.kind == "lora"
        paths = (library.files if is_lora else library.hypernetwork_files).find(tag.name)
        if len(paths) == 1:
            path = paths[0]
            found[text] = _lora(tag, path) if is_lora else HypernetworkUse.of(path, tag.text)
        elif paths:
            places = " and ".join(repr(str(path)) for path in paths[:2])
            warnings.append(f"prompt: {_shown(text)} may mean {places}. Give one another name.")
    return found, warnings


def _joined(given: Sequence[Use], named: Sequence[Use]) -> tuple[Use, ...]:
    """Return what is given, with what tags say of the same files in its place, and the rest.

    A file that is given twice, under two names, counts twice as it does without tags.
    """
    tags: dict[str, Use] = {one.sha256: one for one in named}
    left = dict(tags)
    joined: list[Use] = []
    for one in given:
        if one.sha256 not in tags:
            joined.append(one)
        elif one.sha256 in left:
            joined.append(left.pop(one.sha256))
    return (*joined, *left.values())


def _lora(tag: NetworkTag, path: Any) -> Lora:
    lora = find_lora(path)
    return Lora(lora.name, lora.sha256, tag.text, tag.unet, tag.rank, path)


def _without(texts: Any, tags: Iterable[str]) -> Any:
    """Return prompts without some tags; they are texts, or one."""
    if not isinstance(texts, str):
        return tuple(_without(one, tags) for one in texts)
    for tag in tags:
        texts = texts.replace(tag, "")
    return texts.strip() if tags else texts


def _without_all(texts: Any) -> tuple[Any, list[str]]:
    if isinstance(texts, str):
        plain, tags = split_tags(texts)
        return (plain.strip() if tags else texts), tags
    pairs = [_without_all(one) for one in texts]
    return tuple(one for one, _ in pairs), [tag for _, tags in pairs for tag in tags]


def _shown(tag: str) -> str:
    printable = tag if tag.isprintable() else ascii(tag)
    return printable if len(printable) <= 120 else f"{printable[:117]}..."
