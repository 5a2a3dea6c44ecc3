"""A process at its limits."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_threads() -> Iterator[None]:
    """pthread_create fails: a thread's stack would not fit into the address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    # Room for small objects but not for a stack, which by default has 8 MiB.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 20), before[1]))
    try:
        probe = threading.Thread(target=int)
        try:
            probe.start()
        except RuntimeError:
            yield
        else:
            probe.join()
            raise AssertionError("a thread could start")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
