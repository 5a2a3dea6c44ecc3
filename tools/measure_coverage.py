"""Line coverage of Python and Cython code together, from a line-tracing build of its own.

The build lies in build/coverage, so the release modules of the working tree stay what they are.
The slow tests are left out: line tracing takes the GIL for every line of compiled code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from source_tree import ROOT, copy_sources


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="measure_coverage.py")
    parser.add_argument("--html", action="store_true", help="also write build/coverage/htmlcov")
    parser.add_argument("pytest_args", nargs="*", help="instead of: -m 'not slow and not cuda'")
    options = parser.parse_args()
    tree = ROOT / "build" / "coverage"
    tree.mkdir(parents=True, exist_ok=True)
    copy_sources(tree)
    for old in tree.glob(".coverage*"):
        old.unlink()

    environment = os.environ | {"WORKERSERVER_COVERAGE": "1", "PYTHONPATH": str(tree)}

    def run(*command: str) -> int:
        return subprocess.run(
            [sys.executable, *command], cwd=tree, env=environment, check=False
        ).returncode

    if run("setup.py", "--quiet", "build_ext", "--inplace"):
        return 1
    place_translations(tree)
    chosen = options.pytest_args or ["-m", "not slow and not cuda"]
    tests = run("-m", "coverage", "run", "-m", "pytest", *chosen)
    run("-m", "coverage", "combine", "--quiet")
    if options.html:
        run("-m", "coverage", "html", "--quiet", "--fail-under=0")
    # Its exit status is 2 below the threshold of pyproject.toml.
    report = run("-m", "coverage", "report")
    return tests or report


def place_translations(tree: Path) -> None:
    """Cython's coverage plugin looks for the generated C beside the extension module."""
    for translation in (tree / "build" / "cython" / "coverage").rglob("*.c"):
        place = translation.relative_to(tree / "build" / "cython" / "coverage")
        shutil.copy2(translation, tree / place)


if __name__ == "__main__":
    sys.exit(main())
