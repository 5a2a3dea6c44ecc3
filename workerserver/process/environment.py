"""Numbers from the environment, and the environment of a process that we start."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

__all__ = ["number", "seconds", "with_absolute_paths"]

#: Files, which may be relative to the current folder.
FILES = (
    "WORKERSERVER_TOKEN_FILE",
    "WORKERSERVER_TOKEN_READ_FILE",
    "WORKERSERVER_TOKEN_PROFILE_FILE",
    "WORKERSERVER_TOKEN_ADMIN_FILE",
    "WORKERSERVER_TLS_CERT",
    "WORKERSERVER_TLS_KEY",
    "WORKERSERVER_TLS_CLIENT_CA",
)


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


def with_absolute_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """*environment* for a process that runs in another folder."""
    found = dict(environment)
    for name in FILES:
        if found.get(name):
            found[name] = os.path.abspath(found[name])
    if found.get("PYTHONPATH"):
        parts = found["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in parts if part)
    return found
