"""Instruction set whose kernels run: the fastest, or what SDENGINE_ISA names."""

from __future__ import annotations

import os

from sdengine import _native
from sdengine.errors import ConfigError

ISA_VARIABLE = "SDENGINE_ISA"


def chosen_isa() -> str:
    """Return what SDENGINE_ISA names, or else the fastest that this processor has.

    Raises:
        ConfigError: the processor or this build lacks the one that is named.
    """
    named, known = os.environ.get(ISA_VARIABLE, ""), _native.instruction_sets()
    if named and named not in known:
        raise ConfigError.for_field(ISA_VARIABLE, named, ", ".join(known), "Or unset it.")
    return named or known[0]
