"""NativeTransport is what asyncio says a transport is: reading, and whose turn it is."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.native import (
    PING,
    PONG,
    Recorder,
    Rig,
    can_send,
    has_unread,
    receive,
    reset,
    rest,
)
from support.waiting import becomes, wait_until

MANY = 8 << 20  # bytes: more than a socket takes while its peer does not read


# --- flow control in


def test_pause_reading_holds_the_client_up(rig: Rig) -> None:
    sock, protocol = rig.open()
    transport = protocol.transport
    data = random.Random(2).randbytes(MANY) * 4
    with sock:
        rig.call(transport.pause_reading)
        rig.call(transport.pause_reading)
        assert not transport.is_reading()
        sock.setblocking(False)
        sent = 0
        while sent < len(data):
            try:
                sent += sock.send(data[sent : sent + 65536])
            except BlockingIOError:
                break
        assert sent < len(data)
        assert len(protocol.data) == 5
        sock.settimeout(20)
        rest_of_it = threading.Thread(target=sock.sendall, args=(data[sent:],))
        rest_of_it.start()
        rig.call(transport.resume_reading)
        rig.call(transport.resume_reading)
        assert transport.is_reading()
        rest_of_it.join()
        wait_until(lambda: len(protocol.data) == 5 + len(data))
        assert protocol.data[5:] == data


def test_nothing_is_received_while_paused(rig: Rig) -> None:
    """Also bytes that the I/O thread had read before."""
    sock, protocol = rig.open()
    with sock:
        free = rig.hold()
        rig.loop.call_soon_threadsafe(protocol.transport.pause_reading)
        sock.sendall(b" world")
        wait_until(lambda: not has_unread(sock))
        sock.shutdown(socket.SHUT_WR)
        free.set()
        for _ in range(3):
            rig.call(lambda: None)
        paused = list(protocol.told)
        rig.call(protocol.transport.resume_reading)
        wait_until(lambda: "lost" in protocol.told)
        # The loop may have read some data before the pause, but less than half of it.
        assert paused in (["made", "data"], ["made", "data", "eof", "lost"])
        assert bytes(protocol.data) == b"hello world"
        assert protocol.told == ["made", "data", "eof", "lost"]


def test_paused_by_data_received(rig: Rig) -> None:
    sock, protocol = rig.open()
    seen = threading.Event()

    def once(data: bytes) -> None:
        assert seen.wait(20)  # more data has come meanwhile
        protocol.transport.pause_reading()

    with sock:
        protocol.on_data = once
        sock.sendall(b"1")
        wait_until(lambda: len(protocol.data) == 6)
        sock.sendall(b"2")
        wait_until(lambda: not has_unread(sock))
        seen.set()
        for _ in range(3):
            rig.call(lambda: None)
        assert len(protocol.data) == 6
        rig.call(protocol.transport.resume_reading)
        wait_until(lambda: len(protocol.data) == 7)


def test_paused_by_connection_made(rig: Rig) -> None:
    class Shy(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    rig.factory = Shy
    with rig.client() as sock:
        sock.sendall(b"hello")
        wait_until(lambda: bool(rig.protocols))
        (protocol,) = rig.protocols
        rig.call(lambda: None)
        assert protocol.told == ["made"]
        rig.call(protocol.transport.resume_reading)
        wait_until(lambda: bytes(protocol.data) == b"hello")


# --- the end of one direction


def test_write_eof_comes_after_the_data(rig: Rig) -> None:
    sock, protocol = rig.open()
    protocol.stays = True

    def end() -> None:
        protocol.transport.write(bytes(MANY))
        protocol.transport.write_eof()
        protocol.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            protocol.transport.write(b"more")
        with pytest.raises(RuntimeError, match="after write_eof"):
            protocol.transport.writelines([b"more"])

    with sock:
        rig.call(end)
        assert rest(sock) == bytes(MANY)
        assert "lost" not in protocol.told
        sock.sendall(b" still there")
        wait_until(lambda: bytes(protocol.data) == b"hello still there")
        rig.call(protocol.transport.close)
    wait_until(lambda: protocol.told[-1] == "lost")
    assert protocol.error is None


def test_eof_received_false_closes(rig: Rig) -> None:
    sock, protocol = rig.open()
    with sock:
        rig.call(lambda: protocol.transport.write(bytes(MANY)))
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == bytes(MANY)  # not before everything is sent
    wait_until(lambda: protocol.told[-1] == "lost")
    assert [what for what in protocol.told if what not in ("pause", "resume")] == [
        "made",
        "data",
        "eof",
        "lost",
    ]
    assert protocol.error is None


def test_eof_received_true_keeps_the_other_direction(rig: Rig) -> None:
    sock, protocol = rig.open()
    protocol.stays = True
    with sock:
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: protocol.told[-1] == "eof")
        rig.call(lambda: protocol.transport.write(bytes(MANY)))
        assert receive(sock, MANY) == bytes(MANY)
        assert "lost" not in protocol.told
        rig.call(protocol.transport.close)
        assert rest(sock) == b""
    wait_until(lambda: protocol.told[-1] == "lost")
    assert protocol.told.count("eof") == 1


def test_what_came_before_the_end_is_received(rig: Rig) -> None:
    """Of a client that sends and is gone while the loop is busy."""
    sock, protocol = rig.open()
    free = rig.hold()
    with sock:
        sock.sendall(b" world")
    free.set()
    wait_until(lambda: protocol.told[-1] == "lost")
    assert bytes(protocol.data) == b"hello world"
    assert protocol.told == ["made", "data", "eof", "lost"]
    assert protocol.error is None


def test_a_client_that_sends_much_and_is_gone(rig: Rig) -> None:
    sock, protocol = rig.open()
    protocol.stays = True  # a task that waits for the end must not wait for ever
    free = rig.hold()
    with sock:
        sock.setblocking(False)
        sent = 0
        while sent < MANY:
            try:
                sent += sock.send(bytes(65536))
            except BlockingIOError:
                if becomes(lambda: can_send(sock), 0.3):
                    continue
                break
    free.set()
    wait_until(lambda: "eof" in protocol.told or "lost" in protocol.told)
    if "lost" not in protocol.told:
        rig.call(protocol.transport.close)
    wait_until(lambda: rig.listener.connections == 0)


# --- want_bytes()


def test_without_want_bytes_all_goes_to_the_protocol(rig: Rig) -> None:
    sock, protocol = rig.open()
    with sock:
        sock.sendall(PING)
        wait_until(lambda: bytes(protocol.data) == b"hello" + PING)


def test_want_bytes_at_a_boundary(rig: Rig) -> None:
    sock, protocol = rig.open()
    protocol.on_data = lambda data: protocol.transport.want_bytes(True)
    with sock:
        rig.call(lambda: protocol.transport.want_bytes(True))
        for cut in range(0, len(PING), 5):
            sock.sendall(PING[:cut])
            wait_until(lambda: not has_unread(sock))
            sock.sendall(PING[cut:])
            assert receive(sock, len(PONG)) == PONG
        assert bytes(protocol.data) == b"hello"
        sock.sendall(PING + b"other")
        assert receive(sock, len(PONG)) == PONG
        wait_until(lambda: bytes(protocol.data) == b"helloother")
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG


def test_want_bytes_inside_a_message(rig: Rig) -> None:
    sock, protocol = rig.open()
    with sock:
        rig.call(lambda: protocol.transport.want_bytes(False))
        sock.sendall(PING)
        wait_until(lambda: bytes(protocol.data) == b"hello" + PING)
        # The protocol does not call want_bytes() again. So the connection stays the protocol's.
        sock.sendall(PING)
        wait_until(lambda: bytes(protocol.data) == b"hello" + 2 * PING)
        rig.call(lambda: protocol.transport.want_bytes(True))
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG


def test_a_write_takes_the_connection_back(rig: Rig) -> None:
    """Also with half a head received before: the protocol gets it together with the rest."""
    sock, protocol = rig.open()
    with sock:
        rig.call(lambda: protocol.transport.want_bytes(True))
        sock.sendall(PING[:20])
        wait_until(lambda: not has_unread(sock))
        rig.call(lambda: protocol.transport.write(b"by the way"))
        assert receive(sock, 10) == b"by the way"
        sock.sendall(PING[20:])
        wait_until(lambda: bytes(protocol.data) == b"hello" + PING)


def test_wanting_bytes_in_resume_writing(rig: Rig) -> None:
    """With bytes that came meanwhile: the protocol gets them, and all later bytes too."""

    class Eager(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.want_bytes(True)

    rig.factory = Eager
    sock, protocol = rig.open(receive=65536)
    with sock:
        rig.call(lambda: protocol.transport.write(bytes(MANY)))
        assert protocol.paused
        free = rig.hold()
        receive(sock, MANY)
        wait_until(lambda: protocol.transport.get_write_buffer_size() == 0)
        sock.sendall(b"BODY FOLLOWS:")
        wait_until(lambda: not has_unread(sock))
        protocol.on_data = lambda data: protocol.transport.want_bytes(False)
        free.set()
        wait_until(lambda: not protocol.paused)
        wait_until(lambda: len(protocol.data) == 18)
        rig.call(lambda: None)
        if protocol.told[-1] == "resume":  # ... came last, and called want_bytes()
            return
        sock.sendall(PING)
        wait_until(lambda: bytes(protocol.data).endswith(PING))


def test_wanting_bytes_while_writing_is_paused(rig: Rig) -> None:
    sock, protocol = rig.open(receive=65536)

    def answer() -> None:
        protocol.transport.write(bytes(MANY))
        protocol.transport.want_bytes(True)

    with sock:
        rig.call(answer)
        sock.sendall(PING[:20])
        receive(sock, MANY)
        wait_until(lambda: not protocol.paused)
        rig.call(lambda: None)
        sock.sendall(PING[20:] + PING)
        assert receive(sock, 2 * len(PONG)) == 2 * PONG
        assert bytes(protocol.data) == b"hello"


# --- nothing is left


def test_a_large_body_through_a_slow_reader_beside_pings(rig: Rig) -> None:
    body = random.Random(3).randbytes(MANY) * 8
    sock, protocol = rig.open(receive=65536)
    stop = threading.Event()
    pings = 0

    def ping() -> None:
        nonlocal pings
        with rig.client() as other:
            while not stop.is_set():
                other.sendall(PING)
                assert receive(other, len(PONG)) == PONG
                pings += 1

    def answers_more_pings() -> None:
        before = pings
        wait_until(lambda: pings > before + 10)

    thread = threading.Thread(target=ping)
    with sock:
        thread.start()
        try:
            rig.call(lambda: protocol.transport.write(body))
            received = bytearray()
            halfway = False
            while len(received) < len(body):
                received += sock.recv(1 << 20)
                if len(received) % 7 == 0:
                    stop.wait(0.001)
                if not halfway and len(received) > len(body) // 2:
                    halfway = True
                    answers_more_pings()
        finally:
            stop.set()
            thread.join()
        assert received == body


def test_everything_is_released(rig: Rig) -> None:
    def objects() -> int:
        gc.collect()
        return sum(type(o).__name__ in ("NativeTransport", "Link") for o in gc.get_objects())

    before = objects()
    ends: tuple[Callable[[Any, socket.socket], object], ...] = (
        lambda protocol, sock: rig.call(protocol.transport.close),
        lambda protocol, sock: rig.call(protocol.transport.abort),
        lambda protocol, sock: sock.close(),
        lambda protocol, sock: reset(sock),
        lambda protocol, sock: rig.call(protocol.transport.write_eof),
        lambda protocol, sock: protocol.transport.get_extra_info("socket"),
    )
    watched = []
    for end in ends:
        sock, protocol = rig.open()
        rig.call(lambda p=protocol: p.transport.get_extra_info("peername"))  # type: ignore[misc]
        watched.append(weakref.ref(protocol))
        end(protocol, sock)
        sock.close()
        del protocol
    wait_until(lambda: rig.listener.connections == 0)
    wait_until(lambda: all(p.told[-1] == "lost" for p in rig.protocols))
    rig.protocols.clear()
    rig.call(lambda: None)
    assert objects() == before
    assert not [ref for ref in watched if ref() is not None]
