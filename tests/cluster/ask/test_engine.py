"""The engine in C and the client of Python ask the same workers, and learn the same."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.jobs.misbehaving import BEHAVIOURS, GOOD, send
from support.jobs.workers import (
    DIGEST,
    HEALTH,
    SUMMARY,
    Answer,
    Start,
    digest,
    good,
    hang,
    health,
    http,
    summary,
)
from support.lifecycle import environment
from support.served import Kind, Serve

from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.collectors import first_answers
from workerserver.cluster.ask.engine import at_once
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.model import EVERYTHING, RankState, Worker

pytestmark = pytest.mark.skipif(at_once._ask is None, reason="needs epoll")

LINUX = sys.platform == "linux"


class Ways:
    """Asks the same workers by the engine, and without it. ``talks``: how the engine ended with
    each worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.talks: dict[Worker, str] = {}

    def ask(self, workers: list[Worker], engine: bool, **options: Any) -> list[RankState]:
        with self.monkeypatch.context() as patch:
            if engine:
                early = at_once.AtOnce._early

                def noted(one: Any, worker: Any, questions: Any, talk: Any) -> Any:
                    self.talks[worker] = talk.how
                    return early(one, worker, questions, talk)

                patch.setattr(at_once.AtOnce, "_early", noted)
            else:
                patch.setattr(at_once, "_ask", None)
            return run(
                lambda client: first_answers(workers, client, EVERYTHING, Memory(), stock=True),
                **options,
            )

    def both(self, workers: list[Worker], stacks: bool = True, **options: Any) -> list[RankState]:
        """What the engine learned; the client of Python has learned the same. *stacks*: the workers
        have the same ones in both looks."""
        found = self.ask(workers, True, **options)
        assert self.talks
        without = self.ask(workers, False, **options)
        for one, other in zip(found, without, strict=True):
            assert learned(one, stacks) == learned(other, stacks), one.worker
            # Without the engine, a connection that has ended tells no more who listened.
            assert other.peer_pid in (None, one.peer_pid)
        return found


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def learned(state: RankState, stacks: bool) -> dict[str, Any]:
    """What does not change from one look to the next."""
    failures = {
        question: (failure.reason, re.sub(r"\d+ bytes", "N bytes", failure.text))
        for question, failure in state.failures.items()
    }
    told = None
    if state.health is not None:
        told = (state.health.status, state.health.pid, state.health.rank, state.health.host)
    names = ["rank", "kind", "flight_summary", "responded", "recorders"]
    if stacks:
        names += ["digest", "main_digest", "mode"]
    fields = {name: getattr(state, name) for name in names}
    clock = None if state.clock_ahead_s is None else abs(state.clock_ahead_s) > 3600
    return {**fields, "health": told, "failures": failures, "clock": clock}


# --- real workers


@pytest.mark.parametrize("kind", ["unix", "tcp", "uvloop-unix", "uvloop-tcp"])
def test_a_real_worker(serve: Serve, kind: Kind, ways: Ways) -> None:
    served = serve(kind)
    unix = kind.endswith("unix")
    address = str(served.address) if unix else "{}:{}".format(*served.address)
    (state,) = ways.both([Worker(address, unix)], stacks=False)
    assert (state.kind, state.failures.keys() <= {"fr_summary", "flight"}) == ("workerserver", True)
    assert state.digest is not None
    assert list(ways.talks.values()) == ["answered"]
    assert (state.peer_pid is not None) == (unix and LINUX)


@pytest.mark.torch
def test_torchs_own_server(ways: Ways) -> None:
    """It loses questions that are put in one go, and says that it ends the connection."""
    torch = pytest.importorskip("torch._C._distributed_c10d")
    pytest.importorskip("torch.distributed.elastic.control_plane")
    server = torch._WorkerServer("127.0.0.1", 0)
    try:
        (state,) = ways.both([Worker(f"127.0.0.1:{server.port}", False)], stacks=False)
    finally:
        server.shutdown()
    assert state.kind == "torch"
    assert state.digest is not None
    assert state.threads


# --- workers that misbehave


@contextlib.contextmanager
def misbehaving(place: str, folder: str) -> Iterator[list[Worker]]:
    command = [sys.executable, "-m", "support.jobs.misbehaving", place, folder]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        yield [Worker(address, folder != "-") for address in addresses]
        process.stdin.close()


#: How much of these has come when their time or their bound is reached is luck.
BY_LUCK = {"drips the head", "drips fields", "endless interim answers", "endless body"}


@pytest.mark.parametrize(("place", "kind"), [("healthz", "unix"), ("digest", "tcp")])
def test_the_same_failures(place: str, kind: str, ways: Ways) -> None:
    """Good workers, and one for each misbehaviour: silence, slow drips, wrong lengths, chunks, long
    heads, connections that end early."""
    with (
        tempfile.TemporaryDirectory(prefix="ws-") as folder,
        misbehaving(place, folder if kind == "unix" else "-") as workers,
    ):
        names = ["good"] * len(GOOD) + list(BEHAVIOURS)
        asked = [worker for worker, name in zip(workers, names, strict=True) if name not in BY_LUCK]
        states = ways.both(asked, deadline=3.0)
    assert all(state.failures == {} for state in states[: len(GOOD)])
    assert all(place in state.failures for state in states[len(GOOD) :])
    assert {"answered", "late", "strange"} <= set(ways.talks.values())


def one_by_one(answers: dict[str, Answer], *fields: bytes) -> dict[str, Answer]:
    """A server that ends each connection after one answer."""

    def ending(answer: Answer) -> Answer:
        assert isinstance(answer, bytes)
        head, _, body = answer.partition(b"\r\n\r\n")
        return send(b"\r\n".join([head, *fields]) + b"\r\n\r\n" + body, "close")

    return {path: ending(answer) for path, answer in answers.items()}


def older(answer: bytes, field: bytes = b"X: y") -> bytes:
    """In HTTP/1.0."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.replace(b"1.1", b"1.0", 1) + b"\r\n" + field + b"\r\n\r\n" + body


def chunked(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    head = re.sub(rb"\r\nContent-Length: \d+", b"\r\nTransfer-Encoding: chunked", head)
    return head + b"\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def each(change: Callable[[bytes], bytes]) -> dict[str, Answer]:
    """Good answers, each of them changed."""
    answers = good(1)
    return {path: change(answer) for path, answer in answers.items() if isinstance(answer, bytes)}


def page(status: str, *fields: str) -> bytes:
    return http(b"<html>no</html>", status, "Content-Type: text/html", "Server: nginx", *fields)


def interim(answer: bytes) -> bytes:
    return b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer


AHEAD, LATER = {"status": "ok", "rank": 1}, "Date: Sun, 06 Nov 2044 08:49:37 GMT"

#: Answers of one worker, and how the engine ends with it.
CASES: dict[str, tuple[dict[str, Answer], str]] = {
    "good": (good(1), "answered"),
    "closes after each answer": (one_by_one(good(1)), "strange"),
    "says so": (one_by_one(good(1), b"Connection: close"), "strange"),
    "HTTP/1.0": (one_by_one(each(older)), "strange"),
    "HTTP/1.0 that goes on": (each(partial(older, field=b"Connection: keep-alive")), "answered"),
    "chunks": (each(chunked), "strange"),
    "an interim answer": ({**good(1), DIGEST: interim(digest("cd"))}, "strange"),
    "a GIL that can't be had": ({**good(1), DIGEST: digest("cd", mode="nogil")}, "strange"),
    "a summary that hangs": ({**good(1), SUMMARY: hang}, "strange"),
    "a summary that ends": ({**good(1), SUMMARY: send(b"", "close")}, "strange"),
    "half a summary": ({**good(1), SUMMARY: send(summary()[:-9], "close")}, "strange"),
    "a digest that is reset": ({**good(1), DIGEST: send(b"", "reset")}, "strange"),
    "a health that is longer than it says": ({**good(1), HEALTH: health(1) + b"more"}, "strange"),
    "401": ({**good(1), HEALTH: http(b"who?", "401 Unauthorized")}, "answered"),
    "403": ({**good(1), HEALTH: http(b"not you", "403 Forbidden")}, "answered"),
    "404": ({**good(1), DIGEST: http(b"", "404 Not Found")}, "answered"),
    "429": ({**good(1), DIGEST: http(b"later", "429 Too Many Requests")}, "answered"),
    "503": ({**good(1), SUMMARY: http(b"busy", "503 Service Unavailable")}, "answered"),
    "503 for health": ({**good(1), HEALTH: http(b"busy", "503 Service Unavailable")}, "answered"),
    "a page": ({HEALTH: page("404 Not Found")}, "answered"),
    "a page with 200": ({**good(1), HEALTH: page("200 OK")}, "answered"),
    "a digest of another kind": ({**good(1), DIGEST: http([1, 2])}, "answered"),
    "a clock that is ahead": ({**good(1), HEALTH: http(AHEAD, "200 OK", LATER)}, "answered"),
    "another rank": ({**good(7)}, "answered"),
}


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_the_same_of_each(start: Start, kind: str, ways: Ways) -> None:
    names = list(CASES)
    workers = [start(CASES[name][0], kind).worker(1) for name in names]
    ways.both(workers, deadline=4.0)
    ends = {name: ways.talks[worker] for name, worker in zip(names, workers, strict=True)}
    assert ends == {name: end for name, (_, end) in CASES.items()}


# --- no connection


def test_nobody_there(start: Start, short_path: Path, ways: Ways) -> None:
    (short_path / "file").touch()
    gone = socket.socket(socket.AF_UNIX)
    gone.bind(str(short_path / "gone"))
    gone.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    named = start(good(9)).worker(9).address.replace("127.0.0.1", "localhost")
    addresses = [
        *((str(short_path / name), True) for name in ("none", "file", "gone", "x" * 200)),
        (f"127.0.0.1:{port}", False),
        (f"localhost:{port}", False),
        (f"no-such-host.invalid:{port}", False),
        (named, False),
    ]
    workers = [Worker(address, unix) for address, unix in addresses]
    states = ways.both(workers, deadline=30.0)
    assert [state.responded for state in states] == [False] * 7 + [True]
    assert {ways.talks[worker] for worker in workers[4:6]} == {"unreached"}
    assert workers[3] not in ways.talks  # its path is too long for a socket
    assert ways.talks[workers[6]] == "unnamed"
    assert ways.talks[workers[7]] == "answered"


def test_a_full_backlog(short_path: Path, ways: Ways) -> None:
    """Nobody accepts: first there is no connection, and with a place in the backlog no answer."""
    with contextlib.ExitStack() as stack:
        workers = []
        for backlog in (0, 10):
            path = str(short_path / f"{backlog}")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen(backlog)
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.connect(path)
            workers.append(Worker(path, True))
        states = ways.both(workers, deadline=0.5)
    texts = [state.failures["healthz"].text for state in states]
    assert texts == ["no connection in 0.5 s", "no answer in 0.5 s"]


def test_a_worker_that_was_silent_is_waited_for_less(start: Start, ways: Ways) -> None:
    worker = start({HEALTH: hang}).worker(0)

    async def look(client: Client) -> list[RankState]:
        client.patience[worker] = 0.25
        return await first_answers([worker], client, EVERYTHING, Memory())

    texts = []
    for engine in (at_once._ask, None):
        ways.monkeypatch.setattr(at_once, "_ask", engine)
        (state,) = run(look, deadline=1.0)
        texts.append(state.failures["healthz"].text)
    assert texts == ["no answer in 1 s, nor in 0.25 s when asked again"] * 2


def test_many_behind_few_places(start: Start, ways: Ways) -> None:
    """Those that hang hold up nobody, and each of them is asked on a second connection, too."""
    silent = [start({HEALTH: hang}) for _ in range(6)]
    friends = [start(good(rank)) for rank in range(20)]
    workers = [server.worker() for server in (*silent, *friends)]
    states = ways.ask(workers, True, concurrency=2, deadline=4.0)
    assert [state.rank for state in states[6:]] == list(range(20))
    assert all(state.failures == {} for state in states[6:])
    assert [state.failures["healthz"].text for state in states[:6]] == ["no answer in 4 s"] * 6
    assert {server.accepted for server in silent} == {2}
    assert {server.accepted for server in friends} <= {1, 2}


# --- the token

TOKEN = "the-secret-of-this-job"


@pytest.mark.parametrize("kind", ["unix", "tcp", "uvloop-unix", "uvloop-tcp"])
def test_the_token_is_proven(
    serve: Serve, kind: Kind, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TCP; a Unix socket of our own gets it as it is."""
    monkeypatch.setenv("RANK", "3")
    served = serve(kind, token=TOKEN)
    unix = kind.endswith("unix")
    address = str(served.address) if unix else "{}:{}".format(*served.address)
    (state,) = ways.both([Worker(address, unix, 3)], stacks=False, token=TOKEN, deadline=30.0)
    assert state.digest is not None
    assert (state.rank, state.failures.keys() <= {"fr_summary", "flight"}) == (3, True)
    assert list(ways.talks.values()) == ["answered"]
    for rank, token in ((5, TOKEN), (3, "another"), (3, None)):
        (state,) = ways.both([Worker(address, unix, rank)], token=token, deadline=30.0)
        assert state.failures["healthz"].reason == ("lied" if rank == 5 else "refused")


def relayed(
    worker: Worker, change: Callable[[bytes], bytes], stack: contextlib.ExitStack
) -> Worker:
    """*worker*, behind a stranger who changes what comes from it."""
    host, _, port = worker.address.rpartition(":")
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=pass_on, args=(connection,), daemon=True).start()

    def pass_on(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            connection,
            socket.create_connection((host, int(port))) as other,
        ):
            while True:
                for source in select.select((connection, other), (), ())[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is other:
                        connection.sendall(change(data))
                    else:
                        other.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return Worker(f"127.0.0.1:{listener.getsockname()[1]}", False, worker.rank)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: data,
    "a body": lambda data: data.replace(b'"status":"ok"', b'"status":"no"'),
    "a status": lambda data: data.replace(b"HTTP/1.1 200", b"HTTP/1.1 201"),
    "a proof": lambda data: re.sub(rb"(Authentication-Info: m=)[0-9a-f]{4}", rb"\g<1>abcd", data),
    "no proof": lambda data: re.sub(rb"Authentication-Info: [^\r]*\r\n", b"", data),
    "the greeting": lambda data: re.sub(rb"n=[0-9a-f]{4}", b"n=abcd", data),
    "another version": lambda data: data.replace(b"WorkerServer v=1", b"WorkerServer v=2"),
    "no challenge": lambda data: re.sub(rb"WWW-Authenticate: [^\r]*\r\n", b"", data),
    "who it is": lambda data: re.sub(rb"w=[0-9a-f]{2}", b"w=3a", data),
}


def test_what_a_stranger_changes_does_not_count(
    serve: Serve, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    served = serve("tcp", token=TOKEN)
    worker = Worker("{}:{}".format(*served.address), False, 3)
    with contextlib.ExitStack() as stack:
        workers = [relayed(worker, change, stack) for change in CHANGES.values()]
        states = ways.both(workers, stacks=False, token=TOKEN, deadline=30.0)
    assert states[0].health is not None
    assert [state.health for state in states[1:]] == [None] * (len(CHANGES) - 1)
    assert {state.failures["healthz"].reason for state in states[1:]} == {"refused"}
    ends = [ways.talks[each] for each in workers]
    assert ends == ["answered"] + ["strange"] * (len(CHANGES) - 1)
