"""Modules of the installation as commands of their own."""

from __future__ import annotations

import sys

_RUN = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *words: object) -> list[str]:
    """Return the command that runs a module with some words.

    Unlike `python -m`, it never takes a package that lies in the current folder for the installed
    one, as the sources are where a benchmark is started in a checkout.
    """
    return [sys.executable, "-c", _RUN, module, *map(str, words)]
