"""Trials: a case run by the interpreter and judged, and mutants of its kernels tried on cases."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from support.ptx.faults import PtxFault
from support.ptx.mutants import Mutant
from support.ptx.triton_cases import Case
from support.ptx.triton_launches import Compiled, interpret, wanted_by
from tolerances import assert_close
from torch import Tensor

CAUGHT, MISSED, NO_EFFECT = "caught", "missed", "no effect"


def check(case: Case, compiled: dict[str, Compiled], cc: int, seed: int) -> None:
    """Run a case and compare it with fp64 and with the kernels' reference.

    Raises:
        AssertionError: it errs more than the tolerances allow, or has a PtxFault.
    """
    results = interpret(case.call, compiled, cc, case.inputs, seed)
    for result, truth, reference in zip(results, case.truths(), case.references(), strict=True):
        assert_close(case.op, case.dtype, result, truth)
        assert_close(case.op, case.dtype, result, reference)


def users(cases: Iterable[Case], cc: int) -> dict[str, list[Case]]:
    """Return the cases that launch each kernel, by its key."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        for key in wanted_by([case.call], cc):
            found.setdefault(key, []).append(case)
    return found


def some_of(mutants: Iterable[Mutant], most: int, seed: int = 0) -> list[Mutant]:
    """Return so many mutants of each kind at most, drawn by a seed."""
    kinds: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        kinds.setdefault(mutant.kind, []).append(mutant)
    draw = random.Random(seed)
    return [one for kind in kinds.values() for one in draw.sample(kind, min(most, len(kind)))]


def results_of(
    cases: Sequence[Case], compiled: dict[str, Compiled], cc: int
) -> list[tuple[Tensor, ...]]:
    """Return what the cases compute, for `try_mutant`."""
    return [interpret(case.call, compiled, cc, case.inputs) for case in cases]


def try_mutant(
    mutant: Mutant,
    key: str,
    cases: Sequence[Case],
    expected: Sequence[tuple[Tensor, ...]],
    compiled: dict[str, Compiled],
    cc: int,
) -> str:
    """Return what comes of a mutant in place of a kernel.

    Returns:
        "caught" by a fault or by a result that is not within the tolerances; "no effect" where all
        results are equal to the bit, and nothing raced or strayed: a barrier that guards nothing,
        a mask that hides what another one hides too; "missed" otherwise.
    """
    outcome = NO_EFFECT
    changed = {**compiled, key: mutant.compiled}
    for case, unchanged in zip(cases, expected, strict=True):
        try:
            results = interpret(case.call, changed, cc, case.inputs)
            for result, truth in zip(results, case.truths(), strict=True):
                assert_close(case.op, case.dtype, result, truth)
        except PtxFault as fault:
            # A change that the interpreter could not read would be no mutant.
            assert "unknown instruction" not in fault.reason, fault
            return CAUGHT
        except AssertionError:
            return CAUGHT
        if not all(torch.equal(*pair) for pair in zip(results, unchanged, strict=True)):
            outcome = MISSED
    return outcome
