"""Threads of torch: no more than the control group's quota gives, of which torch knows nothing."""

from __future__ import annotations

import os

import torch

from sdengine.machine import usable_processors


def keep_to_quota() -> None:
    """Have torch take no more threads than a quota is good for, unless its user chose a number."""
    most = usable_processors().threads_by_quota
    if most is not None and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > most:
        torch.set_num_threads(most)
