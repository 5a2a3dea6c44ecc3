"""``short_of_memory.py FOLDER MIB``: a server that starts with MIB of address space left.

Prints, as JSON, how stacks are read without the GIL then, and why; and how after the limit is
lifted, once the server has noticed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from pathlib import Path

from support.waiting import becomes
from support.wire import ask, message, post

from workerserver import WorkerServer
from workerserver.stacks._stacks import prepare


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def mode(path: str) -> str | None:
    ask(path, message("GET", "/nope"))  # a turn of the loop
    return ask(path, post("dump_traceback?mode=nogil")).header("X-Traceback-Mode")


def main(folder: str, mib: str) -> None:
    path = os.path.join(folder, "s")
    threading.stack_size(256 * 1024)  # so that the server's threads fit
    WorkerServer(f"{path}0", transport="uvloop").shutdown()  # what any server needs is there now
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (int(mib) << 20), hard))
    with WorkerServer(path):
        found = {"short": mode(path), "why": prepare()}
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        becomes(lambda: mode(path) == "nogil")
        found["later"] = mode(path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
