"""A process that measures its own server's cost.

Use: ``python -m benchmarks.subjects.footprint_probe KIND SOCKET``.

KIND is ``ours``, ``ours-torch`` (torch is imported first, as in a worker) or ``torch`` (torch's
``_WorkerServer``). The process imports and starts the server, prints a line of JSON, and waits for
an empty line of input. Meanwhile the benchmark sends requests. Then the process measures again.
With our server, it starts and stops the server some more times. At the end it prints a second line
of JSON. Times are in ms, memory is in KiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PDEATHSIG = 1  # prctl's
STARTS = 5
#: Time from a start until all parts of the server exist: torch's own server starts later.
SETTLE_SECONDS = 0.5
PING = b"POST /handler/ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def state() -> dict[str, Any]:
    """Memory, names of the threads, number of descriptors."""
    memory = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        memory[name] = int(value.split()[0])
    threads = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda task: int(task.name)):
        with contextlib.suppress(OSError):  # the thread has just ended
            threads.append((task / "comm").read_text().strip())
    return {
        "pss": memory["Pss"],
        "dirty": memory["Private_Dirty"],
        "threads": threads,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # without listdir's own
    }


def own_modules() -> dict[str, int]:
    """KiB of this process's mappings of our compiled modules: resident, and private dirty."""
    found = {"Rss": 0, "Private_Dirty": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # the line that begins a mapping: addresses, rights, ..., the file
            ours = "/workerserver/" in line and line.endswith(".so")
        elif ours and name in found:
            found[name] += int(value.split()[0])
    return {"resident": found["Rss"], "dirty": found["Private_Dirty"]}


def ping(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(PING)
        answer = b""
        while b"pong" not in answer:
            more = client.recv(4096)
            if not more:
                raise RuntimeError(f"no pong: {answer!r}")
            answer += more


def timed(start: Callable[[], Any], path: str) -> tuple[Any, dict[str, float]]:
    """The result of *start*, and times in ms: until *start* returned, until the answer to a ping,
    and the processor time of all threads until then."""
    used, began = time.process_time(), time.perf_counter()
    server = start()
    returned = time.perf_counter()
    ping(path)
    times = {"start": returned - began, "ping": time.perf_counter() - began}
    times["cpu"] = time.process_time() - used
    return server, {name: seconds * 1e3 for name, seconds in times.items()}


def main() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    kind, path = sys.argv[1:]
    if kind != "ours":
        import torch
        import torch.distributed  # noqa: F401
    state()  # the first look costs memory itself
    report: dict[str, Any] = {"before": state()}
    began = time.perf_counter()
    if kind == "torch":
        from torch._C import _distributed_c10d as c10d

        started = time.perf_counter()
        server, report["first"] = timed(lambda: c10d._WorkerServer(path), path)
    else:
        import workerserver  # noqa: F401

        report["package"] = (time.perf_counter() - began) * 1e3
        from workerserver import WorkerServer

        started = time.perf_counter()
        report["imported"] = state()
        server, report["first"] = timed(lambda: WorkerServer(path), path)
    time.sleep(SETTLE_SECONDS)
    report["started"] = state()
    report["modules"] = (started - began) * 1e3
    print(json.dumps(report), flush=True)
    sys.stdin.readline()
    report = {"polled": state(), "own": own_modules(), "later": []}
    if kind != "torch":
        for _ in range(STARTS):
            server.shutdown()
            server, times = timed(lambda: WorkerServer(path), path)
            report["later"].append(times)
    print(json.dumps(report), flush=True)
    os._exit(0)  # a normal exit with torch's server alive aborts


if __name__ == "__main__":
    main()
