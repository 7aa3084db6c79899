"""The PTX of the Triton kernels, run by the interpreter, for GPUs that need not be there.

`PYTHONPATH=tests python -m support.ptx.sweep` runs every variant, and more mutants.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")

from support.ptx.mutants import mutants_of
from support.ptx.trial import CAUGHT, MISSED, check, results_of, some_of, try_mutant, users
from support.ptx.triton_launches import Compiled, compile_all, wanted_by
from support.ptx.triton_sets import CAPABILITIES, chosen

# Which kernels run for which compute capability: every one for at least one.
RUN = {
    80: ("attention 40 causal", "attention 64", "attention 160 causal", "group norm small",
         "group norm medium NHWC", "group norm medium", "group norm large NHWC", "group norm large",
         "layer norm residual", "geglu"),
    86: ("attention 64", "group norm small", "layer norm", "geglu float32"),
    89: ("attention 80 narrow loads", "group norm medium NHWC", "layer norm residual", "geglu"),
    120: ("attention 40 causal", "attention 80 narrow loads", "attention 128 fused",
          "attention 512", "group norm small", "group norm medium NHWC", "group norm medium",
          "group norm large NHWC", "group norm large", "layer norm residual", "geglu float32"),
}  # fmt: skip
CASES = {(cc, name): chosen(cc)[name] for cc, names in RUN.items() for name in names}
# Whose mutants are tried, for which capability, and how many of each kind of each kernel.
MUTANTS = {
    "attention 40 causal": 80,
    "attention 80 narrow loads": 120,
    "group norm small": 86,
    "group norm large NHWC": 80,
    "layer norm residual": 120,
    "geglu": 89,
}
MOST_MUTANTS = 4


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    wanted: dict[str, Any] = {}
    for (cc, _), cases in CASES.items():
        wanted |= wanted_by([case.call for case in cases], cc)
    return compile_all(wanted, tmp_path_factory.mktemp("ptx"))


def test_every_kernel_runs_for_a_capability() -> None:
    assert set(RUN) == set(CAPABILITIES)
    assert {name for names in RUN.values() for name in names} == set(chosen(80))


@pytest.mark.parametrize(("cc", "name"), CASES)
def test_kernel(compiled: dict[str, Compiled], cc: int, name: str) -> None:
    """Every result is right, and nearly every instruction has run.

    One in 30 may be left out: what stands only where a loop is skipped.
    """
    for seed, case in enumerate(CASES[cc, name]):
        check(case, compiled, cc, seed)
    for key in users(CASES[cc, name], cc):
        missing = 1 - len(compiled[key].covered) / len(compiled[key].code)
        assert missing < 1 / 30, f"{missing:.1%} of the instructions did not run"


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(compiled: dict[str, Compiled], name: str) -> None:
    """No mutant computes something else unnoticed; waits and addresses are all caught.

    Barriers that the compiler did not need, and masks of what another mask hides, have no effect.
    """
    cc = MUTANTS[name]
    outcomes: Counter[tuple[str, str]] = Counter()
    for key, cases in users(CASES[cc, name], cc).items():
        expected = results_of(cases, compiled, cc)
        for mutant in some_of(mutants_of(compiled[key]), MOST_MUTANTS):
            outcome = try_mutant(mutant, key, cases, expected, compiled, cc)
            assert outcome != MISSED, f"{mutant.kind}: {mutant.what}"
            assert outcome == CAUGHT or mutant.kind in ("barrier", "mask"), mutant.what
            outcomes[mutant.kind, outcome] += 1
    kinds = {kind for kind, _ in outcomes}
    assert {"address", "mask"} <= kinds
    for kind in kinds:
        assert outcomes[kind, CAUGHT] > 0, f"no mutant of kind {kind} was caught"
