"""Faults: what a GPU would do wrong, or do at random, or what the interpreter does not know."""

from __future__ import annotations


class PtxFault(AssertionError):
    """Tell what is wrong with a program, and where: the instruction's text and a thread."""

    def __init__(self, reason: str, instruction: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {instruction}" if instruction else reason)
