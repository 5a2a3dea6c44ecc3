"""Numbers from the environment."""

from __future__ import annotations

import math
import os

__all__ = ["number", "seconds"]


def seconds(name: str, default: float) -> float:
    """The variable *name* in seconds; *default* if the variable is not set or empty.

    Any other value has to be a finite number of at least 0, else ValueError names the variable.
    """
    return number(name, default, "number of seconds")


def number(name: str, default: float, kind: str = "number of at least 0") -> float:
    """The variable *name*; *default* if the variable is not set or empty. ValueError, which names
    the variable, if it is no finite number of at least 0."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a {kind}, not {text!r}")
    return value
