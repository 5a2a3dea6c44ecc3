"""Dumps that are asked for together share a snapshot. A later dump must not share it."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.native import has_unread
from support.waiting import wait_until
from support.wire import Client, post

from workerserver import WorkerServer
from workerserver.handlers import stacks
from workerserver.http.registry import Registry
from workerserver.server import Limits


def appears_later(done: threading.Event) -> None:
    done.wait()


def test_a_later_dump_is_a_later_snapshot(short_path: Path) -> None:
    """Held up by ``hold``, the loop finds ``first`` and ``between`` in its queue. While it serves
    ``between`` a thread starts and then a dump is asked for. It comes in within the same turn,
    after the snapshot that ``first`` got, and has to show that thread."""
    path = str(short_path / "s")
    holding, release, done = threading.Event(), threading.Event(), threading.Event()
    thread = threading.Thread(target=appears_later, args=(done,))
    late = socket.socket(socket.AF_UNIX)

    def hold() -> str:
        holding.set()
        release.wait(30)
        return "held"

    def between() -> str:
        thread.start()
        late.sendall(post("dump_traceback?mode=gil"))
        queued(late)
        return "done"

    def queued(sock: socket.socket) -> None:
        """The I/O thread has put what *sock* sent into the loop's queue: it has read it, and it
        lets go of the lock, which the number of connections takes, only behind that."""
        wait_until(lambda: not has_unread(sock))
        assert server.connections == 4

    registry = Registry()
    stacks.register(registry)
    for function in (hold, between):
        registry.register(function.__name__, function, inline=True)
    try:
        with (
            # The loop may be held up for long. The requests in its queue stay the loop's.
            WorkerServer(
                path,
                registry=registry,
                transport="native",
                limits=Limits(gil_deadline=100.0, gil_timeout=100.0),
            ) as server,
            Client(path) as holder,
            Client(path) as first,
            Client(path) as middle,
            Client(path) as last,
        ):
            late.close()
            late = last.socket
            before = stacks.snapshots_taken()
            holder.send(post("hold"))
            assert holding.wait(30)
            first.send(post("dump_traceback?mode=gil"))
            queued(first.socket)
            middle.send(post("between"))
            queued(middle.socket)
            release.set()
            shown = [client.reply()[3] for client in (first, last)]
            taken = stacks.snapshots_taken() - before
    finally:
        release.set()
        done.set()
        if thread.ident is not None:
            thread.join()
    assert b"in appears_later" not in shown[0]
    assert b"in appears_later" in shown[1]
    assert taken == 2
