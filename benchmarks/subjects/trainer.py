"""A training process that takes orders.

Use: ``python -m benchmarks.subjects.trainer SOCKET CPU WORKERS_CPU``.

The process and its server's threads stay on the processor CPU; its DataLoader's worker stays on
WORKERS_CPU. Each line of input is an order, and gets one line of JSON:

- ``serve none``, ``serve ours``, ``serve torch``: from now on only that server is up at SOCKET.
  torch's server is never stopped, because that can deadlock.
- ``serve boxed``: this process keeps a black box from now on, copied to ``SOCKET.boxes``, with a
  watchdog, as WORKERSERVER_BLACKBOX asks for one.
- ``beat NUMBER``: the answer's ``ns`` is what one of so many heartbeats takes.
- ``spent -``: ``ns``, what the server's threads have computed so far, at ``at`` by
  ``time.monotonic()``.
- ``threads N``: from now on N more threads wait, each DEPTH calls deep.
- ``train SECONDS``: trains for WARM seconds, then for SECONDS more. The answer is about the latter:
  ``steps``, ``seconds``, ``cpu`` (processor seconds of this process, with its server), and
  ``began`` and ``ended`` by ``time.monotonic()``. All are read between two steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PDEATHSIG = 1  # prctl's
#: Seconds. After this time, training has used up the batches that the worker had made before.
WARM = 0.1
DEPTH = 20


class Trainer:
    def __init__(self, path: str, workers_cpu: int) -> None:
        from benchmarks.subjects.loads import training_steps

        self.path = path
        self.workers_cpu = workers_cpu
        self.steps: Iterator[None] = training_steps()
        self.ours: Any = None
        self.torchs: Any = None
        self.boxed: Any = None

    def serve(self, kind: str) -> dict[str, Any]:
        if self.ours is not None:
            self.ours.shutdown()
            self.ours = None
        if kind == "ours":
            from workerserver import WorkerServer

            self.ours = WorkerServer(self.path)
        elif kind == "torch" and self.torchs is None:
            from torch._C import _distributed_c10d as c10d

            self.torchs = c10d._WorkerServer(self.path)
        elif kind == "boxed":
            from workerserver import worker_main

            os.environ["WORKERSERVER_STALL"] = "3600"  # it is stopped while others have their turn
            self.boxed = worker_main(blackbox=f"{self.path}.boxes")
            self.boxed.__enter__()
        return {"serving": kind}

    @staticmethod
    def beat(number: int) -> dict[str, Any]:
        from workerserver import heartbeat

        step = 0
        began = time.perf_counter_ns()
        while step < number:
            heartbeat(step)
            step += 1
        return {"ns": (time.perf_counter_ns() - began) / number}

    @staticmethod
    def spent() -> dict[str, Any]:
        spent = 0
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().startswith("workerserver"):
                spent += int((task / "schedstat").read_text().split()[0])
        return {"ns": spent, "at": time.monotonic()}

    def threads(self, count: int) -> dict[str, Any]:
        for _ in range(count):
            threading.Thread(target=wait, args=(DEPTH,), daemon=True).start()
        return {"threads": threading.active_count()}

    def train(self, wanted: float) -> dict[str, Any]:
        for child in children():  # each epoch starts a new worker
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{child}/task"):
                    os.sched_setaffinity(int(task), {self.workers_cpu})
        warm = time.perf_counter() + WARM
        while time.perf_counter() < warm:
            next(self.steps)
        began, cpu = time.monotonic(), time.process_time()
        start = now = time.perf_counter()
        steps = 0
        while now - start < wanted:
            next(self.steps)
            steps += 1
            now = time.perf_counter()
        return {
            "steps": steps,
            "seconds": now - start,
            "cpu": time.process_time() - cpu,
            "began": began,
            "ended": time.monotonic(),
        }


def wait(depth: int) -> None:
    if depth:
        wait(depth - 1)
    else:
        threading.Event().wait()


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def main() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    path, cpu, workers_cpu = sys.argv[1:]
    os.sched_setaffinity(0, {int(cpu)})
    trainer = Trainer(path, int(workers_cpu))
    for _ in range(30):
        next(trainer.steps)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        order, value = line.split()
        if order == "serve":
            answer = trainer.serve(value)
        elif order == "beat":
            answer = trainer.beat(int(value))
        elif order == "threads":
            answer = trainer.threads(int(value))
        else:
            answer = trainer.spent() if order == "spent" else trainer.train(float(value))
        print(json.dumps(answer), flush=True)
    os._exit(0)  # a normal exit with torch's server alive aborts


if __name__ == "__main__":
    main()
