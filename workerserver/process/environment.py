"""Numbers from the environment."""

from __future__ import annotations

import math
import os

__all__ = ["seconds"]


def seconds(name: str, default: float) -> float:
    """The variable *name* in seconds, *default* if it is not set or empty.

    Raises ValueError, which names it, unless it is a finite number of at least 0.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}")
    return value
