"""A process that serves and forks. ``python fork_scene.py SCENE FOLDER``; prints JSON lines."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from support.lifecycle import alive, ask, connect, send, socket_names
from support.waiting import wait_until

from workerserver import WorkerServer, heartbeat, worker_main
from workerserver.http.registry import Registry
from workerserver.process._pulse import last_heartbeat

FOLDER = sys.argv[2]
PATH = os.path.join(FOLDER, "s.sock")


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def fork(child: Callable[[], object]) -> int:
    """Run *child* in a forked process, which ends by os._exit (99 on an error). Returns the pid."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
        os._exit(0)
    return pid


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ours(server_port: int) -> list[str]:
    """This process's sockets that carry a server's address."""
    return [n for n in socket_names() if n == PATH or n.endswith(f":{server_port}")]


@contextlib.contextmanager
def serving() -> Iterator[tuple[WorkerServer, WorkerServer, Registry]]:
    registry = Registry()
    registry.register("ping", lambda: "pong", inline=True)
    registry.register("sleep", lambda: time.sleep(3600))
    with (
        WorkerServer(PATH, registry=registry) as unix,
        WorkerServer("127.0.0.1", 0, registry=registry) as tcp,
    ):
        yield unix, tcp, registry


def descriptors() -> None:
    """The child holds no descriptor of the servers, even with requests in flight. The fork doesn't
    disturb the parent and its clients."""
    with serving() as (unix, tcp, registry):
        idle = connect(PATH)
        idle.request("POST", "/handler/ping")
        assert idle.getresponse().read() == b"pong"
        busy = send(PATH, "/handler/sleep")
        remote = connect(("127.0.0.1", tcp.port))
        remote.request("POST", "/handler/ping")
        assert remote.getresponse().read() == b"pong"
        wait_until(lambda: registry.find("sleep").running == 1)
        before = ours(tcp.port)
        heartbeat(7)

        def look() -> None:
            inside = ours(tcp.port)
            # Clients' ends that this process made itself are not ours to close.
            say(
                child=sorted(inside),
                running=registry.find("sleep").running,
                heartbeat=last_heartbeat()[0],
            )

        code = status(fork(look))
        for connection in (idle, remote):
            connection.request("POST", "/handler/ping")
            assert connection.getresponse().read() == b"pong"
        busy.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            say(busy=busy.recv(1000).decode())
        say(
            code=code,
            before=len(before),
            after=ours(tcp.port) == before,
            unix=unix.connections,
            heartbeat=last_heartbeat()[0],
        )


def killed() -> None:
    """A child outlives its parent, which is killed from outside."""
    with serving() as (_, tcp, _):

        def stay() -> None:
            sys.stdin.close()
            os.close(0)
            time.sleep(3600)

        say(child=fork(stay), port=tcp.port)
        time.sleep(3600)


def endings() -> None:
    """A child ends in each possible way. The server goes on every time."""

    def through_exit() -> int:
        """A child that ends as a program does: SystemExit, atexit, finalisation."""
        pid = os.fork()
        if pid == 0:
            atexit.register(lambda: os.write(1, b'{"atexit": true}\n'))
            sys.exit(5)
        return status(pid)

    def through_os_exit() -> int:
        return status(fork(int))

    def through_multiprocessing() -> int:
        process = multiprocessing.get_context("fork").Process(target=print, args=("{}",))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        return process.exitcode

    def through_shutdown() -> int:
        def end() -> None:
            unix.shutdown()
            tcp.shutdown()

        return status(fork(end))

    with serving() as (unix, tcp, _):
        client = connect(PATH)
        codes = []
        for way in (through_os_exit, through_multiprocessing, through_shutdown):
            client.request("POST", "/handler/ping")
            assert client.getresponse().read() == b"pong"
            codes.append(way())
            assert os.path.exists(PATH)
        codes.append(through_exit())
        client.request("POST", "/handler/ping")
        assert client.getresponse().read() == b"pong"
        say(codes=codes, file=os.path.exists(PATH), tcp=ask(("127.0.0.1", tcp.port)))


def child_serves() -> None:
    """A child with a server of its own, and a grandchild with another."""

    def serve(name: str, then: Callable[[], object]) -> None:
        path = os.path.join(FOLDER, name)
        with WorkerServer(path) as server:
            pid = json.loads(ask(path, "/healthz", "GET")[1])["pid"]
            assert pid == os.getpid()
            assert ask(path) == (200, "pong")
            assert ask(path, "/handler/dump_traceback")[0] == 200
            then()
            assert ask(path) == (200, "pong")
            assert server.connections <= 1
        assert not os.path.exists(path)

    def child() -> None:
        serve("child", lambda: check(fork(lambda: serve("grandchild", int))))

    def check(pid: int) -> None:
        assert status(pid) == 0

    with serving():
        pool_was_used = ask(PATH)
        code = status(fork(child))
        pid = json.loads(ask(PATH, "/healthz", "GET")[1])["pid"]
        say(code=code, ping=pool_was_used, parent=pid == os.getpid(), left=os.listdir(FOLDER))


def block() -> None:
    """The body of ``with worker_main():`` forks, and the child leaves through the block."""
    codes = []
    os.environ["TORCH_WORKER_SERVER_SOCKET"] = PATH
    parent = os.getpid()
    try:
        with worker_main():
            for way in ("exit", "error", "end"):
                pid = os.fork()
                if pid == 0:
                    if way == "exit":
                        raise SystemExit(4)
                    if way == "error":
                        raise ValueError("the child failed")
                    break
                codes.append(status(pid))
                assert ask(PATH) == (200, "pong")
            if os.getpid() == parent:
                say(codes=codes)
    except ValueError:
        os._exit(6)
    if os.getpid() != parent:
        assert os.path.exists(PATH)
        sys.exit(0)
    say(removed=not os.path.exists(PATH))


def load() -> None:
    """200 forks from a second thread during requests. No child holds a descriptor of ours."""
    stop = threading.Event()
    answered = [0, 0]
    errors: list[str] = []
    bad: list[object] = []

    def client(number: int, address: Any) -> None:
        try:
            while not stop.is_set():
                handler = "ping" if number else "quick"
                assert ask(address, f"/handler/{handler}") == (200, "pong")
                answered[number] += 1
        except BaseException as error:
            errors.append(repr(error))

    def forks() -> None:
        out, into = os.pipe()
        for _ in range(200):
            pid = os.fork()
            if pid == 0:
                # A TCP client's own end, which lives here too, has a name of its own.
                os.write(into, json.dumps(ours(tcp.port)).encode() + b"\n")
                os._exit(0)
            if (code := status(pid)) != 0:
                bad.append(code)
        os.close(into)
        with open(out, encoding="ascii") as file:
            bad.extend(line for line in file if line != "[]\n")

    with serving() as (_, tcp, registry):
        registry.register("quick", lambda: "pong")
        threads = [
            threading.Thread(target=client, args=(i, address))
            for i, address in enumerate((PATH, ("127.0.0.1", tcp.port)))
        ]
        for thread in threads:
            thread.start()
        forker = threading.Thread(target=forks)
        forker.start()
        forker.join()
        stop.set()
        for thread in threads:
            thread.join()
        say(bad=bad[:5], count=len(bad), errors=errors, answered=min(answered) > 0)


def while_closing() -> None:
    """A fork while a server can't close because a handler keeps the loop busy."""
    registry = Registry()
    entered = threading.Event()

    async def blocking() -> None:
        entered.set()
        time.sleep(3600)

    registry.register("blocking", blocking)
    server = WorkerServer(PATH, registry=registry)
    with send(PATH, "/handler/blocking"):
        assert entered.wait(30)
        server.shutdown(0.2)
        code = status(fork(lambda: say(child=socket_names().count(PATH))))
        say(code=code, parent=socket_names().count(PATH) > 0, alive=alive(PATH))


SCENES: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (descriptors, killed, endings, child_serves, block, load, while_closing)
}

if __name__ == "__main__":
    SCENES[sys.argv[1]]()
