"""A rank that keeps a black box, and so many runs.

kept_runs.py FOLDER KEEP
"""

from __future__ import annotations

import os
import sys

from workerserver.control_plane import serve_from_environment


def main(folder: str, keep: str) -> None:
    with serve_from_environment(blackbox=folder, keep=int(keep)):
        print(os.getpid(), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
