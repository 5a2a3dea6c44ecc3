"""A server in a process whose main thread holds the GIL on command.

``python gil_scene.py FOLDER [torch] [closed]`` serves on ``FOLDER/s`` and on a TCP port, and prints
that port. With ``closed`` it also serves on ``FOLDER/closed`` and on another port, which it prints
next: there, a rule without a native form refuses every request. Each line of stdin is a command,
and gets one line of JSON:

``hold``: hold the GIL until a byte comes through the pipe ``FOLDER/release`` (prints ``"holding"``
first). ``bursts S SEED``: during S seconds, hold the GIL for 50 to 400 ms at a time. ``ran``: the
ids that the handlers have seen; the list is emptied. ``size``: resident bytes, and the number of
open descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from workerserver import WorkerServer, heartbeat, server
from workerserver._parser import ParsedRequest
from workerserver.handlers import default_registry
from workerserver.http.access import Rule, standard_rules
from workerserver.types import Forbidden

libc = ctypes.PyDLL(None)  # calls through it keep the GIL
RELEASE = os.open(os.path.join(sys.argv[1], "release"), os.O_RDWR)  # both ends: nothing waits
IDS: list[int] = []


def inline(id: int) -> str:
    IDS.append(id)
    return str(id)


def plain(id: int) -> str:
    IDS.append(id)
    return str(id)


async def coroutine(id: int) -> str:
    IDS.append(id)
    await asyncio.sleep(0)
    return str(id)


def large(size: int) -> bytes:
    return bytes(range(251)) * (size // 251)


class Closed(Rule):
    def check(self, request: ParsedRequest) -> None:
        raise Forbidden("closed today")


@contextlib.contextmanager
def closed_servers(folder: str) -> Iterator[int]:
    """Two servers that refuse every request. Gives the port of the second."""

    def rules(**options: Any) -> tuple[Rule, ...]:
        return (*standard_rules(**options), Closed())

    with mock.patch.object(server, "standard_rules", rules), contextlib.ExitStack() as stack:
        stack.enter_context(WorkerServer(os.path.join(folder, "closed")))
        tcp = stack.enter_context(WorkerServer("127.0.0.1", 0))
        yield tcp.port


def wait_for_batch() -> None:
    threading.Event().wait()


def load_checkpoint() -> None:
    libc.read(RELEASE, ctypes.create_string_buffer(1), 1)  # held here


def bursts(seconds: float, seed: int) -> int:
    """Long holds and short breaks. In idle breaks the GIL is free; in busy ones Python runs."""
    choose = random.Random(seed)
    number = 0
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        seconds = choose.choice((0.05, 0.1, 0.1, 0.15, 0.2, 0.4)) * choose.uniform(0.9, 1.1)
        libc.usleep(ctypes.c_uint(int(seconds * 1e6)))
        number += 1
        rest = choose.choice((0.0, 0.0002, 0.001, 0.005, 0.02))
        if choose.random() < 0.5:
            time.sleep(rest)
        else:
            until = time.monotonic() + rest
            while time.monotonic() < until:
                pass
    return number


def size() -> dict[str, int]:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def main(folder: str, *more: str) -> None:
    for function in (inline, plain, coroutine, large):
        default_registry.register(function.__name__, function, inline=function in (inline, large))
    if "torch" in more:
        import torch.distributed as dist

        dist.init_process_group(
            "gloo", store=dist.FileStore(os.path.join(folder, "store"), 1), rank=0, world_size=1
        )
        dist.barrier()
    threading.Thread(target=wait_for_batch, name="loader", daemon=True).start()
    heartbeat(6)
    heartbeat(7)
    with contextlib.ExitStack() as stack:
        stack.enter_context(WorkerServer(os.path.join(folder, "s")))
        say(stack.enter_context(WorkerServer("127.0.0.1", 0)).port)
        if "closed" in more:
            say(stack.enter_context(closed_servers(folder)))
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "hold":
                say("holding")
                load_checkpoint()
                say("held")
            elif command == "bursts":
                say(bursts(float(arguments[0]), int(arguments[1])))
            elif command == "ran":
                ran, IDS[:] = IDS[:], []
                say(ran)
            else:
                say(size())


if __name__ == "__main__":
    main(*sys.argv[1:])
