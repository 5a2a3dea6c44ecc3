"""A rank without torch that tells its port, and trains. ``HANG``: the rank that waits for itself by
a lock that it holds."""

from __future__ import annotations

import os
import threading
import time

from workerserver import heartbeat, worker_main
from workerserver.server import running_server

LOCK = threading.Lock()


def load_shard() -> None:
    with LOCK:
        print("never")


def restore() -> None:
    with LOCK:
        load_shard()


@worker_main()
def main() -> None:
    server = running_server()
    assert server is not None
    print(server.port, flush=True)
    for step in range(1_000_000):
        heartbeat(step)
        time.sleep(0.02)
        if step == 20 and os.environ["RANK"] == os.environ["HANG"]:
            restore()


if __name__ == "__main__":
    main()
