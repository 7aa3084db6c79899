"""Adapter: a LoRA or one of its kin, read and checked as a whole against a bundle's networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sdengine.adapters.changes import Change, Produced
from sdengine.adapters.families import family_of, made_for
from sdengine.adapters.few_steps import FewSteps, few_steps
from sdengine.adapters.file import Array, alias_in, open_adapter
from sdengine.adapters.groups import Group, changes_of
from sdengine.adapters.key_names import Target, key_stems
from sdengine.adapters.modules import Module
from sdengine.adapters.parts import refused_kind, split_key
from sdengine.adapters.products import UnfittingError
from sdengine.errors import AdapterError
from sdengine.storage.content_hash import HashedFile
from sdengine.storage.tensor_file import to_float32

_EMBEDDING = "bundle_emb."
_OF_EMBEDDINGS = {"emb_params", "clip_l", "clip_g"}


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits: every number in it was looked at, and none is applied yet.

    Args:
        name: of its file; prompts call it so.
        alias: the name that its trainer gave it; "" where there is none.
        sha256: of its content.
        holder: the file whose tensors the changes map.
        kinds: of its changes.
        changes: by network, of each parameter one.
        idle: keys for layers that the bundle leaves out because nothing reads them.
        unknown: keys that nothing takes; empty unless it was read with strict=False.
        few_steps: how to sample with it, if it was made for few steps.
        has_embeddings: the file holds textual inversions too; they are not read here.
    """

    name: str
    alias: str
    sha256: str
    holder: HashedFile = field(repr=False)
    kinds: tuple[str, ...]
    changes: Mapping[str, Sequence[Change]] = field(repr=False)
    idle: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    few_steps: FewSteps | None = None
    has_embeddings: bool = False


def read_adapter(
    path: str | os.PathLike[str], modules: Sequence[Module], *, strict: bool = True
) -> Adapter:
    """Read an adapter and check all of it.

    Args:
        path: a file (.safetensors, .sft, .pt, .pth, .bin, .ckpt), or a folder that PEFT or
            diffusers wrote.
        modules: of the bundle, from `known_modules`.
        strict: refuse keys that nothing takes, which would be half an adapter; else list them.

    Raises:
        AdapterError: the file is damaged or of a kind that is not applied, a key is unknown, a
            tensor's shape does not fit, or a number is NaN or infinite; the message names it.
    """
    file = open_adapter(Path(path))
    where = f"adapter {str(path)!r}"
    own = {key: tensor for key, tensor in file.tensors.items() if not key.startswith(_EMBEDDING)}
    groups, unknown = _grouped(where, own)
    stems = key_stems(tuple(modules))
    fitting: list[tuple[Group, Target]] = []
    for stem, group in groups.items():
        targets = stems.get(stem)
        if targets is None:
            unknown += group.keys.values()
        else:
            fitting.append((group, _choose(where, group, targets)))
    all_parts = {stem: group.parts for stem, group in groups.items()}
    told, own_family = made_for(all_parts, file.metadata), family_of(modules)
    hint = f" It was made for {told}; this bundle is {own_family}." if told else ""
    hint = "" if told == own_family else hint
    if not fitting:
        few = ", ".join(repr(key[:120]) for key in list(file.tensors)[:3])
        if file.tensors and file.tensors.keys() <= _OF_EMBEDDINGS:
            hint = " It is a textual inversion: give it with --embedding, or embeddings=."
        raise AdapterError(
            f"{where}: none of its {len(file.tensors)} tensors belongs to this bundle's networks, "
            f"first {few}.{hint}"
        )
    if unknown and strict:
        raise AdapterError(_about_unknown(where, sorted(unknown), len(file.tensors), hint))
    changes: dict[str, list[Change]] = {}
    idle: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for group, target in fitting:
        try:
            made = changes_of(group, target, file.sha256, file.configs, file.metadata)
        except UnfittingError as error:
            raise AdapterError(f"{where}: {group.first_key!r}: {error}.{hint}") from None
        if target[0].idle:
            idle += group.keys.values()
            continue
        for network, change in made:
            place = network, change.parameter
            if place in seen:
                raise AdapterError(
                    f"{where}: {seen[place]!r} and {group.first_key!r} both change "
                    f"{network} {change.parameter!r}."
                )
            seen[place] = group.first_key
            changes.setdefault(network, []).append(change)
    if not changes:
        raise AdapterError(f"{where}: it only changes layers of which this bundle reads nothing.")
    for group, _ in fitting:
        _check_numbers(where, group)
    kinds = dict.fromkeys(change.kind for made in changes.values() for change in made)
    return Adapter(
        file.name,
        alias_in(file.metadata),
        file.sha256,
        file.holder,
        tuple(kinds),
        changes,
        tuple(idle),
        tuple(sorted(unknown)),
        few_steps(file.name, file.metadata),
        len(own) < len(file.tensors),
    )


def cut_to_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return an adapter whose products of two matrices have at most a rank.

    Raises:
        AdapterError: it has none that could be cut.
    """
    changes: dict[str, list[Change]] = {}
    cut = products = 0
    sha256 = f"{adapter.sha256}:{rank}"
    for network, made in adapter.changes.items():
        for change in made:
            difference = change.difference
            if isinstance(difference, Produced) and "down" in difference.parts:
                products += "mid" not in difference.parts
                shorter = difference.cut(rank)
                cut += shorter is not None
                difference = shorter or difference
            whole = replace(change, adapter=sha256, difference=difference)
            changes.setdefault(network, []).append(whole)
    if not products:
        raise AdapterError(
            f"adapter {str(adapter.holder.path)!r} is of {', '.join(adapter.kinds)}, which has no "
            f"rank that could be cut to {rank}: only LoRA has."
        )
    return replace(adapter, sha256=sha256, changes=changes) if cut else adapter


def _grouped(where: str, tensors: Mapping[str, Array]) -> tuple[dict[str, Group], list[str]]:
    groups: dict[str, Group] = {}
    unknown = []
    for key, tensor in tensors.items():
        kind = refused_kind(key)
        if kind is not None:
            raise AdapterError(
                f"{where}: tensor {key[:120]!r} is of {kind}, which is not applied here. LoRA, "
                "LoCon, LoHa, LoKr, DoRA, IA3 and full differences are."
            )
        found = split_key(key)
        if found is None:
            unknown.append(key)
            continue
        stem, part = found
        group = groups.setdefault(stem, Group(stem))
        if part in group.parts:
            raise AdapterError(f"{where}: {group.keys[part]!r} and {key!r} say the same twice.")
        group.parts[part], group.keys[part] = tensor, key
    return groups, unknown


def _choose(where: str, group: Group, targets: Sequence[Target]) -> Target:
    """Return the target that a group's matrix fits, where networks share names."""
    if len(targets) == 1:
        return targets[0]
    fitting = [target for target in targets if group.fits(target)]
    if len(fitting) > 1:
        raise AdapterError(
            f"{where}: {group.first_key!r} fits {' and '.join(t[0].network for t in fitting)} "
            "alike, and the file does not say which it is for."
        )
    return fitting[0] if fitting else targets[0]


def _about_unknown(where: str, unknown: Sequence[str], count: int, hint: str) -> str:
    few = ", ".join(repr(key[:120]) for key in unknown[:3])
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        f"{where}: {len(unknown)} of its {count} tensors belong to nothing in this bundle's "
        f"networks: {few}{more}, so that a part of it would have no effect."
        f"{hint}"
    )


def _check_numbers(where: str, group: Group) -> None:
    for part, tensor in group.parts.items():
        if tensor.dtype.kind == "i" and part not in ("alpha", "on_input"):
            raise AdapterError(
                f"{where}: tensor {group.keys[part]!r} is {tensor.dtype}; expected a float."
            )
        if not np.isfinite(to_float32(tensor)).all():
            raise AdapterError(
                f"{where}: tensor {group.keys[part]!r} holds NaN or infinity, so that the file is "
                "damaged, or its training failed. Nothing was applied."
            )
