"""What a look costs a worker: connections, and round trips that wait for each other."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import (
    HEALTH,
    STACKS,
    SUMMARY,
    TRACE,
    Listening,
    Start,
    digest,
    good,
    hang,
    health,
    http,
    stacks,
    summary,
)
from support.served import Serve
from support.waiting import becomes

from workerserver.cluster.ask import client as clients
from workerserver.cluster.ask import rounds
from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.engine import at_once
from workerserver.cluster.ask.fetch_full import full_answers
from workerserver.cluster.ask.questions import HEALTH as HEALTHZ
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.rounds import Round, collect_round
from workerserver.cluster.model import EVERYTHING, Worker
from workerserver.types import Response

pytestmark = pytest.mark.skipif(at_once._ask is None, reason="needs epoll")

TOKEN = "the-secret-of-this-job"
SECONDS = 60.0


class Counter(Listening):
    """Stands before *worker*, at *path* or on a port, and passes all on. ``trips`` has the round
    trips of each connection: a trip begins with what the client sends after the worker has spoken,
    or after the connection was made."""

    SECONDS = 60.0

    def __init__(self, worker: Worker, path: Path | None = None) -> None:
        super().__init__(path)
        self._behind = worker
        self._counts: dict[int, int] = {}
        self.worker = Worker(self.address, self.unix, worker.rank)
        self.begin()

    @property
    def trips(self) -> list[int]:
        return [self._counts.get(number, 0) for number in range(self.accepted)]

    @property
    def dependent(self) -> int:
        """Round trips one after the other, the connections' own too."""
        return len(self.trips) + sum(self.trips)

    def serve(self, connection: socket.socket, number: int) -> None:
        self._counts[number] = 0
        behind = self._behind
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            other = socket.socket(socket.AF_UNIX if behind.unix else socket.AF_INET)
            stack.enter_context(other)
            host, _, port = behind.address.rpartition(":")
            other.connect(behind.address if behind.unix else (host, int(port)))
            spoken = True
            while True:
                # What the worker has said is passed on first: it belongs to the trip before.
                ready = select.select((other, connection), (), ())[0]
                source = ready[0]
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is other:
                    spoken = True
                    connection.sendall(data)
                else:
                    self._counts[number] += spoken
                    spoken = False
                    other.sendall(data)


@pytest.fixture
def counted() -> Iterator[Callable[..., Counter]]:
    with contextlib.ExitStack() as stack:

        def count(worker: Worker, path: Path | None = None) -> Counter:
            counter = Counter(worker, path)
            stack.callback(counter.close)
            return counter

        yield count


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes nobody try a second connection."""
    monkeypatch.setattr(at_once, "STALL_SECONDS", SECONDS)


def look(workers: list[Worker], looks: int = 1, **options: Any) -> Round:
    async def collect(client: Client) -> Round:
        memory = Memory()
        for _ in range(looks):
            found = await collect_round(workers, client, EVERYTHING, memory)
        return found

    return run(collect, **{"deadline": SECONDS, **options})


def hung(rank: int = 0) -> dict[str, Any]:
    """The answers of a rank of which stacks and trace are wanted."""
    return {**good(rank), SUMMARY: summary(6, pending=True), TRACE: http({"entries": [rank]})}


def fully_known(found: Round) -> bool:
    return all(
        state.threads and state.flight == {"entries": [0]} and not state.failures
        for state in found.states
    )


# --- round trips


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_three_round_trips_to_the_rank_that_hangs(
    start: Start, kind: str, counted: Callable[..., Counter], short_path: Path, patient: None
) -> None:
    """To connect, for the small questions, and for stacks and trace."""
    path = short_path / "counted" if kind == "unix" else None
    counter = counted(start(hung(), kind).worker(0), path)
    assert fully_known(look([counter.worker]))
    assert (counter.trips, counter.dependent) == ([2], 3)
    assert fully_known(look([counter.worker], 2))
    assert counter.trips == [2] * 3  # a look doesn't use the connections of the look before


def test_no_rank_costs_more(start: Start, counted: Callable[..., Counter], patient: None) -> None:
    """Neither one that speaks for others, nor one of which only the trace is wanted."""
    servers = [start({**hung(rank), SUMMARY: summary(rank, pending=True)}) for rank in range(4)]
    counters = [counted(server.worker(rank)) for rank, server in enumerate(servers)]
    found = look([counter.worker for counter in counters])
    assert (found.stacks_fetched, found.traces_fetched) == (1, 4)
    assert [counter.trips for counter in counters] == [[2]] * 4
    asked = [[target for _, target in server.asked] for server in servers]
    assert [STACKS in targets for targets in asked].count(True) == 1
    assert all(targets.count(TRACE) == 1 for targets in asked)


@pytest.mark.parametrize("kind", ["tcp", "uvloop-tcp"])
def test_with_a_token_the_greeting_is_one_more(
    serve: Serve,
    kind: Any,
    counted: Callable[..., Counter],
    monkeypatch: pytest.MonkeyPatch,
    patient: None,
) -> None:
    """One proof and one count of requests for all questions on the connection."""
    monkeypatch.setenv("RANK", "0")
    served = serve(kind, token=TOKEN)
    registry = served.registry

    def body(answer: bytes) -> bytes:
        return answer.partition(b"\r\n\r\n")[2]

    def dump_traceback(format: str = "text") -> Response:
        answer = digest() if format == "digest" else stacks()
        return Response(
            body(answer), content_type="application/json", headers={"X-Traceback-Mode": "gil"}
        )

    for name, handler in (
        ("dump_traceback", dump_traceback),
        ("fr_summary", lambda: json.loads(body(summary(6, pending=True)))),
        ("fr_trace_json", lambda: {"entries": [0]}),
    ):
        registry.register(name, handler, replace=True, shadow=True)
    counter = counted(Worker("{}:{}".format(*served.address), False, 0))
    assert fully_known(look([counter.worker], token=TOKEN))
    assert (counter.trips, counter.dependent) == ([3], 4)


# --- connections that end


def closing(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(answer)


@pytest.mark.parametrize(
    "answer",
    [closing(summary(6, pending=True)), http(b"{}", "200 OK", "Connection: close")],
    ids=["in silence", "as it says"],
)
def test_a_server_that_ends_the_connection_is_connected_to_again(start: Start, answer: Any) -> None:
    server = start({**hung(), SUMMARY: answer})
    (state,) = look([server.worker(0)]).states
    assert state.threads
    assert not state.failures
    assert server.accepted >= 2


def test_kept_connections_give_way_to_workers_that_were_not_asked(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "descriptors_left", lambda: 8)
    servers = [start({**hung(rank), TRACE: http({"entries": [0]})}) for rank in range(30)]
    found = look([server.worker(rank) for rank, server in enumerate(servers)], concurrency=4)
    assert [bool(state.threads) for state in found.states] == [True] * 30
    assert not any(state.failures for state in found.states)


def test_of_ranks_that_say_the_same_some_connections_are_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    kept = []

    async def noted(client: Client, *more: Any) -> tuple[int, int]:
        kept.append(client.kept)
        return await full_answers(client, *more)

    monkeypatch.setattr(rounds, "full_answers", noted)

    def late(connection: socket.socket) -> None:
        """Rank 0 answers last, and speaks for the others all the same."""
        assert becomes(lambda: all(len(server.asked) >= 3 for server in servers[1:]), SECONDS)
        connection.sendall(health(0) + digest() + summary())
        assert connection.recv(1 << 16)
        connection.sendall(stacks() + digest())
        hang(connection)

    servers = [start({**good(0), HEALTH: late}), *(start(good(rank)) for rank in range(1, 30))]
    servers.append(start(good(30, "cc")))
    found = look([server.worker(rank) for rank, server in enumerate(servers)])
    assert not any(state.failures for state in found.states)
    assert kept == [17]
    assert [server.accepted for server in servers] == [1] * 31


def test_nobody_is_asked_after_the_stop(start: Start, patient: None) -> None:
    server = start(hung())
    worker = server.worker(0)

    async def stopped(client: Client) -> list[Any]:
        with client.one_look():
            found = [await client.visit([worker], talk, first=lambda _: [HEALTHZ])]
            client.stop()
            found.append(await client.visit([worker], talk, first=lambda _: [HEALTHZ]))
        return [each[worker] for each in found]

    async def talk(visit: Any) -> str:
        return str((await visit.ask(HEALTHZ)).status)

    first, second = run(stopped, deadline=SECONDS)
    assert (first, second.text) == ("ok", "interrupted before it was asked")
    assert len(server.asked) == 1


# --- a second connection


class Second:
    """Answers that begin on the connection that *silent* doesn't name, the first or the second."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.count = 0
        self.server: Any = None

    def __call__(self, connection: socket.socket) -> None:
        self.count += 1
        if self.count == self.silent:
            hang(connection)
            return
        assert becomes(lambda: self.server.accepted >= 2, SECONDS)
        connection.sendall(health(0))
        connection.recv(1 << 16)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("silent", [1, 2])
def test_whichever_answers_counts(start: Start, kind: str, silent: int) -> None:
    """A worker that gives no answer for a second gets a second connection; the first one may still
    answer. (What follows is asked on connections of the client's own.)"""
    answers = Second(silent)
    server = start({HEALTH: answers}, kind)
    answers.server = server
    (state,) = look([server.worker(0)]).states
    assert state.responded
    assert state.health is not None
    assert server.accepted >= 2


def test_silence_on_both(start: Start) -> None:
    server = start({HEALTH: hang})
    (state,) = look([server.worker(0)], deadline=3.0).states
    assert state.failures["healthz"].text == "no answer in 3 s"
    assert server.accepted == 2
