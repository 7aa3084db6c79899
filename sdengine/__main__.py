"""Process of the command, as `python -m sdengine` and the installed script start it."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command and return its exit status."""
    try:
        # Here, because Ctrl-C may come while it is imported.
        from sdengine.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written was left behind.", 130)
    except ImportError as error:
        return _fail(f"the installation is incomplete: {error}.", 1)


def _fail(message: str, status: int) -> int:
    if sys.stderr is not None:
        print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
