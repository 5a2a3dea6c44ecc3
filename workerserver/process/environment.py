"""Numbers from the environment."""

from __future__ import annotations

import math
import os

__all__ = ["seconds"]


def seconds(name: str, default: float) -> float:
    """The variable *name* in seconds; *default* if the variable is not set or empty.

    Any other value has to be a finite number of at least 0, else ValueError names the variable.
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
