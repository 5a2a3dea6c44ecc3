"""One benchmarked server: ``python -m benchmarks.serve KIND SOCKET [LOAD]``.

KIND is ``ours``, ``ours-uvloop`` (its other transport) or ``torch``. Prints ``ready`` when it
serves. LOAD is what the process does beside: ``idle`` or ``python`` (a busy loop that competes for
the GIL).
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time

PDEATHSIG = 1  # prctl's


def inline() -> str:
    return "done"


def main() -> None:
    # Nobody else would end it, where the benchmark is killed while this is stopped.
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    kind, path, load = (*sys.argv[1:], "idle")[:3]
    if kind == "torch":
        import torch

        server = torch._C._distributed_c10d._WorkerServer(path)
    else:
        from workerserver import WorkerServer
        from workerserver.handlers import default_registry

        default_registry.register("inline", inline, inline=True)
        server = WorkerServer(path, transport="uvloop" if kind == "ours-uvloop" else "native")
    print("ready", flush=True)
    if load == "python":
        while True:
            sum(range(1000))
    while server is not None:
        time.sleep(3600)


if __name__ == "__main__":
    main()
