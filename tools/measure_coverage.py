"""Line coverage of Python and Cython code together, from a line-tracing build of its own.

The build lies in build/coverage, so the release modules of the working tree stay as they are. Slow
tests are left out, because each line of compiled code calls the tracer. Functions that run without
the GIL can't be traced: the tracer would take the GIL, but the function may hold a lock for which
the GIL's holder waits. So the report has no lines of such functions, and nothing of native/_engine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from source_tree import ROOT, copy_sources, parts, units

#: In generated C, the mark of a line that runs without the GIL.
WITHOUT_GIL = re.compile(r"__Pyx_TraceLine\(\d+,\d+,1,")
#: In generated C, the function that runs a module's own lines.
IMPORT = re.compile(r"^static [^\n;]*\b__pyx_pymod_exec_\w+\([^;\n]*\)\n.*?^}$", re.M | re.S)


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
    """Put each unit's generated C where Cython's coverage plugin looks: beside the unit, and beside
    each part of the unit under the part's own name. The plugin finds the executable lines of each
    source in that C.

    Lines that can't be traced are left out: lines that run without the GIL, and a part's lines
    outside of functions. When the latter run, the tracer takes them for lines of the unit.
    """
    package = tree / "workerserver"
    for unit in units(package):
        source = package / (unit.replace(".", "/") + ".pyx")
        translation = tree / "build" / "cython" / "coverage" / source.relative_to(tree)
        text = WITHOUT_GIL.sub("", translation.with_suffix(".c").read_text())
        source.with_suffix(".c").write_text(text)
        for part in parts(source)[1:]:
            part.with_suffix(".c").write_text(IMPORT.sub("", text))


if __name__ == "__main__":
    sys.exit(main())
