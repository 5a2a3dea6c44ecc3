"""Modules that this process has imported, for code that must not import them itself.

While one thread imports a package, every other thread sees it in ``sys.modules``, half filled. To
use it then answers wrongly, and to import a part of it then can make the first thread's import
fail: torch's did (2.13), when torch.autograd.profiler was imported beside ``import torch``.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["imported"]


def imported(name: str) -> ModuleType | None:
    """The module *name* if it and every package above it are imported to the end, else None.

    Never imports and never waits. A module without a spec (``__main__``, one made by hand) counts
    as complete: nobody marks it otherwise.
    """
    end = len(name)
    while end > 0:
        module = sys.modules.get(name[:end])
        # importlib sets the attribute for as long as it runs the module, and blocks others on it.
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return None
        end = name.rfind(".", 0, end)
    return sys.modules.get(name)
