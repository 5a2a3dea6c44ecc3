"""One benchmarked server: ``python -m benchmarks.serve ours|torch SOCKET [LOAD]``.

Prints ``ready`` when it serves. LOAD is what the process does beside: ``idle`` or ``python`` (a
busy loop that competes for the GIL).
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    kind, path, load = (*sys.argv[1:], "idle")[:3]
    if kind == "torch":
        import torch

        server = torch._C._distributed_c10d._WorkerServer(path)
    else:
        import workerserver

        server = workerserver.WorkerServer(path)
    print("ready", flush=True)
    if load == "python":
        while True:
            sum(range(1000))
    while server is not None:
        time.sleep(3600)


if __name__ == "__main__":
    main()
