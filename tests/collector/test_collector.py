"""A host's collector: what it says for its workers, and what is told of one that lies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import (
    DIGEST,
    HEALTH,
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
from support.waiting import wait_until
from support.wire import Client as Raw
from support.wire import post

from workerserver.cli import main
from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.collector_format import decode
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.ask.exchange import Answer as Read
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.model import RankState, Worker
from workerserver.collector.process import ranks_of_host
from workerserver.collector.service import Collector
from workerserver.server import WorkerServer


@pytest.fixture
def stack(no_leaks: None) -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as exits:
        yield exits


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


# --- the collector's answers --------------------------------------------------------------------


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
    # There are two groups of stacks, and two states of the recorder. One group must be seen twice.
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
    # The sockets' names tell no rank. So the ranks are known only from the answers.
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
    """Stock workers have no small answers: full answers come through the collector one by one."""
    text = b'Thread 0x1 (most recent call first):\n  File "a.py", line 3 in <module>\n'
    reply = http(text, "200 OK", "Content-Type: text/plain")
    stock: dict[str, Answer] = {
        TEXT: reply,
        DIGEST: reply,
        "/handler/fr_trace_json": http({"version": "2.10"}),
    }
    servers = [start(stock, "unix"), start(good(1), "unix")]
    torchs, ours = look(serve(addresses(servers))).states
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
    gone = Worker("127.0.0.1:1", False, collector=True, ranks=(5, 6))
    expanded = run(lambda client: behind_collectors([gone, alone], client))
    assert [(each.rank, each.via) for each in expanded] == [(5, gone), (6, gone), (None, None)]
    unknown = Worker("", False, 5)
    expanded = run(lambda client: behind_collectors([gone, unknown], client))
    assert [each.rank for each in expanded] == [5, 6]


# --- beside workers that are known themselves ---------------------------------------------------


def test_call_and_ls_through_a_collector(
    start: Start, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """A socket's name is shown with its host, because other hosts can have the same name."""
    more = {"/handler/": http(["ping"]), "/handler/ping": http(b"pong")}
    servers = [start({**good(rank), **more}, "unix") for rank in range(2)]
    door = serve(addresses(servers), (0, 1, 2))
    names = [f"127.0.0.1:{server.address}" for server in servers]
    place = ("--collectors", door.address)
    assert main(["call", "ping", *place]) == 1
    out, err = capsys.readouterr()
    assert out == "".join(f"== {name}\npong\n" for name in names) + "== rank 2\n"
    assert err == "workerserver: rank 2: the collector knows no such worker on its host\n"
    assert main(["call", "ping", *place, "-o", "x"]) == 64
    assert "-o holds one answer" in capsys.readouterr().err
    assert main(["ls", *place, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["workers"]
    assert [f"{row['host']}:{row['address']}" for row in rows[:2]] == names
    assert [(row["status"], row["rank"]) for row in rows] == [
        ("ok", 0),
        ("ok", 1),
        ("unreachable", 2),
    ]


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
    # If its ranks are not known, the verdict names the collector itself.
    (alone,) = look(Worker(gone, False, collector=True)).states
    assert (alone.rank, alone.worker.address) == (None, gone)


# --- questions to the collector -----------------------------------------------------------------


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
        ("collect?limit=-1", 400, "limit"),
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
    """A collector's entry for one worker."""
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


#: The collector's answer, and what the command then says about ranks 0 and 1.
ALL_MALFORMED, ONE_MALFORMED = ("malformed", "malformed"), ("malformed", "missing")
LIES: dict[str, tuple[Answer, tuple[str, str]]] = {
    "no JSON": (http(b"{"), ALL_MALFORMED),
    "deep JSON": (http(b"[" * 100_000), ALL_MALFORMED),
    "no number": (told(said(health={"status": "ok", "uptime_s": 1e999})), ALL_MALFORMED),
    "large number": (http(b'{"version": 1e999, "workers": []}'), ALL_MALFORMED),
    "other version": (http({"version": 2, "workers": []}), ALL_MALFORMED),
    "no list": (http({"version": 1, "workers": {}}), ALL_MALFORMED),
    "too many": (told(*(said(address=f"/{n}") for n in range(2 + 65))), ALL_MALFORMED),
    "no object": (told(7), ALL_MALFORMED),
    "odd rank": (told(said(rank="0")), ALL_MALFORMED),
    "rank below 0": (told(said(rank=-1)), ALL_MALFORMED),
    "rank too high": (told(said(rank=1 << 24)), ALL_MALFORMED),
    "no address": (told(said(address=None)), ONE_MALFORMED),
    "long address": (told(said(address="x" * 5000)), ONE_MALFORMED),
    "odd kind": (told(said(kind="root")), ONE_MALFORMED),
    "odd digest": (told(said(digest="../..")), ONE_MALFORMED),
    "odd mode": (told(said(mode=["gil"])), ONE_MALFORMED),
    "odd health": (told(said(health={"status": "fine"})), ONE_MALFORMED),
    "odd summary": (told(said(summary=[1])), ONE_MALFORMED),
    "odd failures": (told(said(failures={"healthz": ["hacked", "x"]})), ONE_MALFORMED),
    "odd question": (told(said(failures={"x": ["timeout", "x"]})), ONE_MALFORMED),
    "nobody": (told(), ("missing", "missing")),
    "large": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n",
        ("too large", "too large"),
    ),
    "refuses": (http(b"busy", "503 Service Unavailable"), ("refused", "refused")),
    "is none": (http(b"no such handler", "404 Not Found"), ("missing", "missing")),
    "hangs": (hang, ("timeout", "timeout")),
    "closes": (lambda connection: None, ("unreachable", "unreachable")),
}


class Prefixes(dict[str, Answer]):
    """Answers by the beginning of a target."""

    def get(self, target: str, default: Any = None) -> Any:
        found = (answer for prefix, answer in self.items() if target.startswith(prefix))
        return next(found, default)


def lying(start: Start, **answers: Answer) -> Canned:
    """A collector that gives these answers to ``collect`` and ``ask``."""
    server = start({})
    server.answers = Prefixes({f"/handler/{name}?": answer for name, answer in answers.items()})
    return server


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_collector_that_lies(start: Start, lie: str) -> None:
    """Its ranks are without an answer; the others' are as they would be."""
    answer, reasons = LIES[lie]
    bad = lying(start, collect=answer)
    door = Worker(bad.address, False, host="node7", collector=True, ranks=(0, 1))
    states = look(door, start(good(2)).worker(2), deadline=2.0).states
    by_rank = {each.rank: each for each in states}
    assert set(by_rank) == {0, 1, 2}
    assert len(states) == 3
    assert tuple(by_rank[rank].failures["healthz"].reason for rank in (0, 1)) == reasons
    assert (by_rank[2].failures, bool(by_rank[2].threads)) == ({}, True)


def decoded(door: Worker, *workers: Any) -> list[RankState]:
    body = told(*workers).partition(b"\r\n\r\n")[2]
    return decode(Read(200, "OK", {}, body, 0), door)


def test_ranks_that_are_none_of_its_own() -> None:
    door = Worker("x:1", False, collector=True, ranks=(8, 9))
    stranger, own, unknown, missing = decoded(
        door, said(), said(rank=8, address="/y.sock"), said(rank=None, address="/z.sock")
    )
    assert stranger.failures["healthz"].reason == "lied"
    assert own.failures == unknown.failures == {}
    assert (missing.rank, missing.failures["healthz"].reason) == (9, "missing")


def test_what_it_says_of_an_answer(start: Start) -> None:
    """Its word for why there is none counts, as far as it is one."""
    for field, reason in (("timeout", "timeout"), ("hacked", "malformed")):
        silent = http(b"no answer in 1 s", "504 Gateway Timeout", f"X-Collector-Failure: {field}")
        door = lying(start, collect=told(said()), ask=silent)
        (state,) = look(Worker(door.address, False, collector=True, ranks=(0,))).states
        assert state.failures["stacks"].reason == reason


# --- ranks behind an honest one -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (http({"groups": ["x" * (1 << 18)]}), "too large"),
        (http({"groups": ["\u4e2d" * (1 << 16)]}), "too large"),
        (http(b'{"groups": [1e999]}'), "malformed"),
    ],
)
def test_a_summary_that_cannot_be_passed_on(
    start: Start, serve: Serve, bad: bytes, reason: str
) -> None:
    """It is that rank's problem, however many do it."""
    answers = [{**good(rank), SUMMARY: summary() if rank == 7 else bad} for rank in range(8)]
    servers = [start(each, "unix") for each in answers]
    *others, last = look(serve(addresses(servers), tuple(range(8)))).states
    assert {each.failures["fr_summary"].reason for each in others} == {reason}
    assert all(each.responded and each.threads for each in others)
    assert (last.failures, last.flight_summary is not None) == ({}, True)


def test_two_collectors_of_one_folder(
    stack: contextlib.ExitStack, serve: Serve, folder: Path
) -> None:
    """Two agents of a launcher on one host: each collector answers for its own ranks."""
    for rank in range(5):  # the last socket is left over from a larger job
        stack.callback(Canned(good(rank), folder / f"rank{rank}.sock").close)
    template = [f"{folder}/rank{{rank}}.sock"]
    doors = [serve(template, (0, 1)), serve(template, (2, 3))]
    states = look(*doors).states
    assert [(each.rank, each.failures) for each in states] == [(rank, {}) for rank in range(4)]
    # If no collector says which ranks it has, both answer for all ranks. Each rank counts once.
    states = look(serve(template), serve(template)).states
    assert [(each.rank, each.failures) for each in states] == [(rank, {}) for rank in range(5)]


def test_one_target_without_a_worker(start: Start, serve: Serve) -> None:
    worker = start(good(0), "unix")
    (state,) = look(serve([worker.address, "/nowhere/rank{rank}.sock"])).states
    assert (state.rank, state.responded) == (0, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_sockets_of_others_are_left_alone(start: Start, serve: Serve, short_path: Path) -> None:
    """The job's token is for the job's own workers."""
    ours, theirs = start(good(0), "unix"), start(good(1), "unix")
    os.chown(theirs.address, 65534, -1)
    (state,) = look(serve([f"{short_path}/*.s"])).states
    assert (state.rank, theirs.asked) == (0, [])
    assert ours.asked


def test_token(start: Start, stack: contextlib.ExitStack) -> None:
    worker = start(good(0), "unix")
    collector = Collector([worker.address], token="secret")
    server = stack.enter_context(
        WorkerServer("127.0.0.1", 0, registry=collector.registry, token="public")
    )
    door = Worker(server.address, False, collector=True)
    (refused,) = look(door).states
    assert refused.failures["healthz"].reason == "refused"
    (result,) = run(lambda client: collect([door], client=client), token="public")
    assert result.states[0].failures == {}
    assert all(b"Authorization: Bearer secret" in head for head in worker.heads)


def test_more_are_asked_than_are_passed_on_at_once(start: Start, serve: Serve) -> None:
    """Workers whose answers may be large wait for their turn."""

    def late(connection: socket.socket) -> None:
        time.sleep(0.05)
        connection.sendall(http(b"pong"))

    servers = [start({**good(rank), "/handler/ping": late}, "unix") for rank in range(40)]
    door = serve(addresses(servers))
    ping = Question.handler("ping", limit=8 << 20)

    async def everybody(client: Client) -> list[Any]:
        return list((await client.ask(await behind_collectors([door], client), ping)).values())

    answers = run(everybody, deadline=30)
    assert [isinstance(each, Read) and each.body for each in answers] == [b"pong"] * 40


def test_a_place_is_free_when_its_answer_is_sent(
    start: Start, serve: Serve, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Askers who read nothing keep their places, so that a collector never holds more large
    answers than it has places."""
    monkeypatch.setattr("workerserver.collector.service.MAX_LARGE_REQUESTS", 2)
    body = b"x" * (8 << 20)
    worker = start({"/handler/large": http(body)}, "unix")
    door = serve([worker.address])
    query = f"worker={worker.address}&target=/handler/large&limit={16 << 20}"
    host, _, port = door.address.rpartition(":")
    greedy = [stack.enter_context(Raw((host, int(port)))) for _ in range(2)]
    for client in greedy:
        client.send(post(f"ask?{query}&deadline=20"))
    wait_until(lambda: len(worker.asked) == 2)
    with Raw((host, int(port))) as client:
        late = client.ask(post(f"ask?{query}&deadline=0.5"))
        assert (late.status, late.text) == (504, "the collector of its host was busy")
        assert len(greedy[0].reply().body) == len(body)
        assert client.ask(post(f"ask?{query}&deadline=20")).status == 200
        greedy[1].close()
        assert client.ask(post(f"ask?{query}&deadline=20")).status == 200


def test_a_collector_is_told_what_time_there_is(start: Start, serve: Serve) -> None:
    """Of one that was silent a look has less; a hung rank must not take all of that."""
    servers = [start(good(0), "unix"), start({**good(1), HEALTH: hang}, "unix")]
    door = serve(addresses(servers), (0, 1))

    async def again(client: Client) -> Round:
        client.patience[door] = 1.0
        (result,) = await collect([door], client=client)
        return result

    states = {state.rank: state for state in run(again, deadline=8.0).states}
    assert (states[0].responded, states[0].failures) == (True, {})


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
