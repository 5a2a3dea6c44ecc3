"""Stops in one place after the other, and prints the stacks there: a line of JSON for each scene,
{"scene", "json": dump_traceback's answer, "text": faulthandler's}.

A second thread takes both once the main thread has come to rest. A forked child is the other rank
of a gloo group, and comes late to each operation. The last scene is torch's own server's answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import faulthandler
import http.client
import json
import multiprocessing.pool
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import pin_memory

from workerserver.stacks._stacks import snapshot

FOLDER = sys.argv[1]
MAIN = threading.get_ident()
released = threading.Event()


def come_to_rest() -> None:
    """Wait until the main thread has stayed in one place for 0.1 s."""
    before: object = None
    since = time.monotonic()
    while time.monotonic() - since < 0.1:
        frame = sys._current_frames()[MAIN]
        place = (frame.f_code, frame.f_lasti)
        if place != before:
            before, since = place, time.monotonic()
        time.sleep(0.02)


def stock_text() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode()


def from_torch() -> str:
    """The answer of torch's own server to dump_traceback."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(f"{FOLDER}/torch.sock")
        connection.sendall(
            b"POST /handler/dump_traceback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        )
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.read().decode()


def scene(
    name: str, stand: Callable[[], Any], let_go: Callable[[], Any], text: Any = stock_text
) -> None:
    released.clear()

    def watch() -> None:
        try:
            come_to_rest()
            taken = snapshot().render("json").decode()
            print(json.dumps({"scene": name, "json": taken, "text": text()}), flush=True)
        finally:
            released.set()
            let_go()

    watcher = threading.Thread(target=watch, name="watcher")
    watcher.start()
    stand()
    watcher.join()


def nothing() -> None:
    pass


# ---- on its own


class Waiting(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        released.wait()
        return gradient


class Nested(torch.autograd.Function):  # type: ignore[misc]
    """Nests so deep in autograd that autograd continues in a thread of its own."""

    left = 62

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        Nested.left -= 1
        with torch.enable_grad():
            y = torch.ones(1, requires_grad=True)
            (Nested if Nested.left else Waiting).apply(y).sum().backward()
        return gradient


def backward(function: Any) -> Callable[[], None]:
    return lambda: function.apply(torch.ones(1, requires_grad=True)).sum().backward()


class Slow(Dataset[Any]):  # type: ignore[misc]
    def __init__(self, go: Any) -> None:
        self.go = go

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        self.go.wait(30)
        return torch.ones(1)


def loader() -> None:
    go = multiprocessing.Event()
    batches = iter(DataLoader(Slow(go), num_workers=2, timeout=60))
    scene("loader", lambda: next(batches), go.set)
    for _ in batches:
        pass


def pinning() -> None:
    """torch starts the pin-memory thread only with a device, but the thread's loop needs none."""
    torch.accelerator.set_device_index = lambda index: None
    done = threading.Event()
    tasks = multiprocessing.Queue()  # type: ignore[var-annotated]
    loop = threading.Thread(
        target=pin_memory._pin_memory_loop, args=(tasks, queue.Queue(), 0, done, None)
    )
    loop.start()
    scene("pinning", released.wait, nothing)
    done.set()
    tasks.put((0, None))
    loop.join()
    tasks.close()
    tasks.join_thread()


def pools() -> None:
    with (
        concurrent.futures.ThreadPoolExecutor(2) as executor,
        multiprocessing.pool.ThreadPool(1) as pool,
    ):
        executor.submit(int).result()
        pool.apply(int)
        working = executor.submit(released.wait)
        scene("pools", working.result, nothing)
        scene("pools idle", lambda: time.sleep(0.5), nothing)
        scene("pool.apply", lambda: pool.apply(time.sleep, (0.5,)), nothing)


def alone() -> None:
    lock = threading.Lock()
    lock.acquire()
    tasks: queue.Queue[int] = queue.Queue()
    scene("backward", backward(Waiting), nothing)
    scene("nested backward", backward(Nested), nothing)
    loader()
    pinning()
    pools()
    scene("lock", lock.acquire, lock.release)
    scene("queue", tasks.get, lambda: tasks.put(1))
    scene("event", released.wait, nothing)
    scene("asyncio", lambda: asyncio.run(asyncio.sleep(0.5)), nothing)
    scene("child process", lambda: subprocess.run(["sleep", "0.5"], check=True), nothing)


# ---- with another rank

tensor = torch.ones(2)


def operations() -> dict[str, Callable[[], Any]]:
    other = 1 - dist.get_rank()
    return {
        "all_reduce": lambda: dist.all_reduce(tensor),
        "barrier": dist.barrier,
        "monitored_barrier": dist.monitored_barrier,
        "broadcast_object_list": lambda: dist.broadcast_object_list([1], 1),
        "all_gather": lambda: dist.all_gather([tensor.clone(), tensor.clone()], tensor),
        "p2p": lambda: dist.send(tensor, other) if other == 0 else dist.recv(tensor, other),
        "new_group": lambda: dist.new_group([0, 1]),
        "async wait": lambda: dist.all_reduce(tensor, async_op=True).wait(),
    }


def late_rank(orders: int) -> None:
    """Do each operation after an order."""
    os.read(orders, 1)  # else the rank would sleep long between two looks at the other rank
    dist.init_process_group("gloo", f"file://{FOLDER}/store", rank=1, world_size=2)
    for operation in operations().values():
        assert os.read(orders, 1) == b"."
        operation()
    dist.barrier()
    os._exit(0)


def together(orders: int) -> None:
    os.write(orders, b".")
    dist.init_process_group("gloo", f"file://{FOLDER}/store", rank=0, world_size=2)
    for name, operation in operations().items():
        scene(name, operation, lambda: os.write(orders, b"."))
    dist.barrier()


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writable)
            late_rank(readable)
        finally:
            os._exit(1)
    os.close(readable)
    alone()
    together(writable)
    server = torch._C._distributed_c10d._WorkerServer(f"{FOLDER}/torch.sock")
    scene("torch's server", released.wait, nothing, from_torch)
    server.shutdown()
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main()
