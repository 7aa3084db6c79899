"""Kernels of the networks' expensive operations, installed as ``sdengine.kernels``.

`reference` says in plain torch what each computes. Importing this package needs neither torch nor
triton; calling a kernel does.
"""

from __future__ import annotations

from sdengine.kernels.reference import attention, group_norm_silu

__all__ = ["attention", "group_norm_silu"]
