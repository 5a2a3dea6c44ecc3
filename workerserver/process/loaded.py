"""Modules that this process has imported, for code that must not import them itself.

While one thread imports a package, all other threads see the half-filled package in
``sys.modules``. A thread that uses the package then gets wrong answers. A thread that imports a
part of the package then can make the first thread's import fail: torch's import failed (2.13) when
another thread imported torch.autograd.profiler beside ``import torch``.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["imported"]


def imported(name: str) -> ModuleType | None:
    """The module *name* if it and every package above it are imported to the end, else None.

    Never imports and never waits. A module without a spec (``__main__``, or a module made by hand)
    counts as complete: it has no mark that tells whether its import is over.
    """
    end = len(name)
    while end > 0:
        module = sys.modules.get(name[:end])
        # importlib sets the attribute while it runs the module; other importers wait until then.
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return None
        end = name.rfind(".", 0, end)
    return sys.modules.get(name)
