"""A server of uvloop's transport in a process with 256 descriptors. ``burst_scene.py SOCKET``.

Prints ``ready``, and for each line that it reads how many files training could still open. The
handler ``stand`` keeps the loop busy, so that all who connect meanwhile are accepted at one time.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from workerserver import Limits, WorkerServer, handler


@handler("stand")
async def stand() -> str:
    time.sleep(1.0)
    return "stood"


def left() -> int:
    held: list[int] = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return len(held)
    finally:
        for fd in held:
            os.close(fd)


def main() -> None:
    limits = Limits(head_timeout=600, idle_timeout=600)  # none leaves by itself
    with WorkerServer(sys.argv[1], transport="uvloop", limits=limits):
        # Later: a server has at most half as many connections as its process has descriptors.
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        print("ready", flush=True)
        for _ in sys.stdin:
            print(left(), flush=True)


if __name__ == "__main__":
    main()
