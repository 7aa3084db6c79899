"""Support of operations on targets: (whether, why not), and the error where there is none."""

from __future__ import annotations

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes


def of_dtype(dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether a target computes with a data type, and why not.

    Args:
        dtype: float16, bfloat16 or float32.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    if dtype not in dtypes.ELEMENT_BYTES:
        return False, f"data type {dtype} is none of {', '.join(dtypes.ELEMENT_BYTES)}"
    if cc is not None and cc < 75:
        return False, f"compute capability {cc / 10} is older than 7.5"
    if dtype == "bfloat16" and cc is not None and cc < 80:
        return False, f"compute capability {cc / 10} has no bfloat16 arithmetic; 8.0 and newer do"
    return True, ""


def require(support: tuple[bool, str], op: str, hint: str = "Keep the plain operation.") -> None:
    """Raise unless an operation is supported.

    Raises:
        ConfigError: it is not; the message has the reason.
    """
    supported, reason = support
    if not supported:
        raise ConfigError(f"{op}: {reason}. {hint}")
