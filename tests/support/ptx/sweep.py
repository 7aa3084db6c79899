"""Sweep over every variant of every Triton kernel: its PTX run, and mutants of it tried.

PYTHONPATH=tests python -m support.ptx.sweep --capabilities 80,120 --mutants 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from support.ptx.mutants import mutants_of
from support.ptx.trial import MISSED, check, results_of, some_of, try_mutant, users
from support.ptx.triton_cases import Case
from support.ptx.triton_launches import Compiled, compile_all, wanted_by
from support.ptx.triton_sets import CAPABILITIES, all_cases

# Kernels that one compiling process makes.
_BATCH = 40


def main() -> int:
    """Run the sweep; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m support.ptx.sweep", description=__doc__)
    every = ",".join(map(str, CAPABILITIES))
    parser.add_argument("--capabilities", default=every, help="times ten, such as 80,120")
    parser.add_argument("--only", default="", help="run cases whose name contains this text")
    parser.add_argument("--mutants", type=int, default=0, help="of each kind of each kernel")
    options = parser.parse_args()
    faults = 0
    opcodes: set[str] = set()
    codes: set[tuple[str, ...]] = set()
    mutants: Counter[tuple[str, str]] = Counter()
    kernels = 0
    for cc in map(int, options.capabilities.split(",")):
        cases = [case for case in all_cases(cc) if options.only in case.name]
        using = users(cases, cc)
        kernels += len(using)
        compiled = _compiled(cases, cc)
        for case in cases:
            if all(compiled[key].code in codes for key in wanted_by([case.call], cc)):
                continue  # its instructions ran for an earlier capability
            try:
                check(case, compiled, cc, seed=1)
            except AssertionError as error:
                faults += 1
                print(f"{cc} {case.name}: {error}", flush=True)
        for key, of_kernel in using.items():
            if compiled[key].code in codes:
                continue
            instructions = compiled[key].program.kernel.instructions
            opcodes |= {instructions[index].name for index in compiled[key].covered}
            tried = some_of(mutants_of(compiled[key]), options.mutants)
            expected = results_of(of_kernel, compiled, cc) if tried else []
            for mutant in tried:
                outcome = try_mutant(mutant, key, of_kernel, expected, compiled, cc)
                mutants[mutant.kind, outcome] += 1
                if outcome == MISSED:
                    faults += 1
                    print(f"{cc} missed {mutant.kind} of {key[:200]}: {mutant.what}", flush=True)
        codes |= {one.code for one in compiled.values()}
        print(f"{cc}: {len(cases)} cases, {len(using)} kernels, {time.process_time():.0f} s")
    print(f"{kernels} kernels for {options.capabilities}, {len(codes)} different; {faults} faults")
    print(f"{len(opcodes)} instructions: {' '.join(sorted(opcodes))}")
    for (kind, outcome), count in sorted(mutants.items()):
        print(f"mutants, {kind}: {outcome} {count}")
    return 1 if faults else 0


def _compiled(cases: list[Case], cc: int) -> dict[str, Compiled]:
    wanted = wanted_by([case.call for case in cases], cc)
    keys = list(wanted)
    found: dict[str, Compiled] = {}
    for start in range(0, len(keys), _BATCH):
        with tempfile.TemporaryDirectory() as folder:
            batch = {key: wanted[key] for key in keys[start : start + _BATCH]}
            found |= compile_all(batch, Path(folder))
    return found


if __name__ == "__main__":
    sys.exit(main())
