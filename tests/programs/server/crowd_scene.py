"""A server with a token, 1,024 descriptors, and strangers who connect and say nothing.

    crowd_scene.py native|uvloop|tls FOLDER

Serves on a Unix socket and two ports, then waits for lines on stdin. ``open N``: training opens N
files and closes them, and the answer says how many could be opened. ``count``: descriptors in use,
and connections of each server.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from support.served import server_context

from workerserver import WorkerServer


def main(kind: str, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    more: dict[str, Any] = {"transport": "uvloop" if kind == "uvloop" else None}
    tls: dict[str, Any] = {"tls": server_context()} if kind == "tls" else more
    servers = [
        WorkerServer(f"{folder}/s", token="secret", **more),
        WorkerServer("127.0.0.1", 0, token="secret", **tls),
        WorkerServer("127.0.0.1", 0, token="secret", **tls),
    ]
    print(json.dumps([server.port for server in servers]), flush=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        answer: list[int] = []
        if word == "open":
            files = []
            try:
                for _ in range(int(number)):
                    files.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            answer = [len(files)]
            for fd in files:
                os.close(fd)
        elif word == "hold":
            answer = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(number))][:1]
        elif word == "count":
            answer = [len(list(Path("/proc/self/fd").iterdir()))]
            answer += [server.connections for server in servers]
        print(json.dumps(answer), flush=True)
    for server in servers:
        server.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
