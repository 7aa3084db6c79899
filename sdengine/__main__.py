"""Run the command as `python -m sdengine`."""

from __future__ import annotations

from sdengine.cli.main import entry

entry()
