"""The garbage collector runs at every allocation, and finalizers release the GIL. So a thread that
allocates with the hub's lock held would hang the process. On failure this process hangs for good.
"""

from __future__ import annotations

import faulthandler
import gc
import threading
import time
from typing import Any

from support.native import PING, Rig, receive

SECONDS = 1.5


class Litter:
    """Garbage in a cycle. Its finalizer releases the GIL, so that other threads run."""

    count = 0

    def __init__(self) -> None:
        self.me = self
        Litter.count += 1

    def __del__(self) -> None:
        Litter.count -= 1
        time.sleep(0.001)


def main() -> None:
    faulthandler.dump_traceback_later(30, exit=True)
    rig = Rig("uvloop-unix")
    rig.protocols.clear()
    done = threading.Event()

    def traffic() -> None:
        with rig.client() as keep:
            while not done.is_set():
                keep.sendall(PING)
                receive(keep, 42)
                with rig.client() as other:
                    other.sendall(b"for the loop")
                time.sleep(0.001)

    thread = threading.Thread(target=traffic)
    thread.start()
    gc.set_threshold(1)
    held: list[Any] = []
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        # Keep the objects: objects from a free list don't count as allocations.
        held.append([(n, n, n) for n in range(4)])
        held.append([])
        held.append([])
        # While another thread collects, nothing is collected here: the garbage would pile up.
        if Litter.count < 20:
            Litter()
        assert rig.listener.requests is not None
        assert rig.listener.connections >= 0
    gc.set_threshold(700)
    done.set()
    thread.join()
    rig.close()


if __name__ == "__main__":
    main()
