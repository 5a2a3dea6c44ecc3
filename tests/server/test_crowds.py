"""Strangers who connect and say nothing take no descriptor that training or an honest client needs.

Every test has a server in a process of its own, with 1,024 descriptors.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lifecycle import PROGRAMS, environment, talking
from support.served import Connect, Kind, Serve
from support.waiting import wait_until
from support.wire import Address, Client, TlsAddress, post

from workerserver import Limits

KINDS = ("native", "uvloop", "tls")
TOKEN = [("Authorization", "Bearer secret")]
CROWD = 700  # at each of two ports


class Scene:
    """The server's process, and what to ask it."""

    def __init__(self, kind: str, folder: Path) -> None:
        if kind == "tls" and shutil.which("openssl") is None:
            pytest.skip("needs the openssl program")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "server" / "crowd_scene.py"), kind, str(folder)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ports = self._read()
        self.unix: Address = str(folder / "s")
        self.plain: list[tuple[str, int]] = [("127.0.0.1", port) for port in ports[1:]]
        self.tcp: list[Address] = [*(map(TlsAddress, self.plain) if kind == "tls" else self.plain)]

    def _read(self) -> list[int]:
        assert self.process.stdout is not None
        answer: list[int] = json.loads(self.process.stdout.readline())
        return answer

    def __call__(self, line: str) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Scene]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    scene = Scene(request.param, short_path)
    try:
        yield scene
    finally:
        scene.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(address: tuple[str, int], number: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing. Each of them is accepted before the next one comes to wait."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address, 20)) for _ in range(number)]


def test_silent_connections_leave_training_its_descriptors(scene: Scene) -> None:
    """Seven hundred silent connections to each of two ports: files can still be opened, and who has
    the token is answered, on each listener."""
    with crowd(scene.plain[0], CROWD), crowd(scene.plain[1], CROWD):
        wait_until(lambda: sum(scene("count")[2:]) <= 64)
        (opened,) = scene("open 256")
        assert opened == 256, "training can't open its files"
        for address in (scene.unix, *scene.tcp):
            with Client(address) as client:
                assert client.ask(post("ping", headers=TOKEN)).body == b"pong"


def test_who_has_shown_the_token_is_not_pushed_out(scene: Scene) -> None:
    """The connection that has owed us bytes for longest goes; an idle one with the token has a
    place of another kind."""
    with Client(scene.tcp[0]) as honest, Client(scene.unix) as local:
        assert honest.ask(post("ping", headers=TOKEN)).body == b"pong"
        assert local.ask(post("ping", headers=TOKEN)).body == b"pong"
        with crowd(scene.plain[0], CROWD), crowd(scene.plain[1], CROWD):
            wait_until(lambda: sum(scene("count")[2:]) <= 65)
            assert honest.ask(post("ping", headers=TOKEN)).body == b"pong"
            assert local.ask(post("ping", headers=TOKEN)).body == b"pong"


def test_places_are_kept_when_training_has_opened_nearly_everything(scene: Scene) -> None:
    """Beyond the line there are a few places all the same, and the silent ones lose theirs."""
    used = scene("count")[0]
    scene(f"hold {1000 - used}")
    with crowd(scene.plain[0], 40):
        wait_until(lambda: sum(scene("count")[2:]) <= 8)
        for address in (scene.unix, *scene.tcp):
            with Client(address) as client:
                assert client.ask(post("ping", headers=TOKEN)).body == b"pong"


@pytest.mark.parametrize("kind", ["tcp", "uvloop-tcp", "tls"])
def test_one_address_has_so_many_connections(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Without a token, too: the oldest silent one of the same address goes."""
    served = serve(kind, limits=Limits(max_peer=5))
    clients = []
    for _ in range(8):
        clients.append(connect(served.address))
    assert [client.rest() for client in clients[:3]] == [b""] * 3
    assert all(client.ask(post("ping")).body == b"pong" for client in clients[3:])
    wait_until(lambda: served.connections == 5)


def test_a_burst_leaves_training_its_descriptors(short_path: Path) -> None:
    """All are accepted in one turn of uvloop's loop, which closes those that have to go later."""
    path = str(short_path / "s")
    with talking("process/burst_scene.py", path) as scene, contextlib.ExitStack() as stack:
        assert scene.hear() == "ready"
        asks = stack.enter_context(Client(path, 60))
        asks.send(post("stand"))
        for _ in range(300):
            stack.enter_context(Client(path))

        def left() -> int:
            scene.say("left")
            return int(scene.hear())

        assert asks.reply().text == "stood"
        # Accepted behind all of them; it has a place, or none.
        with contextlib.suppress(ConnectionError, EOFError), Client(path, 60) as last:
            last.ask(post("ping"))
        wait_until(lambda: left() >= 60, 60)
