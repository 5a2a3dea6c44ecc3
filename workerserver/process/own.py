"""Which files and modules are this package's own.

Asked about this process and about others: a frame of a worker may come from a checkout or from
site-packages, on a machine whose folders nobody here knows. The answer rests on what the package
holds where it runs, so a module that is added or moved is known at once.
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from types import ModuleType

__all__ = ["PACKAGE", "is_part_of", "own_path"]

PACKAGE = __name__.partition(".")[0]

_INSTALLED = re.compile(rf"(?:.*/)?(?:site|dist)-packages/{PACKAGE}/(.+)\Z", re.DOTALL)
#: Greedy: a checkout is often called like the package, and the package is the inner one.
_ANYWHERE = re.compile(rf"(?:.*/)?{PACKAGE}/(.+)\Z", re.DOTALL)
_SOURCES = (".py", ".pyx")


def is_part_of(package: ModuleType, module: str | None) -> bool:
    """Whether the module called *module* is *package* or inside it."""
    return module is not None and f"{module}.".startswith(f"{package.__name__}.")


def own_path(file: str) -> str | None:
    """The place of *file*, as a frame names it, inside this package (``http/access.py``); None
    for a file of anybody else.

    Compiled code names its source, which an installed package need not hold: the parts of an
    extension module count as ours by the folder that the module is in.
    """
    for folder in _folders():
        if file.startswith(folder):
            return file[len(folder) :]
    if match := _INSTALLED.match(file):
        return match[1]
    match = _ANYWHERE.match(file)
    if match is None:
        return None
    modules, compiled = _contents(_folders())
    path = match[1]
    base, suffix = os.path.splitext(path)
    if suffix not in _SOURCES:
        return None
    ours = base in modules or (suffix == ".pyx" and os.path.dirname(path) in compiled)
    return path if ours else None


def _folders() -> tuple[str, ...]:
    return tuple(f"{folder}/" for folder in sys.modules[PACKAGE].__path__)


@lru_cache(maxsize=4)
def _contents(folders: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """The modules (``http/access``), and the folders that hold an extension module."""
    modules, compiled = set(), set()
    for top in folders:
        for folder, _, names in os.walk(top):
            inside = os.path.relpath(folder, top)
            inside = "" if inside == "." else inside
            for name in names:
                base, _, suffix = name.partition(".")
                if suffix in ("py", "pyx", "pyc"):
                    modules.add(os.path.join(inside, base))
                elif suffix.endswith("so"):
                    compiled.add(inside)
    return frozenset(modules), frozenset(compiled)
