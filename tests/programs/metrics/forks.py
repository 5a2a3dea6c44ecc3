"""A process that serves and makes steps, and its forked child, which serves too: both print the
path of their socket. ``python forks.py FOLDER``; a line of stdin, or its end, ends them."""

from __future__ import annotations

import os
import sys

from workerserver import WorkerServer, heartbeat


def serve(path: str) -> None:
    with WorkerServer(path):
        print(path, flush=True)
        sys.stdin.readline()


def main(folder: str) -> None:
    for step in range(5):
        heartbeat(step)
    with WorkerServer(os.path.join(folder, "parent")):
        print(os.path.join(folder, "parent"), flush=True)
        child = os.fork()
        if child == 0:
            serve(os.path.join(folder, "child"))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1])
