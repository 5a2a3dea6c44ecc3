"""Servers in a process of their own. ``python server_scene.py SCENE PATH``; talks over pipes."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

from support.lifecycle import ask

from workerserver import WorkerServer


def serve(path: str) -> None:
    """Serve until the process is killed or stdin ends."""
    with WorkerServer(path):
        print("serving", flush=True)
        sys.stdin.read()


def race(path: str) -> None:
    """For each line "start": try to serve, and print the result. The winner waits for a line."""
    for line in sys.stdin:
        assert line == "start\n", line
        try:
            server = WorkerServer(path)
        except RuntimeError as error:
            print(error, flush=True)
            continue
        print("served", flush=True)
        assert sys.stdin.readline() == "stop\n"
        server.shutdown()
        print("stopped", flush=True)


def count() -> tuple[int, int, int]:
    """The numbers of descriptors, threads, and objects of a server's types."""
    gc.collect()
    kinds = ("WorkerServer", "WorkerProtocol", "ServerState", "LoopThread", "Loop", "DaemonPool")
    objects = sum(type(thing).__name__ in kinds for thing in gc.get_objects())
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), objects


def leaks(folder: str) -> None:
    """200 servers of both kinds, each asked once."""

    def once(number: int) -> None:
        with WorkerServer(os.path.join(folder, str(number))) as server:
            assert ask(server.address) == (200, "pong")
        with WorkerServer("127.0.0.1", 0) as server:
            assert ask(("127.0.0.1", server.port), "/handler/dump_traceback")[0] == 200

    for number in range(5):
        once(number)
    before = count()
    for number in range(200):
        once(number)
    give_up = time.monotonic() + 30
    while (after := count()) != before and time.monotonic() < give_up:
        time.sleep(0.1)  # a thread leaves /proc a moment after its join()
    assert threading.active_count() == 1, threading.enumerate()
    print("nothing leaked" if after == before else f"{before} -> {after}")


if __name__ == "__main__":
    {"serve": serve, "race": race, "leaks": leaks}[sys.argv[1]](sys.argv[2])
