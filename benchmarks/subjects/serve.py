"""One served process: ``python -m benchmarks.subjects.serve KIND SOCKET [--tcp] [--load LOAD] …``.

Prints ``{"port": PORT}`` (null on a Unix socket) when the server serves and the load is under way.
Every kind has the handlers ``ping`` and ``dump_traceback``. With uvicorn and granian,
``dump_traceback`` is the obvious code: faulthandler's dump, under the GIL.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from benchmarks.subjects.loads import LOADS

PDEATHSIG = 1  # prctl's
#: Servers that live as long as the process.
servers: list[object] = []


class Options(argparse.Namespace):
    kind: str
    path: str
    tcp: bool
    load: str
    body: int
    flight: int


def trace(size: int) -> bytes:
    """JSON of *size* bytes (at least 50), like a Chrome trace."""
    head, tail = b'{"traceEvents":[', b"{}]}"
    event = b'{"ph":"X","cat":"cpu_op","name":"aten::addmm","pid":1,"tid":1,"ts":1.0,"dur":2.5},\n'
    events = event * ((size - len(head) - len(tail)) // len(event))
    return (head + events).ljust(size - len(tail)) + tail


def dump() -> bytes:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def ours(options: Options) -> int | None:
    from benchmarks.subjects.our_handlers import register
    from workerserver import WorkerServer

    register(trace(options.body) if options.body else b"")
    where = ("127.0.0.1", 0) if options.tcp else (options.path,)
    transport = "uvloop" if options.kind == "ours-uvloop" else "native"
    server = WorkerServer(*where, transport=transport)  # type: ignore[arg-type]
    servers.append(server)
    return server.port if options.tcp else None


def torchs(options: Options) -> int | None:
    from torch._C import _distributed_c10d as c10d

    if options.body:
        body = trace(options.body)

        def large(request: Any, response: Any) -> None:
            response.set_content(body, "application/json")
            response.set_status(200)

        def upload(request: Any, response: Any) -> None:
            response.set_content(str(len(request.body())), "text/plain")
            response.set_status(200)

        c10d._register_handler("body", large)
        c10d._register_handler("upload", upload)
    where = ("127.0.0.1", 0) if options.tcp else (options.path,)
    server = c10d._WorkerServer(*where)
    servers.append(server)
    return int(server.port) if options.tcp else None


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def application(options: Options) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """The handlers as an ASGI application."""
    body = trace(options.body) if options.body else b""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        name = scope["path"].rpartition("/")[2]
        kind = b"text/plain"
        if name == "ping":
            content = b"pong"
        elif name == "dump_traceback":
            content = dump()
        elif name == "body":
            content, kind = body, b"application/json"
        else:
            size, more = 0, True
            while more:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
            content = str(size).encode()
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return answer


def listening(options: Options) -> socket.socket:
    if options.tcp:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.path)
    return listener


def in_thread(run: Callable[[], object]) -> None:
    threading.Thread(target=run, daemon=True).start()


def wait_until_served(options: Options, port: int | None) -> None:
    for _ in range(1000):
        try:
            if port is not None:
                socket.create_connection(("127.0.0.1", port)).close()
            else:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(options.path)
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{options.kind} does not listen")


def uvicorns(options: Options) -> int | None:
    import uvicorn

    listener = listening(options)
    config = uvicorn.Config(
        application(options),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
    )
    server = uvicorn.Server(config)
    in_thread(lambda: server.run(sockets=[listener]))
    return int(listener.getsockname()[1]) if options.tcp else None


def granians(options: Options) -> int | None:
    import uvloop
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    port = None
    if options.tcp:  # granian doesn't tell which free port it took
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            port = int(chosen.getsockname()[1])

    async def serve() -> None:
        where: dict[str, Any] = {"uds": Path(options.path)} if port is None else {"port": port}
        server = Server(
            application(options),
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
            **where,
        )
        await server.serve()

    def run() -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())

    in_thread(run)
    return port


STARTERS: dict[str, Callable[[Options], int | None]] = {
    "ours": ours,
    "ours-uvloop": ours,
    "torch": torchs,
    "uvicorn": uvicorns,
    "granian": granians,
}


def main() -> None:
    # If the benchmark is killed while this process is stopped, nothing else would end it.
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=STARTERS)
    parser.add_argument("path")
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--load", choices=LOADS, default="idle")
    parser.add_argument("--body", type=int, default=0)
    parser.add_argument("--flight", type=int, default=0)
    options = parser.parse_args(namespace=Options())
    if options.load == "training":
        import torch  # noqa: F401  # before the server, as in a trainer
    if options.flight:
        os.environ["TORCH_FR_BUFFER_SIZE"] = str(options.flight)
        from benchmarks.subjects.flight_setup import prepare

        prepare(options.flight)
    port = STARTERS[options.kind](options)
    wait_until_served(options, port)
    LOADS[options.load](lambda: print(json.dumps({"port": port}), flush=True))


if __name__ == "__main__":
    main()
