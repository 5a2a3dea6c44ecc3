"""Asking many workers: connections, deadlines, bounds, interrupts; and what a round learns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificate
from support.jobs.workers import (
    DIGEST,
    HEALTH,
    STACKS,
    SUMMARY,
    Answer,
    Canned,
    Start,
    good,
    hang,
    http,
)
from support.lifecycle import TESTS

from workerserver.cluster.ask.client import Client, Question, ask, run, tls_context
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.types import HandlerNotFound

PING = Question.handler("ping", limit=1024)
LARGE = Question.handler("ping", limit=2 << 20)
PONG = {"/handler/ping": http(b"pong", "200 OK", "Content-Type: text/plain")}


@pytest.fixture(params=["unix", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[PING, LARGE], ids=["small", "large"])
def question(request: pytest.FixtureRequest) -> Question:
    value: Question = request.param
    return value


def ask_all(workers: list[Worker], question: Question, **options: Any) -> list[Any]:
    results = run(lambda client: client.ask(workers, question), **options)
    assert list(results) == workers
    return list(results.values())


# --- one question -------------------------------------------------------------------------------


def test_an_answer(start: Start, kind: str, question: Question) -> None:
    (answer,) = ask_all([start(PONG, kind).worker()], question)
    assert (answer.status, answer.body, answer.content_type) == (200, b"pong", "text/plain")
    assert answer.received > len(answer.body)


def test_what_is_sent(start: Start, question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token and a length; no cookies, no proxies of the environment, no wish for compression.
    The token itself, over TCP, only if the operator says so."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = start({"/handler/ping": http(b"pong", "200 OK", "Set-Cookie: a=b")})
    for _ in range(2):
        (answer,) = ask_all([server.worker()], question, token="secret", send_token=True)
        assert answer.body == b"pong"
    for head in server.heads:
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert fields[b"authorization"] == b"bearer secret"
        assert fields[b"content-length"] == b"0"
        assert fields[b"host"] == server.address.encode()
        assert fields[b"accept-encoding"] == b"identity"
        assert b"cookie" not in fields


def test_an_error_is_a_failure_or_an_answer(start: Start, question: Question) -> None:
    answers: dict[str, Answer] = {
        "/handler/ping": http(b"busy\nreally", "503 Service Unavailable"),
        "/handler/fr": http(str(HandlerNotFound("fr")).encode(), "404 Not Found"),
    }
    worker = start(answers).worker()
    assert ask_all([worker], question) == [Failure("refused", "HTTP 503 Service Unavailable: busy")]
    either = Question("ping", "/handler/ping", limit=question.limit, any_status=True)
    (answer,) = ask_all([worker], either)
    assert (answer.status, answer.body) == (503, b"busy\nreally")
    other = Question("x", "/handler/x", limit=question.limit)
    (failure,) = ask_all([worker], other)
    assert failure == Failure("missing", "HTTP 404 Not Found: nothing here")
    (failure,) = ask_all([worker], Question("fr", "/handler/fr", limit=question.limit))
    assert failure == Failure("missing", "HTTP 404 Not Found: no handler fr")  # the name once


@pytest.mark.parametrize("how", ["length", "chunks", "end"])
def test_the_limit_is_exact(start: Start, kind: str, question: Question, how: str) -> None:
    def body(size: int) -> Answer:
        if how == "length":
            return http(b"x" * size)

        def act(connection: socket.socket) -> None:
            if how == "chunks":
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for start in range(0, size, 65536):
                    part = min(65536, size - start)
                    connection.sendall(b"%x\r\n" % part + b"x" * part + b"\r\n")
                connection.sendall(b"0\r\n\r\n")
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * size)
            connection.shutdown(socket.SHUT_RDWR)

        return act

    exact = start({"/handler/ping": body(question.limit)}, kind).worker()
    more = start({"/handler/ping": body(question.limit + 1)}, kind).worker()
    answer, failure = ask_all([exact, more], question, deadline=60)
    assert answer.body == b"x" * question.limit
    assert failure.reason == "too large"


def test_a_parser_that_fails_is_that_workers_problem(start: Start) -> None:
    def parse(answer: Any) -> Any:
        raise KeyError("missing")

    workers = [start(PONG).worker(), Worker("127.0.0.1:1", False)]
    broken = Question("ping", "/handler/ping", limit=100, parse=parse)
    first, second = ask_all(workers, broken)
    assert first.reason == "malformed"
    assert "KeyError" in first.text
    assert second.reason == "unreachable"


def test_answers_as_they_come(start: Start) -> None:
    workers = [start(PONG).worker(rank) for rank in range(5)]
    seen: dict[Worker, Any] = {}
    asyncio.run(ask(workers, PING, on_answer=seen.__setitem__))
    assert {worker: answer.body for worker, answer in seen.items()} == dict.fromkeys(
        workers, b"pong"
    )


# --- several questions --------------------------------------------------------------------------


def test_questions_share_a_connection(start: Start, kind: str) -> None:
    server = start(good(0), kind)
    (result,) = run(lambda client: collect([server.worker()], client=client))
    assert result.states[0].failures == {}
    paths = [target for _, target in server.asked]
    assert paths == [HEALTH, DIGEST, SUMMARY, STACKS]
    assert server.asked[0] == ("GET", HEALTH)
    assert server.accepted == 1


def test_a_server_that_closes_after_each_answer(start: Start, kind: str) -> None:
    """With and without saying so."""

    def closing(answer: Answer, *fields: bytes) -> Answer:
        assert isinstance(answer, bytes)

        def act(connection: socket.socket) -> None:
            head, _, body = answer.partition(b"\r\n\r\n")
            connection.sendall(b"\r\n".join([head, *fields]) + b"\r\n\r\n" + body)
            connection.shutdown(socket.SHUT_RDWR)

        return act

    workers = []
    for fields in ([], [b"Connection: close"]):
        answers = {path: closing(answer, *fields) for path, answer in good(3).items()}
        workers.append(start(answers, kind).worker())
    for worker in workers:
        (result,) = run(partial(collect_one, worker))
        assert result.states[0].failures == {}
        assert result.states[0].rank == 3


async def collect_one(worker: Worker, client: Client) -> list[Round]:
    return await collect([worker], client=client)


def test_the_deadline_is_for_all_questions_of_a_worker(start: Start) -> None:
    """Earlier answers are kept, and later questions are not asked."""
    answers: dict[str, Answer] = {**good(0), DIGEST: lambda connection: hang(connection)}
    server = start(answers)
    (result,) = run(lambda client: collect([server.worker()], client=client), deadline=2.0)
    (state,) = result.states
    assert state.health is not None
    assert state.failures == {
        "digest": Failure("timeout", "no answer in 2 s"),
        "fr_summary": Failure("timeout", "not asked: the questions before it took all of the 2 s"),
    }
    assert SUMMARY not in [target for _, target in server.asked]


# --- many ---------------------------------------------------------------------------------------


def test_concurrency_is_bounded(start: Start) -> None:
    lock = threading.Lock()
    now = highest = 0

    def slow(connection: socket.socket) -> None:
        nonlocal now, highest
        with lock:
            now += 1
            highest = max(highest, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        connection.sendall(http(b"pong"))
        hang(connection)

    workers = [start({"/handler/ping": slow}).worker() for _ in range(20)]
    answers = ask_all(workers, PING, concurrency=3, deadline=60)
    assert [answer.body for answer in answers] == [b"pong"] * 20
    assert highest <= 3


def test_those_who_hang_hold_up_nobody(start: Start) -> None:
    """More workers hang than may be asked at one time, and their deadline is long."""
    released = threading.Event()

    def wait(connection: socket.socket) -> None:
        released.wait(60)
        connection.sendall(http(b"late"))

    hanging = [start({"/handler/ping": wait}).worker() for _ in range(6)]
    friends = [start(PONG).worker() for _ in range(4)]
    left = set(friends)

    def answered(worker: Worker, answer: Any) -> None:
        left.discard(worker)
        if not left:
            released.set()

    async def main(client: Client) -> dict[Worker, Any]:
        return await client.ask([*hanging, *friends], PING, answered)

    results = run(main, concurrency=2, deadline=60)
    assert [results[worker].body for worker in friends] == [b"pong"] * 4
    assert [results[worker].body for worker in hanging] == [b"late"] * 6


DESCRIPTORS = """
import json, os, resource, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from workerserver.cluster.ask.client import Question, run
from workerserver.cluster.model import Worker

count = 300
addresses = json.loads(sys.stdin.readline())
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, used + 60))
highest = 0

def answered(worker, answer):
    global highest
    highest = max(highest, len(os.listdir("/proc/self/fd")))

limit = int(sys.argv[2])
question = Question.handler("ping", limit=limit)
workers = [Worker(address, False) for address in addresses]
results = run(lambda client: client.ask(workers, question, answered), concurrency=10_000,
              deadline=60)
print(sum(getattr(answer, "body", b"") == b"pong" for answer in results.values()),
      len(results), highest <= used + 60)
"""


@pytest.mark.parametrize("limit", [1024, 2 << 20], ids=["small", "large"])
def test_descriptors_are_never_used_up(start: Start, limit: int) -> None:
    addresses = [start(PONG).address for _ in range(200)]
    done = subprocess.run(
        [sys.executable, "-c", DESCRIPTORS, str(TESTS), str(limit)],
        input=json.dumps(addresses) + "\n",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["200", "200", "True"]


def test_nothing_is_left_open(start: Start, kind: str) -> None:
    servers = [start(good(rank), kind) for rank in range(10)]
    workers = [*(server.worker() for server in servers), Worker("127.0.0.1:1", False)]

    async def main(client: Client) -> None:
        before = open_sockets()
        await collect(workers, client=client)
        while open_sockets() > before:  # the servers close their connections too
            await asyncio.sleep(0.01)

    run(main)


def open_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket")
    return found


# --- interrupts ---------------------------------------------------------------------------------


def test_stop_gives_what_is_there(start: Start) -> None:
    hangs = threading.Event()

    def hung(connection: socket.socket) -> None:
        hangs.set()
        hang(connection)

    servers = [start(good(0)), start({**good(1), DIGEST: hung}), start(good(2))]
    workers = [server.worker() for server in servers]

    async def main(client: Client) -> list[Round]:
        async def stop() -> None:
            """Once the two others have answered, and this one never will."""
            while not (hangs.is_set() and len(answered) == 2):
                await asyncio.sleep(0.005)
            client.stop()

        def done(state: RankState) -> None:
            answered.append(state)

        answered: list[RankState] = []
        stopping.append(asyncio.create_task(stop()))
        return await collect(workers, client=client, rounds=5, on_done=done)

    stopping: list[asyncio.Task[None]] = []
    rounds = run(main, deadline=60)
    first = rounds[0].states
    assert [state.rank for state in first] == [0, 1, 2]
    assert first[1].failures["digest"] == Failure("timeout", "interrupted before it answered")
    assert first[0].digest == "aa"
    assert len(rounds) < 5


INTERRUPTED = """
import sys
from workerserver.cluster.ask.client import Question, run
from workerserver.cluster.model import Worker

workers = [Worker(address, False) for address in sys.argv[1:]]
question = Question.handler("ping", limit=1024)
first = run(lambda client: client.ask(workers, question, lambda *a: print("one", flush=True)),
            deadline=60)
print([getattr(answer, "body", answer) for answer in first.values()])
"""


def test_ctrl_c(start: Start) -> None:
    addresses = [start(PONG).address, start({"/handler/ping": hang}).address]
    command = [sys.executable, "-c", INTERRUPTED, *addresses]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"[b'pong', Failure(reason='timeout', text='interrupted before it answered')]" in out


def test_a_cancel_goes_through(start: Start) -> None:
    worker = start({"/handler/ping": hang}).worker()

    async def main() -> None:
        await asyncio.wait_for(ask([worker], PING, deadline=60), 0.2)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(stack: contextlib.ExitStack, certificate: tuple[str, str]) -> Worker:
    server = Canned({**good(0), **PONG}, tls=certificate)
    stack.callback(server.close)
    return server.worker()


def test_tls_is_verified(secure: Worker, certificate: tuple[str, str]) -> None:
    ours = tls_context(certificate[1])
    (answer,) = ask_all([secure], PING, tls=ours)
    assert answer.body == b"pong"
    (result,) = run(partial(collect_one, secure), tls=ours)
    assert result.states[0].failures == {}
    (failure,) = ask_all([secure], PING)
    assert failure.reason == "unreachable"
    assert "certificate not accepted" in failure.text
    elsewhere = replace(secure, address=secure.address.replace("127.0.0.1", "127.1"))
    (failure,) = ask_all([elsewhere], PING, tls=ours)
    assert failure.reason == "unreachable"
    assert "certificate" in failure.text


def test_tls_to_a_plain_worker(start: Start) -> None:
    (failure,) = ask_all([replace(start(PONG).worker(), tls=True)], PING, deadline=1)
    assert failure.reason in ("unreachable", "timeout", "malformed")


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "gone"):
        with pytest.raises(ClusterError, match=name):
            tls_context(str(tmp_path / name))
