"""End a long request from another thread, within one step."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import sdengine


def main(folder: Path) -> None:
    """Start a request of 1000 steps and cancel it after the third; nothing is written."""
    cancel = threading.Event()

    def stop_after_three(step: sdengine.Step) -> None:
        if step.index == 2:
            threading.Thread(target=cancel.set).start()

    with sdengine.load("demo") as engine:
        try:
            engine.generate("a star", steps=1000, cancel=cancel, progress=stop_after_three)
        except sdengine.Cancelled as error:
            print(f"{error} The folder {folder} is as it was.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
