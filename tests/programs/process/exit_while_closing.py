"""A handler shuts the server down, and the program ends while the loop still waits for another
reply. ``python exit_while_closing.py FOLDER``; prints whether the loop's thread lived to the end.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading


def last() -> None:
    names = [thread.name for thread in threading.enumerate()]
    print("workerserver-loop" in names, flush=True)


# Python calls these functions in reverse order: workerserver's own one comes before this one.
atexit.register(last)

from support.lifecycle import send  # noqa: E402
from support.waiting import wait_until  # noqa: E402

from workerserver import WorkerServer  # noqa: E402
from workerserver.http.registry import Registry  # noqa: E402

entered = threading.Event()


async def slow_to_end() -> str:
    entered.set()
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0.5)
    return "ended"


path = os.path.join(sys.argv[1], "s.sock")
registry = Registry()
registry.register("slow", slow_to_end)
server = WorkerServer(path, registry=registry)
registry.register("end", server.shutdown)
waiting = send(path, "/handler/slow")
assert entered.wait(60)
asking = send(path, "/handler/end")
wait_until(lambda: not os.path.lexists(path))
