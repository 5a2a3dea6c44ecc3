"""One rank of a real gloo job that does what a simulated one does: ``play.py JOB ours|torch …``.

``record.py`` starts the ranks. Each operation of the program is carried out by torch, in the line
of user code that stands for its kind.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from simulator.job.program import FOREVER, Job, Op, Strand, from_dict
from torch.utils.data import DataLoader

import workerserver

#: Seconds that stand for good.
LONG = 600.0
TIMEOUT = timedelta(seconds=LONG)
DTYPES = {"Float": torch.float32, "BFloat16": torch.bfloat16, "Long": torch.int64}
DTYPES["Byte"] = torch.uint8


class Stuck:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


class Process:
    """What the threads of one rank share."""

    def __init__(self, job: Job, rank: int, folder: Path) -> None:
        self.job, self.rank, self.folder = job, rank, folder
        self.groups: list[Any] = []
        self.locks: dict[str, threading.Lock] = {}
        self.events: dict[str, threading.Event] = {}
        self.queues: dict[str, queue.Queue[int]] = {}
        self.files: dict[str, Any] = {}
        self.threads: dict[str, threading.Thread] = {}
        self.futures: dict[str, concurrent.futures.Future[None]] = {}
        self.guard = threading.Lock()
        self.beat = -1

    def shared(self, table: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
        with self.guard:
            return table.setdefault(key, make())

    def start(self, plan: list[Strand]) -> None:
        main = None
        for strand in plan:
            if strand.name == "main":
                main = strand
                continue
            future: concurrent.futures.Future[None] = concurrent.futures.Future()
            self.futures[strand.name] = future
            thread = threading.Thread(target=self.play, args=(strand,), daemon=True)
            thread.name = strand.name
            self.threads[strand.name] = thread
        for thread in self.threads.values():
            thread.start()
        if main is not None:
            self.play(main)
        time.sleep(LONG)

    def play(self, strand: Strand) -> None:
        works: dict[str, list[Any]] = {}
        for op in strand.ops:
            self.do(op, works)
        while strand.loop is not None:
            for op in strand.ops[strand.loop :]:
                self.do(op, works)

    def do(self, op: Op, works: dict[str, list[Any]]) -> None:
        getattr(self, "do_" + op.kind)(op, works)

    # --- alone

    def do_beat(self, op: Op, works: Any) -> None:
        self.beat += 1
        workerserver.heartbeat(self.beat)

    def do_compute(self, op: Op, works: Any) -> None:
        end = time.monotonic() + min(op.seconds, LONG)
        while time.monotonic() < end:
            sum(range(1000))

    def do_sleep(self, op: Op, works: Any) -> None:
        time.sleep(min(op.seconds, LONG))

    def do_data(self, op: Op, works: Any) -> None:
        if op.seconds != FOREVER:
            time.sleep(op.seconds)
            return
        for _ in DataLoader(Stuck(LONG), num_workers=1, multiprocessing_context="fork"):
            pass

    def do_write(self, op: Op, works: Any) -> None:
        if op.seconds != FOREVER:
            time.sleep(op.seconds)
            return
        path = self.folder / f"checkpoint{self.rank}"
        os.mkfifo(path)
        keeps_it_open = os.open(path, os.O_RDWR)
        with path.open("wb") as file:
            torch.save({"weights": torch.zeros(1 << 20)}, file)
        os.close(keeps_it_open)

    def do_child(self, op: Op, works: Any) -> None:
        subprocess.run(["sleep", str(min(op.seconds, LONG))], check=False)

    def do_open(self, op: Op, works: Any) -> None:
        path = self.folder / f"fifo{self.rank}"
        os.mkfifo(path)
        with path.open("rb"):
            pass

    # --- together

    def tensor(self, op: Op) -> torch.Tensor:
        return torch.ones(op.shape, dtype=DTYPES[op.dtype or "Float"])

    def do_call(self, op: Op, works: Any) -> None:
        group, tensor = self.groups[op.group], self.tensor(op)
        size = dist.get_world_size(group)
        first = self.job.groups[op.group].ranks[0]
        if op.name == "all_reduce":
            dist.all_reduce(tensor, group=group)
        elif op.name == "broadcast":
            dist.broadcast(tensor, first, group=group)
        elif op.name == "barrier":
            dist.barrier(group=group)
        elif op.name == "all_gather":
            dist.all_gather([torch.zeros_like(tensor) for _ in range(size)], tensor, group=group)
        elif op.name == "all_gather_into_tensor":
            whole = torch.zeros(size * op.shape[0], *op.shape[1:], dtype=tensor.dtype)
            dist.all_gather_into_tensor(whole, tensor, group=group)
        elif op.name == "reduce_scatter_tensor":
            whole = torch.ones(size * op.shape[0], *op.shape[1:], dtype=tensor.dtype)
            dist.reduce_scatter_tensor(tensor, whole, group=group)
        elif op.name == "all_gather_object":
            dist.all_gather_object([None] * size, "x", group=group)
        elif op.name != "all_gather_object data":  # the second half of the one before
            raise ValueError(op.name)

    def do_issue(self, op: Op, works: dict[str, list[Any]]) -> None:
        group, tensor = self.groups[op.group], self.tensor(op)
        size = dist.get_world_size(group)
        first = self.job.groups[op.group].ranks[0]
        if op.name == "broadcast":
            work = dist.broadcast(tensor, first, group=group, async_op=True)
        elif op.name == "all_gather":
            parts = [torch.zeros_like(tensor) for _ in range(size)]
            work = dist.all_gather(parts, tensor, group=group, async_op=True)
        elif op.name == "all_gather_into_tensor":
            whole = torch.zeros(size * op.shape[0], *op.shape[1:], dtype=tensor.dtype)
            work = dist.all_gather_into_tensor(whole, tensor, group=group, async_op=True)
        elif op.name == "reduce_scatter_tensor":
            whole = torch.ones(size * op.shape[0], *op.shape[1:], dtype=tensor.dtype)
            work = dist.reduce_scatter_tensor(tensor, whole, group=group, async_op=True)
        else:
            work = dist.all_reduce(tensor, group=group, async_op=True)
        works[op.key] = [work]

    def do_wait(self, op: Op, works: dict[str, list[Any]]) -> None:
        for work in works.pop(op.key):
            work.wait()

    def do_poll(self, op: Op, works: dict[str, list[Any]]) -> None:
        for work in works.pop(op.key):
            while not work.is_completed():
                time.sleep(0.01)

    def do_send(self, op: Op, works: Any) -> None:
        dist.send(self.tensor(op), op.peer)

    def do_recv(self, op: Op, works: Any) -> None:
        dist.recv(self.tensor(op), op.peer)

    def do_isend(self, op: Op, works: dict[str, list[Any]]) -> None:
        works[op.key] = [dist.isend(self.tensor(op), op.peer)]

    def do_irecv(self, op: Op, works: dict[str, list[Any]]) -> None:
        works[op.key] = [dist.irecv(self.tensor(op), op.peer)]

    def do_batch(self, op: Op, works: dict[str, list[Any]]) -> None:
        parts = [
            dist.P2POp(getattr(dist, part.kind), self.tensor(part), part.peer) for part in op.parts
        ]
        works[op.key] = dist.batch_isend_irecv(parts)

    def do_monitored(self, op: Op, works: Any) -> None:
        dist.monitored_barrier(group=self.groups[op.group])

    def do_new_group(self, op: Op, works: Any) -> None:
        dist.new_group(list(range(self.job.world)), timeout=TIMEOUT)

    def do_store_wait(self, op: Op, works: Any) -> None:
        dist.distributed_c10d._get_default_store().wait([op.key], TIMEOUT)

    # --- between threads and processes

    def do_lock(self, op: Op, works: Any) -> None:
        self.shared(self.locks, op.key, threading.Lock).acquire()

    def do_unlock(self, op: Op, works: Any) -> None:
        self.locks[op.key].release()

    def do_get(self, op: Op, works: Any) -> None:
        self.shared(self.queues, op.key, queue.Queue).get()

    def do_put(self, op: Op, works: Any) -> None:
        self.shared(self.queues, op.key, queue.Queue).put(1)

    def do_await(self, op: Op, works: Any) -> None:
        self.shared(self.events, op.key, threading.Event).wait()

    def do_notify(self, op: Op, works: Any) -> None:
        self.shared(self.events, op.key, threading.Event).set()

    def do_join(self, op: Op, works: Any) -> None:
        self.threads[op.key].join()

    def do_result(self, op: Op, works: Any) -> None:
        self.futures[op.key].result()

    def do_flock(self, op: Op, works: Any) -> None:
        self.files[op.key] = (self.folder / op.key).open("w")
        fcntl.flock(self.files[op.key], fcntl.LOCK_EX)

    def do_unflock(self, op: Op, works: Any) -> None:
        self.files.pop(op.key).close()


def main() -> None:
    file, kind, path, folder = sys.argv[1:5]
    job, rank = from_dict(json.loads(Path(file).read_text())), int(os.environ["RANK"])
    process = Process(job, rank, Path(folder))
    dist.init_process_group("gloo", timeout=TIMEOUT)
    process.groups.append(dist.group.WORLD)
    for group in job.groups[1:]:
        process.groups.append(dist.new_group(list(group.ranks), group_desc=group.desc))
    if kind == "ours":
        server: Any = workerserver.WorkerServer(path)
    else:
        server = torch._C._distributed_c10d._WorkerServer(path)
    process.start(job.ranks[rank].strands)
    del server


if __name__ == "__main__":
    main()
