"""A host's collector: what it says for its workers, and what is told of one that lies."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _wire import Client as Raw
from _workers import (
    DIGEST,
    SUMMARY,
    TEXT,
    Answer,
    Canned,
    Start,
    digest,
    good,
    hang,
    http,
    summary,
)

from workerserver.cluster.client import run
from workerserver.cluster.collect import Round, behind_collectors, collect
from workerserver.cluster.host_answers import decode
from workerserver.cluster.model import RankState, Worker
from workerserver.cluster.wire import Answer as Read
from workerserver.collector import Collector
from workerserver.collector_process import ranks_of_host
from workerserver.server import WorkerServer

LOOK = "/handler/collect?want=flight%2Chealth%2Cstacks&deadline=8.000"


@pytest.fixture
def stack(no_leaks: None) -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as exits:
        yield exits


@pytest.fixture
def start(stack: contextlib.ExitStack, short_path: Path) -> Start:
    return Start(stack, short_path)


Serve = Callable[..., Worker]


@pytest.fixture
def serve(stack: contextlib.ExitStack) -> Serve:
    """``serve(targets, ranks)``: a collector that serves, as whoever asks it knows it."""

    def begin(targets: list[str], ranks: tuple[int, ...] = ()) -> Worker:
        collector = Collector(targets, ranks)
        server = stack.enter_context(WorkerServer("127.0.0.1", 0, registry=collector.registry))
        return Worker(server.address, False, host="node7", collector=True, ranks=ranks)

    return begin


def look(*workers: Worker, deadline: float = 10.0, **options: Any) -> Round:
    (result,) = run(lambda client: collect(workers, client=client, **options), deadline=deadline)
    return result


def learnt(state: RankState) -> tuple[object, ...]:
    """All of it but how it was asked."""
    return (
        state.rank,
        state.kind,
        state.health,
        state.digest,
        state.main_digest,
        state.mode,
        state.threads,
        state.flight_summary,
        state.flight,
        state.responded,
    )


def addresses(servers: list[Canned]) -> list[str]:
    return [server.address for server in servers]


# --- what it says -------------------------------------------------------------------------------


def test_all_ranks_in_one_answer(start: Start, serve: Serve) -> None:
    """The same is learnt as from each of them, with one question for all that is small."""
    answers = [{**good(rank), SUMMARY: summary(5 + (rank == 2))} for rank in range(4)]
    answers[3][DIGEST] = digest("cc")
    servers = [start(each, "unix") for each in answers]
    door = serve(addresses(servers))
    through, direct = look(door), look(*(server.worker() for server in servers))
    assert [learnt(each) for each in through.states] == [learnt(each) for each in direct.states]
    assert [each.worker.via for each in through.states] == [door] * 4
    assert {each.worker.host for each in through.states} == {"node7"}
    # Two groups of stacks, of which one has to be seen twice, and two states of the recorder.
    assert through.stacks_fetched == direct.stacks_fetched == 2
    assert through.traces_fetched == direct.traces_fetched == 2
    assert direct.questions - through.questions == 3 * 4 - 1
    assert through.states[2].flight == {"version": "2.10"}


def test_workers_are_looked_for_each_time(start: Start, serve: Serve, short_path: Path) -> None:
    door = serve([f"{short_path}/*.s"], (0, 1))
    first = look(door)
    assert [(each.rank, each.failures["healthz"].text) for each in first.states] == [
        (0, "not registered"),
        (1, "not registered"),
    ]
    start(good(0), "unix")
    start(good(1), "unix")
    second = look(door)
    # The sockets' names tell no rank, so these are only known from the answers.
    assert sorted((each.rank, each.responded) for each in second.states) == [(0, True), (1, True)]


def test_template_tells_the_ranks(stack: contextlib.ExitStack, serve: Serve, folder: Path) -> None:
    server = Canned(good(8), folder / "rank8.sock")
    stack.callback(server.close)
    (eight, nine) = look(serve([f"{folder}/rank{{rank}}.sock"], (8, 9))).states
    assert (eight.rank, eight.responded, eight.failures) == (8, True, {})
    assert (nine.rank, nine.responded, nine.failures["healthz"].reason) == (9, False, "unreachable")


def test_one_silent_rank_is_its_own_problem(start: Start, serve: Serve) -> None:
    servers = [start(good(0), "unix"), start({**good(1), DIGEST: hang}, "unix")]
    first, second = look(serve(addresses(servers)), deadline=2.0).states
    assert (first.failures, bool(first.threads)) == ({}, True)
    assert second.health is not None
    assert second.failures["digest"].reason == "timeout"


def test_stock_torch_workers(start: Start, serve: Serve) -> None:
    """They have no small answers: theirs come through the collector one by one."""
    text = b'Thread 0x1 (most recent call first):\n  File "a.py", line 3 in <module>\n'
    reply = http(text, "200 OK", "Content-Type: text/plain")
    stock: dict[str, Answer] = {
        TEXT: reply,
        DIGEST: reply,
        "/handler/fr_trace_json": http({"version": "2.10"}),
    }
    servers = [start(stock, "unix"), start(good(1), "unix")]
    ours, torchs = look(serve(addresses(servers))).states
    assert (ours.rank, ours.kind) == (1, "workerserver")
    assert (torchs.kind, torchs.responded) == ("torch", True)
    (thread,) = torchs.threads
    assert (thread.frames[0].file, thread.main) == ("a.py", True)


def test_the_commands_that_ask_each_rank(start: Start, serve: Serve) -> None:
    servers = [start(good(rank), "unix") for rank in range(2)]
    door = serve(addresses(servers))
    alone = start(good(2)).worker()
    expanded = run(lambda client: behind_collectors([door, alone], client))
    assert [each.address for each in expanded] == [*addresses(servers), alone.address]
    assert [each.rank for each in expanded] == [0, 1, None]


# --- beside workers that are known themselves ---------------------------------------------------


def test_who_is_known_twice_is_asked_once(start: Start, serve: Serve) -> None:
    server = start(good(0), "unix")
    own = start(good(0))
    result = look(serve([server.address], (0,)), own.worker(0))
    assert [each.worker.address for each in result.states] == [server.address]
    assert own.asked == []


def test_rank_that_its_collector_does_not_reach(start: Start, serve: Serve) -> None:
    result = look(serve(["/nowhere/rank{rank}.sock"], (0, 1)), start(good(0)).worker(0))
    one, zero = result.states
    assert (one.rank, one.responded) == (1, False)
    assert (zero.rank, zero.responded, zero.worker.via) == (0, True, None)


def test_collector_that_has_gone(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    door = Worker(gone, False, host="node7", collector=True, ranks=(0, 1))
    own = start(good(0))
    one, zero = look(door, own.worker(0)).states
    assert (zero.rank, zero.responded) == (0, True)
    assert (one.rank, one.worker.host, one.responded) == (1, "node7", False)
    assert one.failures["healthz"].reason == "unreachable"
    assert one.failures["healthz"].text.startswith(f"the collector of its host ({gone}): ")
    # Where its ranks aren't known, it is told of itself.
    (alone,) = look(Worker(gone, False, collector=True)).states
    assert (alone.rank, alone.worker.address) == (None, gone)


# --- what it is asked ---------------------------------------------------------------------------


def asked(door: Worker, target: str) -> tuple[int, str]:
    host, _, port = door.address.rpartition(":")
    with Raw((host, int(port))) as client:
        reply = client.ask(
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
        )
    return reply.status, reply.body.decode()


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("collect?want=stacks,all", 400, "want"),
        ("collect?deadline=0", 400, "deadline"),
        ("ask?worker=WORKER&target=/etc/passwd", 400, "target"),
        ("ask?worker=WORKER&target=/handler/ping%20HTTP/1.1%0d%0aX:y", 400, "target"),
        ("ask?worker=WORKER&target=/handler/ping&method=PUT", 400, "method"),
        ("ask?worker=/tmp/other.sock&target=/handler/ping", 404, "knows no such worker"),
        ("ask?worker=&target=/handler/ping", 404, "knows no such worker"),
        ("ask?worker=WORKER&target=/handler/nothing", 404, "nothing here"),
        ("ask?worker=WORKER&target=/healthz&method=GET&limit=5", 502, "more than 5"),
    ],
)
def test_bad_questions(start: Start, serve: Serve, query: str, status: int, text: str) -> None:
    worker = start(good(0), "unix")
    answer = asked(serve([worker.address]), f"/handler/{query.replace('WORKER', worker.address)}")
    assert answer[0] == status
    assert text in answer[1]


def test_answers_are_passed_on_as_they_are(start: Start, serve: Serve) -> None:
    worker = start(good(0), "unix")
    door = serve([worker.address])
    path = f"/handler/ask?worker={worker.address}&target=/healthz&method=GET"
    assert json.loads(asked(door, path)[1])["rank"] == 0
    assert worker.asked == [("GET", "/healthz")]


# --- one that lies ------------------------------------------------------------------------------


def told(*workers: Any, **more: Any) -> bytes:
    return http({"version": 1, "workers": list(workers), **more})


def said(**changes: Any) -> dict[str, Any]:
    """What a collector says of one worker."""
    word = {"status": "ok", "rank": 0}
    return {
        "address": "/x.sock",
        "unix": True,
        "tls": False,
        "rank": 0,
        "kind": "workerserver",
        "responded": True,
        "health": word,
        "digest": "aa",
        "main": "bb",
        "mode": "gil",
        "summary": None,
        "failures": {},
        **changes,
    }


LIES: dict[str, tuple[Answer, str]] = {
    "no JSON": (http(b"{"), "malformed"),
    "deep JSON": (http(b"[" * 100_000), "malformed"),
    "other version": (http({"version": 2, "workers": []}), "malformed"),
    "no list": (http({"version": 1, "workers": {}}), "malformed"),
    "too many": (told(*[{}] * 4097), "malformed"),
    "no object": (told(7), "malformed"),
    "no address": (told(said(address=None)), "malformed"),
    "long address": (told(said(address="x" * 5000)), "malformed"),
    "odd rank": (told(said(rank="0")), "malformed"),
    "rank below 0": (told(said(rank=-1)), "malformed"),
    "odd kind": (told(said(kind="root")), "malformed"),
    "odd digest": (told(said(digest="../..")), "malformed"),
    "odd mode": (told(said(mode=["gil"])), "malformed"),
    "odd health": (told(said(health={"status": "fine"})), "malformed"),
    "odd summary": (told(said(summary=[1])), "malformed"),
    "odd failures": (told(said(failures={"healthz": ["hacked", "x"]})), "malformed"),
    "odd question": (told(said(failures={"x": ["timeout", "x"]})), "malformed"),
    "large": (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "too large"),
    "refuses": (http(b"busy", "503 Service Unavailable"), "refused"),
    "is none": (http(b"no such handler", "404 Not Found"), "missing"),
    "hangs": (hang, "timeout"),
    "closes": (lambda connection: None, "unreachable"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_collector_that_lies(start: Start, lie: str) -> None:
    """Its ranks are without an answer; the others' are as they would be."""
    answer, reason = LIES[lie]
    bad = start({LOOK.replace("8.000", "1.600"): answer})
    door = Worker(bad.address, False, host="node7", collector=True, ranks=(0, 1))
    states = look(door, start(good(2)).worker(2), deadline=2.0).states
    assert [each.rank for each in states] == [0, 1, 2]
    assert [each.failures["healthz"].reason for each in states[:2]] == [reason, reason]
    assert (states[2].failures, bool(states[2].threads)) == ({}, True)


def test_ranks_that_are_none_of_its_own() -> None:
    door = Worker("x:1", False, collector=True, ranks=(8, 9))
    body = told(said(), said(rank=8, address="/y.sock"))
    reply = Read(200, "OK", {}, body.partition(b"\r\n\r\n")[2], 0)
    stranger, own = decode(reply, door)
    assert stranger.failures["healthz"].reason == "lied"
    assert own.failures == {}


def test_relayed_failures_are_bounded(start: Start) -> None:
    """What comes through a collector is no more believed than what comes from a worker."""
    field = "X-Collector-Failure"
    ask = "/handler/ask?"
    silent = http(b"no answer in 1 s", "504 Gateway Timeout", f"{field}: timeout")

    class Relay(dict[str, Answer]):
        def get(self, target: str, default: Any = None) -> Any:
            return silent if target.startswith(ask) else super().get(target, default)

    worker = start({})
    worker.answers = Relay({LOOK: told(said())})
    door = Worker(worker.address, False, collector=True, ranks=(0,))
    (state,) = look(door).states
    failure = state.failures["stacks"]
    assert (failure.reason, failure.text) == ("timeout", "no answer in 1 s")
    silent = http(b"x", "502 Bad Gateway", f"{field}: hacked")
    (state,) = look(door).states
    assert state.failures["stacks"].reason == "malformed"


# --- which ranks a host has ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({"RANK": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, "8-15"),
        ({"RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, "8-11"),
        ({"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "0-0"),
        ({"RANK": "0", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, ""),
        ({"RANK": "8", "LOCAL_RANK": "0"}, ""),
        ({"RANK": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, ""),
        ({}, ""),
    ],
)
def test_ranks_of_a_host(environment: dict[str, str], ranks: str) -> None:
    assert ranks_of_host(environment) == ranks
