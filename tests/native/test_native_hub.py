"""The native I/O thread as a whole: limits, deadlines, storms, forks, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.lifecycle import run_isolated
from support.native import (
    DUMP_REQUEST,
    LATE_HEAD,
    PING,
    PONG,
    RELAYED,
    TOO_MANY,
    Recorder,
    Rig,
    RigKind,
    has_unread,
    receive,
    rest,
)
from support.waiting import wait_until

from workerserver.native._bridge import NativeHub, Table


@pytest.fixture(params=["uvloop-unix", "uvloop-tcp"])
def kind(request: pytest.FixtureRequest) -> RigKind:
    kind: RigKind = request.param
    return kind


@pytest.fixture
def rigs(kind: RigKind, no_leaks: None) -> Iterator[Any]:
    """``rigs(**limits)``: a Rig, closed after the test."""
    made: list[Rig] = []

    def make(**limits: float) -> Rig:
        made.append(Rig(kind, Recorder, **limits))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


def end_is_noticed(rig: Rig, sock: socket.socket) -> None:
    """The I/O thread has seen that *sock* sends no more: it came in before what is answered."""
    wait_until(lambda: not has_unread(sock))  # TCP counts an unacknowledged end as one byte
    with rig.client() as other:
        other.sendall(PING)
        assert receive(other, len(PONG)) == PONG


def others_are_refused(rig: Rig) -> None:
    """Earlier requests to the stuck loop have used up their time too."""
    with rig.client() as other:
        other.sendall(b"for the loop")
        assert rest(other).startswith(b"HTTP/1.1 503 ")


# --- many at once


def test_more_connections_than_one_turn_serves(rigs: Any) -> None:
    rig = rigs()
    rig.factory = Echo
    free = rig.hold()
    socks = [rig.client() for _ in range(300)]
    for number, sock in enumerate(socks):
        sock.sendall(b"number %d" % number)
    free.set()
    for number, sock in enumerate(socks):
        with sock:
            expected = b"number %d" % number
            assert receive(sock, len(expected)) == expected
    wait_until(lambda: rig.listener.connections == 0)
    assert len(rig.protocols) == 300


def test_a_storm_of_connections_leaves_nothing(rigs: Any) -> None:
    rig = rigs()
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(1200):
        with rig.client() as sock:
            if number % 4 == 1:
                sock.sendall(PING)
            elif number % 4 == 2:
                sock.sendall(PING[:9])
            elif number % 4 == 3:
                sock.sendall(b"for the loop")
    wait_until(lambda: rig.listener.connections == 0)
    wait_until(lambda: all(p.told[-1] == "lost" for p in rig.protocols))
    # The last ones may still wait to be accepted, or to be closed by their loop.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    with rig.client() as sock:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG


# --- limits


def test_connections_past_the_limit_are_told_so(rigs: Any) -> None:
    rig = rigs(max_connections=3)
    kept = [rig.client() for _ in range(3)]
    for sock in kept:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG
    with rig.client() as refused:
        assert rest(refused) == TOO_MANY
    kept.pop().close()
    wait_until(lambda: rig.listener.connections == 2)
    with rig.client() as sock:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG
    for sock in kept:
        sock.close()
    assert rig.listener.requests[("", 503)] == 1


def test_what_is_sent_behind_the_last_reply_is_no_reset(rigs: Any) -> None:
    """A reset could destroy the reply on its way (RFC 9112, 9.6)."""
    rig = rigs(max_connections=0)
    with rig.client() as sock:
        sock.sendall(bytes(1 << 20))
        assert rest(sock) == TOO_MANY
        sock.sendall(b"and more")
    with rig.client() as endless:
        assert rest(endless) == TOO_MANY
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 256:  # MiB. The server reads and drops a few of them, then it closes
                endless.sendall(bytes(1 << 20))
                sent += 1
        assert sent < 256
    wait_until(lambda: rig.listener.connections == 0)


def test_deadlines_need_no_loop(rigs: Any) -> None:
    rig = rigs(head_timeout=1.0, idle_timeout=1.0)
    free = rig.hold()
    try:
        with rig.client() as idle, rig.client() as half, rig.client() as silent:
            half.sendall(PING[:25])
            idle.sendall(PING)
            assert receive(idle, len(PONG)) == PONG
            assert rest(half) == LATE_HEAD
            assert rest(silent) == b""
            assert rest(idle) == b""
    finally:
        free.set()
    assert rig.protocols == []


def test_a_trickled_head_has_one_deadline(rigs: Any) -> None:
    rig = rigs(head_timeout=0.5)  # a head takes 0.86 s at least
    with rig.client() as sock:
        sock.settimeout(0.02)
        began = time.monotonic()
        received = b""
        for byte in PING * 20:
            try:
                sock.send(bytes([byte]))
                received += sock.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        assert received == LATE_HEAD
        assert time.monotonic() - began < 10


def test_out_of_descriptors() -> None:
    done = run_isolated("native/native_descriptors.py")
    assert done.returncode == 0, done.stdout + done.stderr


# --- replies


def test_pipelined_snapshots(rigs: Any) -> None:
    rig = rigs()
    with rig.client() as sock:
        sock.sendall(DUMP_REQUEST * 5 + PING + DUMP_REQUEST)
        sock.shutdown(socket.SHUT_WR)
        replies = rest(sock)
    assert replies.count(b"HTTP/1.1 200 OK\r\n") == 7
    assert replies.count(b"most recent call first") >= 6
    at = replies.index(PONG)
    assert replies[:at].count(b"HTTP/1.1 200") == 5


def test_a_long_pipeline_of_one_client_does_not_stop_others(rigs: Any) -> None:
    rig = rigs()
    count = 4000
    with rig.client() as many, rig.client() as other:
        sender = threading.Thread(target=many.sendall, args=(PING * count,))
        sender.start()
        for _ in range(50):
            other.sendall(PING)
            assert receive(other, len(PONG)) == PONG
        assert receive(many, count * len(PONG)) == PONG * count
        sender.join()
    assert rig.listener.requests[("ping", 200)] == count + 50


def test_a_client_that_asks_and_does_not_read(rigs: Any) -> None:
    """Its requests wait in its own kernel's memory, not in ours."""
    rig = rigs()
    with rig.client(4096) as sock:
        sock.setblocking(False)
        sent = 0
        blocked = 0
        while blocked < 20 and sent < 64 << 20:
            try:
                sent += sock.send((PING * 101)[sent % len(PING) :])
                blocked = 0
            except BlockingIOError:
                blocked += 1
                time.sleep(0.01)
        assert sent < 64 << 20
        answered = rig.listener.requests[("ping", 200)]
        assert answered * len(PING) < sent
        sock.settimeout(20)
        partial = -sent % len(PING)
        sender = threading.Thread(target=sock.sendall, args=(PING[-partial:] if partial else b"",))
        sender.start()
        count = (sent + partial) // len(PING)
        assert receive(sock, count * len(PONG)) == PONG * count
        sender.join()


def test_a_client_that_is_owed_nothing_gets_nothing(rigs: Any) -> None:
    """Half-closed, answered, and then the loop is stuck: no 503 behind the reply."""
    rig = rigs(gil_deadline=0.05, gil_timeout=1.0)
    sock, protocol = rig.open()
    free, ended, busy, replied = (threading.Event() for _ in range(4))

    def answer() -> None:
        busy.set()
        assert ended.wait(20)  # the client's end has come
        protocol.transport.write(b"reply")
        protocol.transport.want_bytes(True)
        replied.set()
        assert free.wait(20)

    with sock:
        rig.loop.call_soon_threadsafe(answer)
        assert busy.wait(20)
        sock.shutdown(socket.SHUT_WR)
        end_is_noticed(rig, sock)
        ended.set()
        assert replied.wait(20)
        others_are_refused(rig)
        free.set()
        assert rest(sock) == b"reply"


def test_a_half_closed_client_gets_all_of_its_reply_from_a_stuck_loop(rigs: Any) -> None:
    rig = rigs(gil_deadline=0.05, gil_timeout=1.0)
    sock, protocol = rig.open(receive=65536)
    free, ended, busy, replied = (threading.Event() for _ in range(4))

    def answer() -> None:
        busy.set()
        assert ended.wait(20)
        protocol.transport.write(bytes(8 << 20))
        protocol.transport.want_bytes(True)
        replied.set()
        assert free.wait(20)

    with sock:
        rig.loop.call_soon_threadsafe(answer)
        assert busy.wait(20)
        sock.shutdown(socket.SHUT_WR)
        end_is_noticed(rig, sock)
        ended.set()
        assert replied.wait(20)
        others_are_refused(rig)  # most of the reply is not yet sent
        assert rest(sock) == bytes(8 << 20)
        free.set()
    wait_until(lambda: protocol.told[-1] == "lost")


def test_close_while_the_io_thread_answers(rigs: Any, short_path: Path) -> None:
    """The reply under way is the connection's last."""
    rig = rigs(gil_deadline=0.05)
    path = str(short_path / "torch")
    asked, answer = threading.Event(), threading.Event()
    with socket.socket(socket.AF_UNIX) as torch:
        torch.bind(path)
        torch.listen()

        def serve() -> None:
            connection, _ = torch.accept()
            with connection:
                connection.recv(10000)
                asked.set()
                assert answer.wait(20)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"
                    b"Connection: close\r\n\r\nrelay"
                )

        server = threading.Thread(target=serve)
        server.start()
        inode = os.fstat(torch.fileno()).st_ino
        rig.call(lambda: rig.hub.set_relay(path.encode(), torch.fileno(), inode))
        sock, protocol = rig.open()
        with sock:
            rig.call(lambda: protocol.transport.want_bytes(True))
            free = rig.hold()
            sock.sendall(RELAYED)
            assert asked.wait(20)
            free.set()
            rig.call(protocol.transport.close)
            answer.set()
            assert rest(sock).endswith(b"relay")
        server.join()
        wait_until(lambda: protocol.told[-1] == "lost")


# --- hubs


def test_close_with_live_transports(kind: RigKind, no_leaks: None) -> None:
    rig = Rig(kind)
    opened = [rig.open() for _ in range(5)]
    rig.call(lambda: opened[0][1].transport.write(bytes(8 << 20)))
    rig.call(opened[0][1].transport.close)
    rig.call(lambda: opened[1][1].transport.want_bytes(True))
    rig.call(lambda: opened[2][1].transport.pause_reading())
    raw = rig.client()
    rig.call(rig.hub.close)
    assert not rig.hub.thread.is_alive()
    rig.call(lambda: None)
    for sock, protocol in opened:
        assert protocol.told.count("lost") == 1
        assert protocol.transport.is_closing()
        protocol.transport.write(b"into nothing")
        protocol.transport.abort()
        sock.close()
    raw.close()
    rig.hub.close()
    with pytest.raises((RuntimeError, ValueError, OSError)):
        rig.call(lambda: rig.listen(rig.hub, rig.socket))
    rig.close()


def test_close_from_inside_a_turn(kind: RigKind, no_leaks: None) -> None:
    rig = Rig(kind)
    rig.factory = Echo
    free = rig.hold()
    socks = [rig.client() for _ in range(3)]
    for sock in socks:
        sock.sendall(b"x")
    closed = threading.Event()

    class Closes(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            rig.hub.close()
            closed.set()

    rig.factory = Closes
    free.set()
    assert closed.wait(20)
    rig.call(lambda: None)
    for sock in socks:
        sock.close()
    rig.close()
    assert all(p.told.count("lost") == 1 for p in rig.protocols)


def test_two_hubs_on_one_loop(rigs: Any) -> None:
    rig = rigs()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        hub: NativeHub = rig.call(lambda: NativeHub(rig.loop, 0.0))
        hub.thread.start()
        tcp, rig.tcp = rig.tcp, True
        listener = rig.call(lambda: rig.listen(hub, listening))
        rig.tcp = tcp
        with rig.client() as one, socket.create_connection(listening.getsockname(), 20) as two:
            for sock in (one, two):
                sock.sendall(PING)
                assert receive(sock, len(PONG)) == PONG
            rig.call(hub.close)
            assert rest(two) == b""
            one.sendall(PING)
            assert receive(one, len(PONG)) == PONG
        assert listener.connections == 0


def test_publishing_what_is_no_answer_changes_nothing(rigs: Any) -> None:
    rig = rigs()
    bad: Any = ((b"a pair is", "bytes"),)
    with pytest.raises(TypeError):
        rig.call(lambda: rig.listener.publish(Table([]), ("ping",), bad))
    with pytest.raises(ValueError, match="answers"):
        rig.call(lambda: rig.listener.publish(Table([]), ("ping",), ()))
    with rig.client() as sock:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG
    assert rig.listener.requests == {("ping", 200): 1}


def test_no_python_runs_under_the_hubs_lock() -> None:
    """Finalizers that let the GIL go, wherever the garbage collector runs."""
    done = run_isolated("native/native_collect.py", seconds=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fork() -> None:
    done = run_isolated("native/native_fork.py")
    assert done.returncode == 0, done.stdout + done.stderr
