"""A pool in a process that may start no more threads. ``python pool_limit.py first|later``."""

from __future__ import annotations

import json
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.waiting import wait_until

from workerserver.process.pool import DaemonPool


@contextmanager
def no_threads() -> Iterator[None]:
    """pthread_create fails: a thread's stack would not fit into the address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    # Room for small things, none for a stack, which is 8 MiB unless set otherwise.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 20), before[1]))
    try:
        probe = threading.Thread(target=int)
        try:
            probe.start()
        except RuntimeError:
            yield
        else:
            probe.join()
            raise AssertionError("a thread started all the same")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
