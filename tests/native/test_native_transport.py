"""NativeTransport is what asyncio says a transport is: writing, and the end."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.native import Recorder, Rig, has_unread, receive, reset, rest, rss
from support.waiting import wait_until

from workerserver.native._bridge import NativeTransport

MANY = 8 << 20  # bytes: more than a socket takes while its peer does not read


# --- the transport's attributes


def test_is_a_transport(rig: Rig) -> None:
    sock, protocol = rig.open()
    with sock:
        transport = protocol.transport
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_protocol() is protocol
        assert transport.can_write_eof()
        assert transport.is_reading()
        assert not transport.is_closing()
        assert "closing" not in repr(transport)


def test_extra_info(rig: Rig) -> None:
    class Last(Recorder):
        def connection_lost(self, error: Exception | None) -> None:
            self.names = [self.transport.get_extra_info(n) for n in ("peername", "sockname")]
            super().connection_lost(error)

    rig.factory = Last
    sock, protocol = rig.open()
    with sock:
        info = protocol.transport.get_extra_info
        assert rig.call(lambda: info("sockname")) == sock.getpeername()
        assert rig.call(lambda: info("peername")) == sock.getsockname()
        assert info("sslcontext") is None
        assert info("nothing", 7) == 7
        same = rig.call(lambda: info("socket"))
        assert same.getsockname() == sock.getpeername()
        assert same.family == sock.family
        names = [sock.getsockname(), sock.getpeername()]
    wait_until(lambda: protocol.told[-1] == "lost")
    assert protocol.names == names
    assert same.fileno() == -1  # not a number that another file may have by now


def test_extra_info_after_a_reset(rig: Rig) -> None:
    sock, protocol = rig.open()
    free = rig.hold()
    found: list[Any] = []
    rig.loop.call_soon_threadsafe(
        lambda: found.append(protocol.transport.get_extra_info("peername", "none"))
    )
    reset(sock)
    free.set()
    wait_until(lambda: bool(found))  # no exception
    wait_until(lambda: protocol.told[-1] == "lost")


def test_set_protocol(rig: Rig) -> None:
    sock, first = rig.open()
    with sock:
        second = Recorder()
        second.told.append("set")
        rig.call(lambda: first.transport.set_protocol(second))
        assert first.transport.get_protocol() is second
        sock.sendall(b"more")
        wait_until(lambda: bytes(second.data) == b"more")
    wait_until(lambda: second.told[-1] == "lost")
    assert first.told == ["made", "data"]


# --- writing


def test_writes_arrive_in_order(rig: Rig) -> None:
    sock, protocol = rig.open()

    def write() -> None:
        transport = protocol.transport
        transport.write(b"one ")
        transport.write(bytearray(b"two "))
        transport.write(memoryview(b"-three -")[1:7])
        transport.write(b"")
        transport.writelines([b"four ", bytearray(b"five "), memoryview(b"six")])
        transport.writelines([])
        transport.write(memoryview(b" x-x")[::2])

    with sock:
        rig.call(write)
        expected = b"one two three four five six -"
        assert receive(sock, len(expected)) == expected


@pytest.mark.parametrize("data", ["text", None, 7])
def test_what_is_no_bytes_is_refused(rig: Rig, data: Any) -> None:
    sock, protocol = rig.open()
    with sock:
        with pytest.raises(TypeError):
            rig.call(lambda: protocol.transport.write(data))
        rig.call(lambda: protocol.transport.write(b"still there"))
        assert receive(sock, 11) == b"still there"


def test_bytes_are_sent_from_the_callers_own_object(rig: Rig) -> None:
    body = random.Random(1).randbytes(MANY) * 8
    sock, protocol = rig.open(receive=65536)
    with sock:
        references = sys.getrefcount(body)
        before = rss()
        rig.call(lambda: protocol.transport.write(body))
        assert sys.getrefcount(body) == references + 1
        assert protocol.transport.get_write_buffer_size() > len(body) // 2
        assert rss() - before < len(body) // 4  # no copy
        assert receive(sock, len(body)) == body
        wait_until(lambda: sys.getrefcount(body) == references)
        assert protocol.transport.get_write_buffer_size() == 0


def test_other_buffers_are_copied(rig: Rig) -> None:
    buffer = bytearray(b"a" * MANY)
    sock, protocol = rig.open(receive=65536)

    def write() -> None:
        protocol.transport.write(buffer)
        buffer[:] = b"b" * MANY
        protocol.transport.write(memoryview(buffer))
        buffer[:] = b"c" * MANY
        buffer.clear()  # BufferError if anything still exported it

    with sock:
        rig.call(write)
        assert receive(sock, 2 * MANY) == b"a" * MANY + b"b" * MANY


def test_references_are_dropped_with_the_connection(rig: Rig) -> None:
    body = bytes(MANY)
    references = sys.getrefcount(body)
    for end in ("abort", "client", "fail"):
        sock, protocol = rig.open(receive=65536)
        rig.call(lambda p=protocol: p.transport.write(body))  # type: ignore[misc]
        assert sys.getrefcount(body) == references + 1
        if end == "abort":
            rig.call(protocol.transport.abort)
        elif end == "fail":
            protocol.on_data = lambda data: 1 / 0
            sock.sendall(b"x")
            wait_until(lambda p=protocol: p.told[-1] == "lost")  # type: ignore[misc]
        sock.close()
        wait_until(lambda: sys.getrefcount(body) == references)


# --- flow control out


def test_limits(rig: Rig) -> None:
    sock, protocol = rig.open()
    with sock:
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        for given, expected in (
            ({"high": 1000}, (250, 1000)),
            ({"low": 1000}, (1000, 4000)),
            ({"high": 10, "low": 10}, (10, 10)),
            ({"high": 0}, (0, 0)),
            ({}, (16384, 65536)),
        ):
            rig.call(lambda g=given: transport.set_write_buffer_limits(**g))  # type: ignore[misc]
            assert transport.get_write_buffer_limits() == expected
        for bad in ({"high": 1, "low": 2}, {"low": -1, "high": 5}):
            with pytest.raises(ValueError, match="must be"):
                rig.call(lambda b=bad: transport.set_write_buffer_limits(**b))  # type: ignore[misc]


def test_writing_is_paused_and_resumed_at_the_marks(rig: Rig) -> None:
    high, low = 3 << 20, 1 << 20
    sock, protocol = rig.open(receive=65536)
    transport = protocol.transport

    def fill() -> None:
        transport.set_write_buffer_limits(high, low)
        while transport.get_write_buffer_size() == 0:
            transport.write(bytes(1 << 20))
        transport.write(bytes(high - transport.get_write_buffer_size()))

    def look() -> tuple[bool, int]:
        return protocol.paused, transport.get_write_buffer_size()

    with sock:
        rig.call(fill)
        # The kernel may have taken some bytes meanwhile. Exactly at the mark there is no pause.
        assert not protocol.paused
        rig.call(lambda: transport.write(bytes(high)))
        assert protocol.paused
        rig.call(lambda: transport.write(b"more"))
        assert protocol.told.count("pause") == 1
        while protocol.paused:
            paused, unsent = rig.call(look)
            assert paused or unsent <= low
            sock.recv(1 << 16)
        paused, unsent = rig.call(look)
        assert not paused
        assert unsent <= low
        assert protocol.told[1:] == ["data", "pause", "resume"]


def test_a_pause_that_is_due_again_is_not_said_twice(rig: Rig) -> None:
    sock, protocol = rig.open(receive=65536)
    done = threading.Event()

    def write() -> None:
        protocol.transport.write(bytes(MANY))
        assert done.wait(20)  # the client has read everything, but the loop does not know this yet
        protocol.transport.write(bytes(2 * MANY))

    with sock:
        rig.loop.call_soon_threadsafe(write)
        receive(sock, MANY)
        wait_until(lambda: protocol.transport.get_write_buffer_size() == 0)
        done.set()
        rig.call(lambda: None)
        rig.call(lambda: None)
        assert protocol.paused
        assert protocol.told[1:] == ["data", "pause"]
        receive(sock, 2 * MANY)
        wait_until(lambda: not protocol.paused)
        assert protocol.told[1:] == ["data", "pause", "resume"]


def test_high_water_of_zero(rig: Rig) -> None:
    sock, protocol = rig.open(receive=65536)
    with sock:
        rig.call(lambda: protocol.transport.set_write_buffer_limits(high=0))
        rig.call(lambda: protocol.transport.write(b"all of it is taken at once"))
        assert not protocol.paused
        rig.call(lambda: protocol.transport.write(bytes(MANY)))
        assert protocol.paused
        receive(sock, 26 + MANY)
        wait_until(lambda: not protocol.paused)


# --- the end


def test_close_sends_what_was_written(rig: Rig) -> None:
    sock, protocol = rig.open()

    def close() -> None:
        protocol.transport.write(bytes(MANY))
        protocol.transport.close()
        protocol.transport.close()
        protocol.transport.write(b"not any more")
        protocol.transport.write_eof()
        assert protocol.transport.is_closing()
        assert not protocol.transport.is_reading()

    with sock:
        rig.call(close)
        sock.sendall(b"is not received")
        assert "lost" not in protocol.told
        # On TCP, unread bytes make the kernel reset the connection. The written bytes come first.
        assert receive(sock, MANY) == bytes(MANY)
        wait_until(lambda: protocol.told[-1] == "lost")
    assert protocol.error is None
    assert bytes(protocol.data) == b"hello"
    assert protocol.told.count("lost") == 1
    rig.call(protocol.transport.close)
    rig.call(protocol.transport.abort)
    rig.call(lambda: protocol.transport.write(b"late"))
    rig.call(lambda: None)
    assert protocol.told.count("lost") == 1
    assert protocol.transport.get_write_buffer_size() == 0


def test_connection_lost_is_not_called_inside_close(rig: Rig) -> None:
    for end in ("close", "abort"):
        sock, protocol = rig.open()

        def ending(p: Any = protocol, e: str = end) -> list[str]:
            getattr(p.transport, e)()
            return list(p.told)

        with sock:
            assert "lost" not in rig.call(ending)
            assert rest(sock) == b""
        wait_until(lambda p=protocol: p.told[-1] == "lost")  # type: ignore[misc]


def test_abort_drops_what_was_written(rig: Rig) -> None:
    sock, protocol = rig.open(receive=65536)

    def abort() -> None:
        protocol.transport.write(bytes(4 * MANY))
        protocol.transport.abort()
        protocol.transport.abort()

    with sock:
        rig.call(abort)
        wait_until(lambda: protocol.told[-1] == "lost")
        with pytest.raises((EOFError, ConnectionError)):
            receive(sock, 4 * MANY)
    assert protocol.error is None
    assert protocol.told.count("lost") == 1


def test_abort_after_close(rig: Rig) -> None:
    """close() waits for a client that doesn't read; abort() no longer."""
    sock, protocol = rig.open(receive=65536)
    with sock:
        rig.call(lambda: protocol.transport.write(bytes(4 * MANY)))
        rig.call(protocol.transport.close)
        rig.call(lambda: None)
        assert "lost" not in protocol.told
        rig.call(protocol.transport.abort)
        wait_until(lambda: protocol.told[-1] == "lost")


def test_a_reset_is_told(rig: Rig) -> None:
    sock, protocol = rig.open(receive=65536)
    rig.call(lambda: protocol.transport.write(bytes(MANY)))
    reset(sock)
    wait_until(lambda: protocol.told[-1] == "lost")
    assert isinstance(protocol.error, OSError)
    assert protocol.told.count("lost") == 1
    rig.call(lambda: protocol.transport.write(b"into nothing"))


# --- the protocol's own mistakes


@pytest.mark.parametrize("where", ["factory", "connection_made", "data_received", "eof_received"])
def test_what_a_protocol_raises_reaches_the_loops_handler(rig: Rig, where: str) -> None:
    class Bad(Recorder):
        def __getattribute__(self, name: str) -> Any:
            if name == where:

                def fail(*arguments: Any) -> Any:
                    raise ZeroDivisionError(name)

                return fail
            return super().__getattribute__(name)

    def factory() -> Recorder:
        if where == "factory":
            raise ZeroDivisionError(where)
        return Bad()

    good, neighbour = rig.open()
    rig.factory = factory
    with good, rig.client() as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b""
        wait_until(lambda: rig.listener.connections == 1)
        (report,) = rig.reports
        assert isinstance(report["exception"], ZeroDivisionError)
        assert report["message"]
        if where not in ("factory", "connection_made"):
            assert isinstance(report["transport"], NativeTransport)
            wait_until(lambda: rig.protocols[-1].told[-1] == "lost")
        good.sendall(b" world")
        wait_until(lambda: bytes(neighbour.data) == b"hello world")


@pytest.mark.parametrize("which", ["pause_writing", "resume_writing", "connection_lost"])
def test_flow_control_and_end_that_raise(rig: Rig, which: str) -> None:
    class Bad(Recorder):
        pass

    def fail(self: Recorder, *arguments: Any) -> None:
        self.told.append("lost" if which == "connection_lost" else which)
        raise ZeroDivisionError(which)

    setattr(Bad, which, fail)
    rig.factory = Bad
    sock, protocol = rig.open(receive=65536)
    with sock:
        rig.call(lambda: protocol.transport.write(bytes(MANY)))
        if which == "resume_writing":  # ends the connection, when there may be some bytes left
            came = rest(sock)
            assert came == bytes(len(came))
            assert MANY - 65536 <= len(came) <= MANY
        else:
            assert receive(sock, MANY) == bytes(MANY)
        if which != "connection_lost":
            wait_until(lambda: bool(rig.reports))
    wait_until(lambda: protocol.told[-1] == "lost")
    wait_until(lambda: bool(rig.reports))
    assert {type(report["exception"]) for report in rig.reports} == {ZeroDivisionError}
    wait_until(lambda: rig.listener.connections == 0)


def test_the_queue_outlives_what_ends_the_loop(rig: Rig) -> None:
    """SystemExit passes through the loop, which then runs again. No client waits for ever."""

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise SystemExit(1)

    class Bad(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"bad":
                raise ValueError

    rig.factory = Bad
    rig.loop.set_exception_handler(handler)
    free = rig.hold()
    with rig.client() as bad, rig.client() as good:
        bad.sendall(b"bad")
        wait_until(lambda: not has_unread(bad))
        good.sendall(b"good")
        wait_until(lambda: not has_unread(good))
        free.set()
        wait_until(lambda: any(p.data == b"good" for p in rig.protocols))
