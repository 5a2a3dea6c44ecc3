"""Runs tests with a debug build: assertions in C, and the invariants of the native engine.

``run_debug.py [PYTEST ARGUMENTS]``; without arguments, the tests of the folders below.

The build lies in build/debug, so the release modules of the working tree stay as they are. A broken
invariant ends its process. The messages of such processes are printed last.
"""

from __future__ import annotations

import os
import subprocess
import sys

from source_tree import ROOT, build, copy_sources

#: Folders with tests of code that runs on the native I/O thread or beside it.
TESTS = ("http", "native", "server", "stacks")


def main() -> int:
    tree = ROOT / "build" / "debug"
    tree.mkdir(parents=True, exist_ok=True)
    copy_sources(tree)
    if not build(tree, DEBUG="1"):
        return 1
    chosen = sys.argv[1:] or [f"tests/{name}" for name in TESTS]
    # Messages go to a file: pytest captures stderr, and loses the text if the process dies.
    log = tree / "violations.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "WORKERSERVER_DEBUG": "1",
        "WS_DEBUG_LOG": str(log),
    }
    status = subprocess.run(command, cwd=tree, env=environment, check=False).returncode
    if log.exists():
        print(log.read_text(), end="")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
