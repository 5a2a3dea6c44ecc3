"""``shutdown()`` with a Python handler asleep. ``python shutdown_kind.py ours|torch PATH``."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import torch
from support.lifecycle import send

entered = threading.Event()


def asleep(request: Any, response: Any) -> None:
    entered.set()
    time.sleep(3600)


def main(kind: str, path: str) -> None:
    bindings = torch._C._distributed_c10d
    bindings._register_handler("asleep", asleep)  # ours serves torch's registry too
    if kind == "torch":
        server: Any = bindings._WorkerServer(path)
    else:
        from workerserver import WorkerServer

        server = WorkerServer(path)
    with send(path, "/handler/asleep"):
        assert entered.wait(60)
        print("in flight", flush=True)
        server.shutdown()
        print("returned", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
