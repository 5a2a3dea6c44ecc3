"""``poor_kernel.py FOLDER CALL ERRNO``: two servers where the kernel refuses one thing.

Prints as JSON what became of them, and what was logged.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
from typing import Any

from support.seccomp import forbid
from support.wire import ask, post

from workerserver import WorkerServer

#: Where glibc asks for a thread it tries two.
CALLS = {
    "x86_64": {
        "timerfd": [283], "eventfd": [290], "epoll": [291], "thread": [435, 56],
    },
    "aarch64": {
        "timerfd": [85], "eventfd": [19], "epoll": [20], "thread": [435, 220],
    },
}  # fmt: skip


def outcome(path: str, **options: Any) -> dict[str, Any]:
    try:
        with WorkerServer(path, **options) as server:
            return {"transport": server.transport, "pong": ask(path, post("ping")).text}
    except RuntimeError as error:
        return {"error": str(error), "cause": str(error.__cause__)}


def main(folder: str, call: str, error: str) -> None:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("workerserver").addHandler(handler)
    if not forbid(CALLS[platform.machine()][call], getattr(errno, error)):
        sys.exit(77)
    path = os.path.join(folder, "s")
    found = [outcome(path), outcome(path), outcome(path, transport="native")]
    print(json.dumps({"found": found, "logged": logged, "left": os.listdir(folder)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
