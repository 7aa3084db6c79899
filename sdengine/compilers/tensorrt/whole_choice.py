"""Whole choice: engines of a network with TensorRT's kernels, with ours, or with some of ours.

A node that is timed alone tells little of what surrounds it: what it would be fused with, in which
layout it gets its input, what a plugin's reformats cost. So the engines themselves are built and
timed, at every image size, and the fastest is the one that is shipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdengine.compilers.tensorrt.kernel_choice import NATIVE, TRITON
from sdengine.compilers.tensorrt.plugin_nodes import AUTO, KernelPlan
from sdengine.errors import EngineBuildError

_log = logging.getLogger(__name__)
MIXED = "mixed"
# The share of the native engine's time that another may take at most.
MARGIN = 0.99

# Builds an engine: (plan, path) -> what the builder told.
Build = Callable[[KernelPlan, Path], dict[str, Any]]
# Times engines: path by name -> by name, milliseconds by profile or what is wrong.
Time = Callable[[Mapping[str, Path]], Mapping[str, Mapping[str, Any]]]


def rivals(plan: KernelPlan) -> dict[str, KernelPlan]:
    """Return the plans to build engines for, native first; one plan where none was measured.

    Args:
        plan: of nodes that were timed one by one.
    """
    if plan.options.get("kernels") != AUTO:
        return {str(plan.options["kernels"]): plan}
    every = frozenset(node for choice in plan.options["kernel_choices"] for node in choice["nodes"])
    found: dict[str, KernelPlan] = {}
    for name, plugins in ((NATIVE, frozenset[str]()), (TRITON, every), (MIXED, plan.plugins)):
        if all(plugins != other.plugins for other in found.values()):
            found[name] = _with_plugins(plan, plugins)
    return found


def build_fastest(
    name: str, plans: Mapping[str, KernelPlan], output: Path, build: Build, time: Time
) -> tuple[KernelPlan, dict[str, Any]]:
    """Build an engine of each plan, keep the fastest, and return its plan and what was told of it.

    Native kernels are kept where engines cannot be timed.

    Args:
        name: of the network.
        plans: as `rivals` returns them.
        output: where the engine goes; the others' files are gone when this returns.
        build, time: do so in the builder's process.

    Raises:
        EngineBuildError: the first plan gives no engine; what else `build` raises.
    """
    several = len(plans) > 1
    paths = {k: output.with_suffix(f".{k}.engine") if several else output for k in plans}
    told: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    try:
        for kernels, plan in plans.items():
            try:
                told[kernels] = build(plan, paths[kernels])
            except EngineBuildError as error:
                if not told:
                    raise
                problems[kernels] = _line(error)
                _log.warning("%s: no engine with %s kernels: %s", name, kernels, error)
        chosen = next(iter(told))
        options: dict[str, Any] = {}
        if several:
            chosen, options = _choose(name, {k: paths[k] for k in told}, problems, time)
        kept = paths.pop(chosen)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    if kept != output:
        kept.rename(output)
    plan = plans[chosen]
    return replace(plan, options={**plan.options, **options}), told[chosen]


def _choose(
    name: str, paths: Mapping[str, Path], problems: dict[str, str], time: Time
) -> tuple[str, dict[str, Any]]:
    """Return the fastest engine's kernels, and what a manifest says about it."""
    ms: dict[str, dict[str, float]] = {}
    if len(paths) > 1:
        try:
            timed = time(paths)
        except EngineBuildError as error:
            _log.warning("%s: engines were not timed, so none has plugins: %s", name, error)
            timed = {kernels: {"problem": _line(error)} for kernels in paths}
        for kernels, found in timed.items():
            if "problem" in found:
                problems[kernels] = found["problem"][:300]
            else:
                ms[kernels] = found["ms"]
    chosen = fastest(ms)
    options: dict[str, Any] = {"kernels_chosen": chosen}
    if ms:
        options["kernel_engines"] = {
            kernels: {size: round(one, 4) for size, one in by_size.items()}
            for kernels, by_size in ms.items()
        }
    if problems:
        options["kernel_problems"] = problems
    shown = ", ".join(f"{k} {math.fsum(v.values()):.3f} ms" for k, v in ms.items())
    _log.info("%s: %s kernels are kept; over all sizes: %s", name, chosen, shown or "not timed")
    return chosen, options


def fastest(ms: Mapping[str, Mapping[str, float]]) -> str:
    """Return whose times are shortest, every image size counting alike; native in doubt.

    Args:
        ms: by kernels, then by image size.
    """
    native = ms.get(NATIVE)
    if native is None:
        return NATIVE
    shares = {kernels: _mean_share(by_size, native) for kernels, by_size in ms.items()}
    best = min(shares, key=lambda kernels: shares[kernels])
    return best if shares[best] < MARGIN else NATIVE


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _mean_share(ms: Mapping[str, float], native: Mapping[str, float]) -> float:
    """Return the geometric mean of the shares of the native engine's times."""
    return math.exp(math.fsum(math.log(ms[size] / native[size]) for size in native) / len(native))


def _with_plugins(plan: KernelPlan, plugins: frozenset[str]) -> KernelPlan:
    choices: Sequence[Mapping[str, Any]] = plan.options["kernel_choices"]
    said = [
        {**choice, "chosen": TRITON if plugins.issuperset(choice["nodes"]) else NATIVE}
        for choice in choices
    ]
    return replace(plan, plugins=plugins, options={**plan.options, "kernel_choices": said})
