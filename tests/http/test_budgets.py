"""What the server takes of the trainer's processor: snapshots, and its loop's share of the GIL."""

from __future__ import annotations

import json
import threading
import time

import pytest
from support.served import Connect, Kind, Serve
from support.wire import Client, ask, post

from workerserver import Limits
from workerserver.stacks._stacks import snapshots_taken

KINDS: tuple[Kind, ...] = ("unix", "tcp", "uvloop-unix", "tls")
#: Beyond the limit of snapshots, without one, and for the I/O thread.
DUMPS = ("dump_traceback?format=json", "dump_traceback?format=json&mode=nogil")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    value: Kind = request.param
    return value


def ask_all(clients: list[Client], request: bytes, times: int) -> float:
    """Each client asks *times* times, all at once; the seconds that it took."""

    def run(client: Client) -> None:
        for _ in range(times):
            reply = client.ask(request)
            assert reply.status == 200, reply
            answered.append(reply)

    answered: list[object] = []
    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == len(clients) * times
    return time.monotonic() - began


@pytest.mark.parametrize("name", DUMPS)
def test_so_many_snapshots_a_second(kind: Kind, serve: Serve, connect: Connect, name: str) -> None:
    """A second's worth at once, then at that pace; all are answered."""
    rate = 20
    served = serve(kind, limits=Limits(max_snapshots=rate, gil_share=1.0))
    clients = [connect(served.address) for _ in range(8)]
    before = snapshots_taken()
    seconds = ask_all(clients, post(name), 15)
    assert snapshots_taken() - before <= rate * (1 + seconds) + 1


@pytest.mark.parametrize("name", DUMPS)
def test_no_snapshot_is_older_than_its_request(
    kind: Kind, serve: Serve, connect: Connect, name: str
) -> None:
    """Each request comes after another thread was started, while others keep the pace spent."""
    served = serve(kind, limits=Limits(max_snapshots=20, gil_share=1.0))
    client, other = connect(served.address), connect(served.address)
    for number in range(30):
        over = threading.Event()
        thread = threading.Thread(target=over.wait, name=f"fresh {number}")
        other.send(post(name))
        thread.start()
        found = json.loads(client.ask(post(name)).body)
        assert f"fresh {number}" in [each["name"] for each in found["threads"]]
        over.set()
        thread.join()
        other.reply()


def burn(seconds: float) -> str:
    """Use the processor, with the GIL."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "burnt"


def test_the_loop_keeps_to_its_share(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Whatever clients ask for: beyond what was saved up, requests wait until there is time again.
    One may overdraw."""
    share, each = 0.2, 0.01
    served = serve(kind, limits=Limits(gil_share=share))
    served.registry.register("burn", lambda: burn(each), inline=True)
    clients = [connect(served.address) for _ in range(5)]
    seconds = ask_all(clients, post("burn"), 10)
    assert 50 * each <= share * (seconds + 1) + 2 * each


def test_who_waits_too_long_is_refused(kind: Kind, serve: Serve, connect: Connect) -> None:
    runs: list[float] = []

    def costly() -> str:
        runs.append(time.monotonic())
        return burn(0.05)

    served = serve(kind, limits=Limits(gil_share=0.001, gil_timeout=0.2))
    served.registry.register("costly", costly, inline=True)
    client = connect(served.address)
    statuses = [client.ask(post("costly")).status for _ in range(3)]
    assert 503 in statuses
    assert len(runs) == statuses.count(200)


def test_a_share_of_one_is_no_limit(kind: Kind, serve: Serve) -> None:
    served = serve(kind, limits=Limits(gil_share=1.0))
    served.registry.register("burn", lambda: burn(0.3), inline=True)
    for _ in range(5):
        assert ask(served.address, post("burn")).status == 200
