"""The hub's lists: which connections are in them after drops, refusals and new listeners."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.native import PING, PONG, Recorder, Rig, has_unread, receive, rest
from support.waiting import wait_until

from workerserver.native._bridge import NativeHub
from workerserver.process._pulse import gil_watch, watch_switch


@pytest.fixture
def rigs(no_leaks: None) -> Iterator[Any]:
    """``rigs(**limits)``: a Rig, closed after the test."""
    made: list[Rig] = []

    def make(**limits: float) -> Rig:
        made.append(Rig("uvloop-unix", Recorder, **limits))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_a_dropped_connection_gets_no_protocol(rigs: Any) -> None:
    """The I/O thread frees a dropped connection that no protocol has seen. So the loop must not
    find it in the queue, even if the loop looks before the I/O thread wakes up."""
    rig = rigs()
    for _ in range(30):
        busy, free = threading.Event(), threading.Event()

        def drop(busy: threading.Event = busy, free: threading.Event = free) -> None:
            busy.set()
            assert free.wait(20)
            rig.listener.drop(True)
            rig.hub._turn()

        dropped: Future[None] = asyncio.run_coroutine_threadsafe(call(drop), rig.loop)
        assert busy.wait(20)
        with rig.client() as sock:
            sock.sendall(b"hello")
            wait_until(lambda s=sock: not has_unread(s))  # type: ignore[misc]
            free.set()
            dropped.result(20)
            assert rest(sock) == b""
    assert rig.protocols == []


async def call(function: Any) -> None:
    function()


def test_the_protocol_may_write_again_after_a_refusal(rigs: Any) -> None:
    """The client reads its reply, and asks again, while the loop is held. The request is refused;
    that the protocol may write again still reaches it."""
    rig = rigs(gil_deadline=0.1, gil_timeout=0.2)
    sock, protocol = rig.open(receive=4096)
    body = b"x" * (4 << 20)

    def reply() -> None:
        protocol.transport.write(body)
        assert protocol.paused
        protocol.transport.want_bytes(True)

    with sock:
        rig.call(reply)
        free = rig.hold()
        assert receive(sock, len(body)) == body
        sock.sendall(b"POST /handler/fr_trace_json HTTP/1.1\r\nHost: x\r\n\r\n" + PING)
        assert receive(sock, 12) == b"HTTP/1.1 503"
        data = b""
        while not data.endswith(PONG):
            data += sock.recv(4096)
        free.set()
        wait_until(lambda: not protocol.paused)


class Watched(Rig):
    def _start_hub(self) -> NativeHub:
        hub = NativeHub(self.loop, 0.02)
        hub.thread.start()
        return hub


def test_the_gil_watch_goes_on_with_a_later_listener(no_leaks: None) -> None:
    """A hub that had no listener for a while asks for turns again as soon as it has one."""
    watch_switch(True)
    try:
        rig = Watched("uvloop-unix")
        first = gil_watch()[0]
        wait_until(lambda: gil_watch()[0] != first)
        rig.call(rig.listener.close)
        while changes(last := gil_watch()[0]):
            pass
        rig.listener = rig.call(lambda: rig.listen(rig.hub, rig.socket))
        wait_until(lambda: gil_watch()[0] != last)
        rig.close()
    finally:
        watch_switch(False)


def changes(last: float | None) -> bool:
    """Whether another turn comes while twenty of them would be due."""
    time.sleep(0.4)
    return gil_watch()[0] != last
