"""What handlers, clients and signals may do without harm to the process or to each other."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import run_isolated
from support.served import Served
from support.waiting import wait_until
from support.wire import Client, ask, post

from workerserver import Request, Response, WorkerServer, worker_main
from workerserver.http._protocol import ServerState
from workerserver.server import Limits


def isolated(scene: str, path: Path) -> Any:
    done = run_isolated("server/guard_scene.py", scene, str(path / "s"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_signal_handler_that_shuts_down_another_server(short_path: Path) -> None:
    assert isolated("signals", short_path) > 0


def test_clients_leave_descriptors_to_training(short_path: Path) -> None:
    assert isolated("descriptors", short_path) == [True, 200, "pong"]


def test_child_starts_with_free_handlers(short_path: Path) -> None:
    assert isolated("fork", short_path) == [0, 1]


def test_no_thread_for_the_registration(short_path: Path) -> None:
    assert isolated("registration", short_path) is False


@pytest.mark.parametrize("kind", ["inline", "thread", "async"])
@pytest.mark.parametrize("headers", [{"X-Step": "1"}, [("X-Step", "1", "2")], [("A B", "x")]])
def test_headers_of_any_shape_get_an_answer(served: Served, kind: str, headers: Any) -> None:
    def plain() -> Response:
        return Response("x", headers=headers)

    async def asynchronous() -> Response:
        return Response("x", headers=headers)

    function = asynchronous if kind == "async" else plain
    served.registry.register("odd", function, inline=kind == "inline")
    with Client(served.address) as client:
        reply = client.ask(post("odd"))
        if isinstance(headers, dict):
            assert (reply.status, reply.header("x-step")) == (200, "1")
        else:
            assert reply.status == 500
        assert client.ask(post("ping")).body == b"pong"


class Unnamed(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name either")


class Hostile(Exception, metaclass=Unnamed):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("kind", ["inline", "thread", "async"])
def test_exception_that_cannot_be_described(served: Served, kind: str) -> None:
    def plain() -> None:
        raise Hostile

    async def asynchronous() -> None:
        raise Hostile

    function = asynchronous if kind == "async" else plain
    served.registry.register("hostile", function, inline=kind == "inline")
    with Client(served.address) as client:
        for _ in range(3):
            reply = client.ask(post("hostile"))
            assert reply.status == 500
            assert reply.text.startswith("Handler hostile failed")
        assert client.ask(post("ping")).body == b"pong"


def test_hung_handlers_do_not_silence_others(server: Served, gate: threading.Event) -> None:
    """Handlers that hang fill their own places; past all threads a request is refused, not kept."""
    for number in range(8):
        server.registry.register(f"hung{number}", lambda: gate.wait(60) and None)
    server.registry.register("fine", lambda: "fine")
    clients = [Client(server.address) for _ in range(64)]
    try:
        for number, client in enumerate(clients[:56]):
            client.send(post(f"hung{number % 7}"))
        hung = [server.registry.find(f"hung{number}") for number in range(8)]
        wait_until(lambda: sum(handler.running for handler in hung) == 56)
        assert ask(server.address, post("hung0")).status == 503
        assert ask(server.address, post("fine")).body == b"fine"
        for client in clients[56:]:
            client.send(post("hung7"))
        wait_until(lambda: sum(handler.running for handler in hung) == 64)
        reply = ask(server.address, post("fine"))
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        assert ask(server.address, post("ping")).body == b"pong"
        gate.set()
        assert all(client.reply().status == 200 for client in clients)
        assert ask(server.address, post("fine")).body == b"fine"
    finally:
        for client in clients:
            client.close()


def test_bodies_count_until_their_reply(serve: Any, gate: threading.Event) -> None:
    served = serve("unix", limits=Limits(max_body=1 << 20, max_bodies=(5 << 20) // 2))

    def keep(request: Request) -> str:
        gate.wait(60)
        return str(len(request.body))

    served.registry.register("keep", keep)
    body = b"x" * (1 << 20)
    with Client(served.address) as one, Client(served.address) as two:
        for client in (one, two):
            client.send(post("keep", body))
        wait_until(lambda: served.registry.find("keep").running == 2)
        assert ask(served.address, post("keep", body)).status == 503
        gate.set()
        assert [client.reply().text for client in (one, two)] == ["1048576"] * 2
        assert ask(served.address, post("keep", body)).text == "1048576"


def test_a_mistake_while_looking_up_is_a_500(server: Served) -> None:
    class Broken:
        def names(self) -> list[str]:
            raise KeyError("names")

        def find(self, name: str) -> None:
            raise KeyError(name)

        def after_fork(self) -> None: ...

    server.registry.fallback = Broken()
    with Client(server.address) as client:
        assert client.ask(post("absent")).status == 500
        assert client.ask(post("ping")).body == b"pong"


def test_path_objects(short_path: Path) -> None:
    with WorkerServer(short_path / "s") as server:  # type: ignore[arg-type]
        assert server.address == str(short_path / "s")
        assert isinstance(server.state, ServerState)


def test_one_worker_main_inside_itself(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_WORKER_SERVER_SOCKET", str(short_path / "s"))
    main = worker_main()
    with main:
        with main:
            assert ask(str(short_path / "s"), post("ping")).body == b"pong"
        assert ask(str(short_path / "s"), post("ping")).body == b"pong"
    assert not (short_path / "s").exists()


def test_empty_tcp_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERSERVER_TCP", "")
    with worker_main():
        pass
