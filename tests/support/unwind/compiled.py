"""A small library of C++, and where the linker has put its function."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["PLAIN", "REFILL", "offset_of", "refill_library"]

#: ``cache::Shelf::refill(int)`` and ``plain_one``.
REFILL, PLAIN = "_ZN5cache5Shelf6refillEi", "plain_one"
SOURCE = """
namespace cache { struct Shelf { int refill(int count); };
int Shelf::refill(int count) { return count + 1; } }
extern "C" int plain_one(int x) { return x * 3; }
"""


def refill_library(folder: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    (folder / "refill.cpp").write_text(SOURCE)
    made = folder / "librefill.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-Wl,--build-id", "refill.cpp", "-o", str(made)],
        cwd=folder,
        check=True,
        timeout=60,
    )
    return made


def offset_of(library: Path, name: str = REFILL) -> int:
    """The address of *name* in the file, told by the linker."""
    loaded = ctypes.CDLL(str(library))
    address = ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(library)) and " 00000000 " in line:
            return (address or 0) - int(line.split("-")[0], 16)
    raise AssertionError("not mapped")
