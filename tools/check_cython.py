"""Fails if Cython has anything to say about our modules: a performance hint or a warning.

A hint in nogil code usually means that a call checks for an exception, and takes the GIL to do it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from source_tree import ROOT, copy_sources


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="workerserver-cython-") as folder:
        tree = Path(folder)
        copy_sources(tree)
        # setup.py translates for any command at all; this one compiles nothing afterwards.
        done = subprocess.run(
            [sys.executable, "setup.py", "--name"],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        translated = len(list(tree.glob("build/cython/**/*.c")))
    modules = len(list((ROOT / "workerserver").glob("*.pyx")))
    remarks = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("performance hint:", "warning:"))
    ]
    if done.returncode or remarks or translated < modules:
        print(done.stdout, end="")
        print(f"check_cython: {len(remarks)} remarks, {translated} of {modules} modules translated")
        return 1
    print(f"check_cython: {translated} modules, no remarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
