"""Run the command as `python -m sdengine`."""

from __future__ import annotations

import sys

from sdengine.cli.main import main

sys.exit(main())
