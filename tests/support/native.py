"""A hub of the native I/O thread with the test's protocols. Isolated scripts use it too, so no
pytest in here."""

from __future__ import annotations

import array
import asyncio
import fcntl
import select
import socket
import struct
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop

from support.waiting import wait_until
from workerserver.http.limits import Limits
from workerserver.native._bridge import (
    DUMP,
    RELAY,
    STATIC,
    NativeHub,
    NativeListener,
    NativeTransport,
    Table,
)
from workerserver.stacks._stacks import prepare

T = TypeVar("T")
RigKind = Literal["uvloop-unix", "uvloop-tcp", "asyncio-unix"]

PING = b"POST /handler/ping HTTP/1.1\r\nHost: x\r\n\r\n"
PONG = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong"
DUMP_REQUEST = b"POST /handler/dump_traceback?mode=nogil HTTP/1.1\r\nHost: x\r\n\r\n"
RELAYED = b"POST /handler/fr_trace_json HTTP/1.1\r\nHost: x\r\n\r\n"


def final(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


TOO_MANY, FORBIDDEN, LATE_HEAD = final(b"503 Busy"), final(b"403 No"), final(b"408 Late")


#: Here a request never stops to wait for the loop, unless a test says so.
PATIENT = Limits(gil_deadline=60.0, gil_timeout=60.0, max_peer=4096)


class Recorder(asyncio.Protocol):
    """Notes calls in their order: ``made``, ``data``, ``eof``, ``pause``, ``resume``, ``lost``.
    Consecutive data gets one note. ``on_data`` is called after the note."""

    transport: NativeTransport
    stays = False  # the result of eof_received()

    def __init__(self) -> None:
        self.told: list[str] = []
        self.on_data: Callable[[bytes], object] | None = None
        self.data = bytearray()
        self.error: Exception | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, NativeTransport)
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        if self.told[-1] != "data":
            self.told.append("data")
        self.data += data
        if self.on_data is not None:
            self.on_data(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.stays

    def pause_writing(self) -> None:
        self.paused = True
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.paused = False
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")
        self.error = error


def connect(sock: socket.socket, address: Any) -> None:
    """Connect *sock*. A Unix listener whose backlog is full refuses for the moment (EAGAIN)."""
    give_up = time.monotonic() + 20
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > give_up:
                sock.close()
                raise
            time.sleep(0.001)


class Rig:
    """A loop in a thread, a hub, and one listener whose connections get *factory*'s protocols.

    POST ping, ``dump_traceback?mode=nogil`` and (relayed) ``fr_trace_json`` are recognised.
    """

    def __init__(
        self, kind: RigKind, factory: Callable[[], Recorder] = Recorder, **limits: float
    ) -> None:
        self.tcp = kind.endswith("tcp")
        self.protocols: list[Any] = []
        self.reports: list[dict[str, Any]] = []  # what the loop's exception handler got
        self.factory: Callable[[], Any] = factory
        self.limits = replace(PATIENT, **limits)  # type: ignore[arg-type]
        self.loop: asyncio.AbstractEventLoop = (
            uvloop.new_event_loop() if kind.startswith("uvloop") else asyncio.new_event_loop()
        )
        self.loop.set_exception_handler(lambda loop, context: self.reports.append(context))
        self.thread = threading.Thread(target=self._run, name="rig", daemon=True)
        self.ended = False
        self.thread.start()
        self._folder = tempfile.TemporaryDirectory(prefix="ws-")
        if self.tcp:
            self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(str(Path(self._folder.name) / "s"))
            self.socket.listen(1024)
        self.socket.setblocking(False)
        self.hub: NativeHub = self.call(self._start_hub)
        self.listener: NativeListener = self.call(lambda: self.listen(self.hub, self.socket))

    def _run(self) -> None:
        while not self.ended:  # a BaseException in a callback ends run_forever()
            try:
                self.loop.run_forever()
            except SystemExit:
                continue

    def _start_hub(self) -> NativeHub:
        hub = NativeHub(self.loop, 0.0)
        hub.thread.start()
        return hub

    def make(self) -> Any:
        protocol = self.factory()
        self.protocols.append(protocol)
        return protocol

    def listen(self, hub: NativeHub, listening: socket.socket) -> NativeListener:
        """A listener of *hub*; on the loop's thread."""
        prepare()
        listener = NativeListener(
            hub,
            listening.fileno(),
            self.make,
            lambda: None,
            Table([]),
            local=not self.tcp,
            limits=self.limits,
            started=0.0,
            too_many=TOO_MANY,
            forbidden=FORBIDDEN,
            head_late=LATE_HEAD,
        )
        table = Table(
            [
                ("POST", "/handler/ping", "any", STATIC),
                ("POST", "/handler/dump_traceback", "dump", DUMP | 1 << 8),
                ("POST", "/handler/fr_trace_json", "opaque", RELAY | 2 << 8),
            ],
        )
        listener.publish(table, ("ping", "dump_traceback", "fr_trace_json"), ((PONG, PONG),) * 3)
        return listener

    def call(self, function: Callable[[], T]) -> T:
        """Call *function* on the loop and return its result."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    def hold(self) -> threading.Event:
        """Keep the loop busy, without the GIL, until the event is set."""
        busy, free = threading.Event(), threading.Event()

        def wait() -> None:
            busy.set()
            assert free.wait(30)

        self.loop.call_soon_threadsafe(wait)
        assert busy.wait(10)
        return free

    def client(self, receive: int = 0) -> socket.socket:
        """A connected socket. *receive* is the size of its kernel buffer in bytes."""
        sock = socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX)
        sock.settimeout(20)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connect(sock, self.socket.getsockname())
        return sock

    def open(self, receive: int = 0) -> tuple[socket.socket, Any]:
        """A client and its protocol. The client has sent ``hello``, so that the protocol exists."""
        number = len(self.protocols)
        sock = self.client(receive)
        sock.sendall(b"hello")
        wait_until(lambda: len(self.protocols) > number)
        protocol = self.protocols[number]
        wait_until(lambda: len(protocol.data) == 5)
        return sock, protocol

    def close(self) -> None:
        self.call(self.listener.close)
        self.ended = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.hub.close()
        self.socket.close()
        self.loop.close()
        self._folder.cleanup()


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly *size* bytes; EOFError if the connection ends before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def rest(sock: socket.socket) -> bytes:
    """All bytes until the end."""
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with a reset (on a Unix socket only unread bytes cause one)."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def has_unread(sock: socket.socket) -> bool:
    """Whether the kernel holds bytes from *sock* that the other side has not read."""
    held = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, held)
    return held[0] > 0


def can_send(sock: socket.socket) -> bool:
    return bool(select.select([], [sock], [], 0)[1])


def rss() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
