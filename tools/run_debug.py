"""Runs tests with a debug build: assertions in C, and the invariants of the native engine.

The build lies in build/debug, so the release modules of the working tree stay as they are. A broken
invariant ends the process that runs the tests, after a message on stderr.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from source_tree import ROOT, build, copy_sources

#: Folders with tests of what runs on or beside the native I/O thread.
TESTS = ("http", "native", "server", "stacks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_debug.py")
    parser.add_argument("pytest_args", nargs="*", help=f"instead of: tests/{{{','.join(TESTS)}}}")
    options = parser.parse_args()
    tree = ROOT / "build" / "debug"
    tree.mkdir(parents=True, exist_ok=True)
    copy_sources(tree)
    if not build(tree, DEBUG="1"):
        return 1
    chosen = options.pytest_args or [f"tests/{name}" for name in TESTS]
    # Not pytest's capture of descriptors: a message that ends the process would go with it.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *chosen]
    environment = os.environ | {"PYTHONPATH": str(tree), "WORKERSERVER_DEBUG": "1"}
    return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
