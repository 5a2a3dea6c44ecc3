"""A shutdown with all kinds of obstacles. ``python shutdown_scene.py SCENE FOLDER``.

Prints JSON lines. After a scene the interpreter has to end too, and that is half of the test: no
handler may keep a training process from ending.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from support.lifecycle import alive, ask, send
from support.waiting import wait_until

from workerserver import WorkerServer
from workerserver.http.registry import Registry

FOLDER = sys.argv[2]
REGISTRY = Registry()
entered = threading.Event()


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


@REGISTRY.handler("sleeping")
def sleeping() -> None:
    entered.set()
    time.sleep(3600)


@REGISTRY.handler("waiting")
async def waiting() -> None:
    entered.set()
    await asyncio.sleep(3600)


@REGISTRY.handler("stubborn")
async def stubborn() -> None:
    entered.set()
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@REGISTRY.handler("blocking")
async def blocking(seconds: float = 3600.0) -> None:
    entered.set()
    time.sleep(seconds)


def _inline(seconds: float = 3600.0) -> None:
    entered.set()
    time.sleep(seconds)


REGISTRY.register("inline", _inline, inline=True)
REGISTRY.register("ping", lambda: "pong", inline=True)


def path(name: str = "s.sock") -> str:
    return os.path.join(FOLDER, name)


def enter(server: WorkerServer, handler: str) -> socket.socket:
    """Send a request and wait until its handler runs."""
    entered.clear()
    address = server.address if server.port == -1 else ("127.0.0.1", server.port)
    sock = send(address, f"/handler/{handler}")
    assert entered.wait(30)
    return sock


def timed(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def in_flight(handler: str) -> None:
    """shutdown(2) with *handler* in flight, then a new server on the same path and port."""
    unix = WorkerServer(path(), registry=REGISTRY)
    tcp = WorkerServer("127.0.0.1", 0, registry=REGISTRY)
    with enter(unix, handler) as client:
        took = timed(lambda: unix.shutdown(2)) + timed(lambda: tcp.shutdown(2))
        client.settimeout(30)
        say(took=took, removed=not os.path.lexists(path()), tcp_alive=listens(tcp.port))
        with (
            WorkerServer(path(), registry=REGISTRY) as again,
            WorkerServer("127.0.0.1", tcp.port, registry=REGISTRY),
        ):
            say(again=ask(again.address), tcp_again=ask(("127.0.0.1", tcp.port)))


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def exit_in_flight(handler: str) -> None:
    """The program ends with *handler* in flight and without shutdown()."""
    server = WorkerServer(path(), registry=REGISTRY)
    clients = [enter(server, handler)]
    say(entered=True, threads=threading.active_count(), clients=len(clients))


def sys_exit(handler: str) -> None:
    """sys.exit(7) inside the server's block, requests in flight."""
    with WorkerServer(path(), registry=REGISTRY) as server:
        clients = [enter(server, handler) for _ in range(3)]
        say(entered=len(clients))
        sys.exit(7)


def unhandled(handler: str) -> None:
    server = WorkerServer(path(), registry=REGISTRY)
    with enter(server, handler):
        raise ValueError("training failed")


def backlog() -> None:
    """Every thread of the pool asleep and requests waiting for one."""
    registry = Registry()
    registry.register("sleeping", sleeping, limit=200)
    server = WorkerServer(path(), registry=registry)
    clients = [send(server.address, "/handler/sleeping") for _ in range(60)]
    wait_until(lambda: registry.find("sleeping").running == 60)
    took = timed(lambda: server.shutdown(2))
    say(took=took, clients=len(clients))


def from_handler(kind: str) -> None:
    """A handler shuts its own server down. Its reply and other replies still come."""
    registry = Registry()
    servers: list[WorkerServer] = []

    def end() -> str:
        servers[0].shutdown()
        return "ended"

    async def end_async() -> str:
        return end()

    async def slow() -> str:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "cancelled"
        return "slept"

    registry.register("end", end_async if kind == "async" else end, inline=kind == "inline")
    registry.register("slow", slow)
    servers.append(WorkerServer(path(), registry=registry))
    with enter(servers[0], "slow") as other:
        status, body = ask(servers[0].address, "/handler/end")
        other.settimeout(30)
        head, _, rest = b"".join(iter(lambda: other.recv(65536), b"")).partition(b"\r\n\r\n")
    wait_until(lambda: threading.active_count() == 1 or kind == "thread")
    wait_until(lambda: not any(t.name == "workerserver-loop" for t in threading.enumerate()))
    say(
        status=status,
        body=body,
        other=[head.split(b"\r\n")[0].decode(), rest.decode()],
        removed=not os.path.lexists(path()),
    )
    with WorkerServer(path(), registry=registry) as again:
        say(again=ask(again.address, "/", "GET")[0])


def at_once() -> None:
    """shutdown() right after the start, 200 times."""
    for _ in range(200):
        WorkerServer(path()).shutdown()
    say(left=os.listdir(FOLDER), threads=threading.active_count())


def half_open() -> None:
    """Clients that sent half a request, and a client that reads nothing of a long reply."""
    registry = Registry()
    registry.register("long", lambda: b"x" * 50_000_000, inline=True)
    with WorkerServer(path(), registry=registry) as server:
        parts = [b"", b"POST /han", b"POST /handler/long HTTP/1.1\r\nHost: x\r\n"]
        parts.append(b"POST /handler/long HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        clients = []
        for part in parts * 4:
            client = socket.socket(socket.AF_UNIX)
            client.connect(server.address)
            client.sendall(part)
            clients.append(client)
        clients.append(send(server.address, "/handler/long"))
        wait_until(lambda: server.requests.get(("long", 200)) == 1)
        wait_until(lambda: server.connections == len(clients))
        took = timed(lambda: server.shutdown(4))
        ended = 0
        for client in clients[:-1]:
            client.settimeout(30)
            ended += client.recv(65536) == b""
        say(took=took, ended=ended, clients=len(clients) - 1)


def blocked_neighbour() -> None:
    """A server is shut down while the loop is blocked. The server must end, although another server
    keeps the loop alive."""
    with WorkerServer(path("other"), registry=REGISTRY) as other:
        server = WorkerServer(path(), registry=REGISTRY)
        tcp = WorkerServer("127.0.0.1", 0, registry=REGISTRY)
        with enter(other, "blocking?seconds=2"), socket.socket(socket.AF_UNIX) as early:
            early.connect(server.address)  # waits in the backlog of the listener
            took = timed(lambda: server.shutdown(0.2)) + timed(lambda: tcp.shutdown(0.2))
            refused = not alive(path()) and not listens(tcp.port)
            early.settimeout(30)
            while early.recv(1000):
                pass
            ended = True
        say(took=took, refused=refused, ended=ended, other=ask(other.address))


def loop_survives() -> None:
    """SystemExit in a task or a callback that a handler started on the loop."""
    registry = Registry()

    async def leave() -> None:
        raise SystemExit(3)

    @registry.handler("task")
    async def task() -> str:
        keep.append(asyncio.get_running_loop().create_task(leave()))
        return "started"

    @registry.handler("callback")
    async def callback() -> str:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        return "started"

    @registry.handler("stop")
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        return "stopped"

    keep: list[asyncio.Task[None]] = []
    answers = []
    with WorkerServer(path(), registry=registry) as server:
        for handler in ("task", "callback", "stop"):
            answers.append(ask(server.address, f"/handler/{handler}"))
            answers.append(ask(server.address, "/handler/", "GET"))
        took = timed(server.shutdown)
    say(answers=answers, took=took, alive=alive(path()))


SCENES: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        in_flight,
        exit_in_flight,
        sys_exit,
        unhandled,
        backlog,
        from_handler,
        at_once,
        half_open,
        blocked_neighbour,
        loop_survives,
    )
}

if __name__ == "__main__":
    SCENES[sys.argv[1]](*sys.argv[3:])
