"""A process whose threads wait in many ways, at other depths in each round.

``waiting.py SOCKET [LIBRARY] [--gloo]``: listens on SOCKET, and serves one client at a time. A line
``dump`` is answered with one line: the native dump as JSON. ``move``: all threads that can be woken
end, and new ones wait. LIBRARY: code that counts from its frame pointer (framed.c). With ``--gloo``
one more thread waits in an operation of gloo that the other rank has not entered.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import multiprocessing
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from workerserver.stacks._stacks import snapshot

libc = ctypes.CDLL(None)
SEED = random.Random(7)
#: Until two looks at all threads agree. One that still moves then is left out.
REST_SECONDS = 20.0
Block = Callable[[], object]
#: A wait, and what ends it.
Scene = tuple[Block, Block]


def down(depth: int, block: Block) -> object:
    """Calls *block*, *depth* calls further down: of Python, and of Python from C."""
    if depth == 0:
        return block()
    if depth % 3 == 0:
        return functools.partial(down, depth - 1)(block)
    if depth % 3 == 1:
        return sorted([0], key=lambda _: int(down(depth - 1, block) is None))
    return down(depth - 1, block)


def a_lock() -> Scene:
    lock = threading.Lock()
    lock.acquire()
    return lock.acquire, lock.release


def a_mutex() -> Scene:
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    return lambda: libc.pthread_mutex_lock(mutex), lambda: libc.pthread_mutex_unlock(mutex)


def a_condition() -> Scene:
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            condition.wait()

    def wake() -> None:
        with condition:
            condition.notify_all()

    return wait, wake


def a_native_condition() -> Scene:
    mutex, condition = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)

    def wait() -> None:
        libc.pthread_mutex_lock(mutex)
        libc.pthread_cond_wait(condition, mutex)
        libc.pthread_mutex_unlock(mutex)

    return wait, lambda: libc.pthread_cond_signal(condition)


def a_recv() -> Scene:
    mine, other = socket.socketpair()
    return lambda: mine.recv(1), lambda: other.send(b"x")


def a_sleep() -> Scene:
    return lambda: time.sleep(3600), lambda: None


def framed(library: ctypes.CDLL) -> Scene:
    mine, other = socket.socketpair()
    depth = SEED.randrange(1, 20)
    return lambda: library.wait_in(mine.fileno(), depth), lambda: other.send(b"x")


def peer(orders: Any, port: int) -> None:
    join(1, port)
    with contextlib.suppress(EOFError):  # the other process has ended
        while orders.recv():
            reduce()


def join(rank: int, port: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


def reduce() -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))


def other_rank() -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    mine, others = context.Pipe()
    context.Process(target=peer, args=(others, port), daemon=True).start()
    join(0, port)
    return mine


def a_gloo(orders: Any) -> Scene:
    return reduce, lambda: orders.send(True)


def come_to_rest() -> None:
    last, until = None, time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        value = json.loads(snapshot(mode="nogil", native=True).render("json"))
        now = [
            [frame["address"] for frame in thread["native"]["frames"]]
            for thread in value["threads"]
            if thread["native_id"] != threading.get_native_id()
        ]
        if now == last and all(now):
            return
        last = now
        time.sleep(0.05)


def name_of(make: Any) -> str:
    return str(getattr(make, "func", make).__name__)


def main() -> None:
    path, *rest = sys.argv[1:]
    scenes = [a_lock, a_mutex, a_condition, a_native_condition, a_recv, a_sleep]
    for each in rest:
        if each == "--gloo":
            orders = other_rank()
            scenes.append(functools.partial(a_gloo, orders))
        else:
            library = ctypes.CDLL(each)
            scenes += [functools.partial(framed, library)] * 2
    waiting: list[tuple[threading.Thread, Block]] = []

    def move() -> None:
        for _, wake in waiting:
            wake()
        for thread, _ in waiting:
            if thread.name != "a_sleep":
                thread.join()
        waiting.clear()
        for make in scenes:
            block, wake = make()
            thread = threading.Thread(
                target=down, args=(SEED.randrange(12), block), name=name_of(make), daemon=True
            )
            thread.start()
            waiting.append((thread, wake))
        come_to_rest()

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    move()
    while True:
        client, _ = listener.accept()
        with client, client.makefile("rwb") as stream:
            for order in stream:
                if order == b"move\n":
                    move()
                    stream.write(b"moved\n")
                else:
                    stream.write(snapshot(mode="nogil", native=True).render("json") + b"\n")
                stream.flush()


if __name__ == "__main__":
    main()
