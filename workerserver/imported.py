"""Whether the process has imported something: the way to use torch without ever importing it."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["imported"]


def imported(name: str) -> ModuleType | None:
    """The module *name* if its import is complete, else None.

    A module stands in ``sys.modules`` while its import still runs. To use it then can make that
    import fail, and the import is the training script's.
    """
    module = sys.modules.get(name)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return module
