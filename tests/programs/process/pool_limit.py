"""A pool in a process that can't start more threads. ``python pool_limit.py first|later``."""

from __future__ import annotations

import json
import sys
import threading

from support.limits import no_threads
from support.waiting import wait_until

from workerserver.process.pool import DaemonPool


def main(when: str) -> None:
    threading.stack_size(64 << 20)
    pool = DaemonPool(threads=2)
    ran: list[int] = []
    go = threading.Event()
    begun = threading.Event()

    def job() -> None:
        begun.set()
        go.wait(30)
        ran.append(1)

    accepted = []
    if when == "later":
        assert pool.submit(job)
        assert begun.wait(30)
    with no_threads():
        accepted.append(pool.submit(job))
    assert pool.threads == (when == "later")
    accepted.append(pool.submit(job))
    go.set()
    wait_until(lambda: len(ran) == sum(accepted) + (when == "later"))
    print(json.dumps({"accepted": accepted, "ran": len(ran)}))


if __name__ == "__main__":
    main(sys.argv[1])
