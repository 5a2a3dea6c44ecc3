"""Copies of the source tree, for builds that must not touch the working tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "build", "copy_sources", "parts", "units"]

ROOT = Path(__file__).resolve().parent.parent
#: Files that are not copied from a tree without git (an unpacked archive). With git, .gitignore
#: decides.
IGNORED = ("build", "dist", ".*", "__pycache__", "*.so", "*.egg-info", "*.pyc", "htmlcov")


def copy_sources(target: Path) -> None:
    """Copy the files that git doesn't ignore to *target*, and remove stale sources there.

    Times are kept, so a second build in the same *target* compiles only changed files. Earlier
    build outputs in *target* stay.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        names = {Path(name) for name in listed.stdout.split("\0") if name}
    else:
        names = _walk()
    names = {name for name in names if (ROOT / name).is_file()}
    for folder in {name.parts[0] for name in names if len(name.parts) > 1}:
        for old in (target / folder).rglob("*"):
            if old.suffix in {".py", ".pyi", ".pyx"} and old.relative_to(target) not in names:
                old.unlink()
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def build(tree: Path, **switches: str) -> bool:
    """Compile the modules of *tree* in place, with setup.py's *switches*. Prints the errors."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--parallel", "2"]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {f"WORKERSERVER_{name}": value for name, value in switches.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def units(package: Path) -> list[str]:
    """The dotted names of *package*'s extension modules. Their parts' names have no underscore."""
    found = (path.relative_to(package).with_suffix("") for path in package.rglob("_*.pyx"))
    return sorted(".".join(path.parts) for path in found)


def parts(unit: Path) -> list[Path]:
    """The files of one extension module: its .pyx (or .pxd), and all files included there."""
    found = [unit]
    for name in re.findall(r'^include "(.+)"$', unit.read_text(), re.M):
        found += parts(unit.parent / name)
    return found


def _walk() -> set[Path]:
    found = set()
    for path in ROOT.rglob("*"):
        name = path.relative_to(ROOT)
        ignored = any(Path(part).match(rule) for part in name.parts for rule in IGNORED)
        if path.is_file() and not ignored:
            found.add(name)
    return found
