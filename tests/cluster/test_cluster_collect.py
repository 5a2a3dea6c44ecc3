"""What a round learns, and at which cost."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import (
    DIGEST,
    HEALTH,
    STACKS,
    SUMMARY,
    TEXT,
    TRACE,
    Answer,
    Canned,
    Start,
    digest,
    good,
    hang,
    health,
    http,
    stacks,
    summary,
)

from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.rounds import EVERYTHING, Round, collect, collect_round
from workerserver.cluster.ask.survey import text_digest
from workerserver.cluster.model import Worker
from workerserver.cluster.read.columns.summaries import Summary

# --- rounds -------------------------------------------------------------------------------------


def look(servers: list[Canned], **options: Any) -> list[Round]:
    workers = [server.worker(rank) for rank, server in enumerate(servers)]
    return run(lambda client: collect(workers, client=client, **options), deadline=60)


def test_who_was_silent_is_waited_for_less(start: Start) -> None:
    """If a host is cut off, a first look takes the deadline, a second look only a part of it."""
    patient: list[float] = []

    async def three(client: Client) -> list[Round]:
        rounds = await collect(workers, client=client, rounds=2, interval=0.01)
        patient.extend(client.patience.values())
        silent.answers[HEALTH] = health(1)
        rounds += await collect(workers, client=client, rounds=1, interval=0.01)
        return rounds

    silent = start({**good(1), HEALTH: hang})
    workers = [start(good(0)).worker(0), silent.worker(1)]
    first, second, third = (each.states for each in run(lambda client: three(client), deadline=4.0))
    assert first[1].failures["healthz"].text == "no answer in 4 s"
    assert second[1].failures["healthz"].text == "no answer in 4 s, nor in 1 s when asked again"
    assert patient == [1.0]
    assert (third[1].responded, third[1].failures) == (True, {})
    assert [each[0].failures for each in (first, second, third)] == [{}, {}, {}]


def asked_for(servers: list[Canned], path: str) -> int:
    return sum(target == path for server in servers for _, target in server.asked)


def test_one_full_answer_for_each_digest(start: Start) -> None:
    servers = [start(good(rank)) for rank in range(8)]
    servers += [start({**good(8, "ee"), STACKS: stacks("hang")})]
    (result,) = look(servers)
    assert asked_for(servers, STACKS) == result.stacks_fetched == 2
    threads = {id(state.threads) for state in result.states[:8]}
    assert len(threads) == 1
    assert result.states[8].threads[0].frames[0].function == "hang"
    assert result.questions == sum(len(server.asked) for server in servers)
    assert result.bytes_received >= sum(state.bytes_received for state in result.states) > 0


def test_a_job_that_sleeps_is_asked_again_in_each_look(start: Start) -> None:
    """A loop of one line has one digest. Only the answer of a rank itself tells that it has run."""
    asleep = {STACKS: stacks(wchan="hrtimer_nanosleep")}
    servers = [start({**good(rank), **asleep}) for rank in range(4)]
    rounds = look(servers, rounds=2, interval=0.01)
    assert [each.stacks_fetched for each in rounds] == [1, 1]
    assert [[state.own is not None for state in each.states] for each in rounds] == 2 * [
        [True, False, False, False]
    ]


def test_who_holds_the_gil_is_not_shared(start: Start) -> None:
    """The same stacks, taken with and without the GIL, are two groups."""
    servers = [start(good(0)), start({**good(1), DIGEST: digest(mode="nogil")})]
    (result,) = look(servers)
    assert asked_for(servers, STACKS) == 2
    assert [state.mode for state in result.states] == ["gil", "nogil"]


def test_another_member_answers_for_the_group(start: Start) -> None:
    servers = [start({**good(0), STACKS: http(b"{")}), start(good(1)), start(good(2))]
    (result,) = look(servers)
    assert asked_for(servers, STACKS) == 2
    assert all(state.threads and not state.failures for state in result.states)


def test_nobody_answers_for_the_group(start: Start) -> None:
    servers = [start({**good(rank), STACKS: http(b"no", "500 Oops")}) for rank in range(5)]
    (result,) = look(servers)
    assert asked_for(servers, STACKS) == 3
    assert [state.failures["stacks"].reason for state in result.states] == (
        ["refused"] * 3 + ["timeout"] * 2
    )


def test_who_has_moved_on_does_not_speak_for_the_others(start: Start) -> None:
    """Rank 0 has another digest when it is asked the second time."""
    count = 0

    def moving(connection: socket.socket) -> None:
        nonlocal count
        count += 1
        connection.sendall(digest("aa" if count == 1 else "cc"))

    servers = [start({**good(0), DIGEST: moving, STACKS: stacks("moved")})]
    servers += [start(good(1)), start(good(2))]
    (result,) = look(servers)
    functions = [state.threads[0].frames[0].function for state in result.states]
    assert functions[1:] == ["train", "train"]
    assert not any(state.failures for state in result.states)


def test_rounds_fetch_what_is_new(start: Start) -> None:
    servers = [start(good(rank)) for rank in range(3)]
    rounds = look(servers, rounds=3, interval=0.01)
    # One is asked each time for whether it has run; the others share what is in memory.
    assert [r.stacks_fetched for r in rounds] == [1, 1, 1]
    assert len({id(state.threads) for r in rounds for state in r.states[1:]}) == 1
    assert rounds[0].started <= rounds[1].started <= rounds[2].started


def test_what_does_not_change_is_in_memory_once(start: Start) -> None:
    """With 16,384 hanging ranks, summaries are most of the memory of a look."""
    servers = [start({**good(rank), SUMMARY: summary(5, pending=True)}) for rank in range(2)]

    async def three(client: Client) -> list[Round]:
        workers = [server.worker(rank) for rank, server in enumerate(servers)]
        memory = Memory()
        looks = [await collect_round(workers, client, EVERYTHING, memory) for _ in range(2)]
        servers[1].answers[SUMMARY] = summary(6, pending=True)
        return [*looks, await collect_round(workers, client, EVERYTHING, memory)]

    first, second, third = (
        [state.flight_summary for state in each.states] for each in run(three, deadline=60)
    )
    assert second[0] is first[0]
    assert second[1] is first[1]
    assert third[0] is first[0]
    assert third[1] != first[1]
    assert isinstance(first[0], Summary)
    assert isinstance(first[1], Summary)
    assert first[0].shape is first[1].shape
    assert third[1] is not None
    assert third[1]["groups"][0]["last_issued"]["seq"] == 6


def test_only_what_is_wanted(start: Start) -> None:
    servers = [start(good(0))]
    look(servers, want={"health"})
    assert [target for _, target in servers[0].asked] == [HEALTH]
    look(servers, want={"health", "flight"})
    assert [target for _, target in servers[0].asked[1:]] == [HEALTH, SUMMARY]


def test_full_traces_only_where_summaries_differ(start: Start) -> None:
    servers = [start({**good(rank), SUMMARY: summary(6, pending=True)}) for rank in range(6)]
    servers += [start({**good(6), SUMMARY: summary(5)})]
    (result,) = look(servers)
    assert asked_for(servers, TRACE) == result.traces_fetched == 2
    assert [state.rank for state in result.states if state.flight is not None] == [0, 6]


def test_one_full_trace_where_all_wait_for_the_same(start: Start) -> None:
    servers = [start({**good(rank), SUMMARY: summary(6, pending=True)}) for rank in range(4)]
    (result,) = look(servers)
    assert result.traces_fetched == 1


def test_nccl_has_a_recorder_of_its_own(start: Start) -> None:
    trace = "/handler/dump_nccl_trace_json?includecollectives=true"
    servers = []
    for rank in range(2):
        more = {SUMMARY: summary(rank, recorder="nccl"), trace: http({"entries": [rank]})}
        servers.append(start({**good(rank), **more}))
    (result,) = look(servers)
    assert [state.flight for state in result.states] == [{"entries": [0]}, {"entries": [1]}]


def test_one_question_for_stacks_of_a_known_rank(start: Start) -> None:
    ours, torchs = start(good(0)), start(stock("train"))
    torchs.answers[DIGEST] = torchs.answers[TEXT]  # the worker ignores the format
    (result,) = look([ours, torchs], want={"stacks"})
    assert [target for _, target in ours.asked] == [DIGEST, STACKS]
    assert [target for _, target in torchs.asked] == [DIGEST]
    assert [state.kind for state in result.states] == ["workerserver", "torch"]
    assert all(state.threads and state.responded for state in result.states)
    assert not any(state.failures for state in result.states)


def test_a_worker_that_changes_its_kind(start: Start) -> None:
    """It has a digest once, and then only text, as stock torch."""
    count = 0

    def changing(connection: socket.socket) -> None:
        nonlocal count
        count += 1
        connection.sendall(digest() if count == 1 else http(b"Thread 0x1", "200 OK", PLAIN))

    servers = [start({**good(0), DIGEST: changing}), start(good(1))]
    (result,) = look(servers)
    assert all(state.threads and not state.failures for state in result.states)


# --- stock torch workers ------------------------------------------------------------------------

PLAIN = "Content-Type: text/plain"
THREAD = 'Thread 0x{:016x} (most recent call first):\n  File "{}", line 3 in {}\n'


def stock(*functions: str, ident: int = 1) -> dict[str, Answer]:
    text = "\n".join(THREAD.format(ident + i, "/job/a.py", f) for i, f in enumerate(functions))
    return {TEXT: http(text.encode(), "200 OK", PLAIN), TRACE: http({"entries": [1]})}


def test_text_digest() -> None:
    def text(*threads: tuple[int, str]) -> str:
        return "\n".join(THREAD.format(ident, "/a.py", name) for ident, name in threads)

    same = text_digest(text((1, "f"), (2, "g")))
    assert text_digest(text((9, "g"), (7, "f"))) == same
    assert text_digest(text((9, "g"), (7, "f"), (8, "f"))) == same
    assert text_digest("Current thread" + text((1, "f"), (2, "g"))[6:]) == same
    assert text_digest(text((1, "f"), (2, "h"))) != same
    assert text_digest(text((1, "f"))) != same


def test_stock_workers(start: Start) -> None:
    servers = [start(stock("train", "worker", ident=rank * 10)) for rank in range(3)]
    servers += [start(stock("hang", "worker"))]
    (result,) = look(servers)
    assert [state.kind for state in result.states] == ["torch"] * 4
    assert not any(state.failures for state in result.states)
    assert len({state.digest for state in result.states}) == 2
    assert len({id(state.threads) for state in result.states}) == 2
    assert all(state.flight == {"entries": [1]} for state in result.states)
    assert [state.rank for state in result.states] == [0, 1, 2, 3]


def test_the_rank_of_a_stock_worker_by_its_sockets_name(
    stack: contextlib.ExitStack, short_path: Path
) -> None:
    names = ["rank3.sock", "job-rank_12", "frank4.sock", "x.sock"]
    servers = [Canned(stock("train"), short_path / name) for name in names]
    for server in servers:
        stack.callback(server.close)
    workers = [server.worker() for server in servers]
    (result,) = run(lambda client: collect(workers, client=client))
    assert [state.rank for state in result.states] == [3, 12, None, None]


def test_a_web_server_that_is_no_worker(start: Start) -> None:
    (result,) = look([start({})])
    assert result.states[0].kind == "unknown"
    assert {failure.reason for failure in result.states[0].failures.values()} == {"missing"}


REAL_TORCH = """
import sys, time
import torch.distributed.debug._handlers
from torch._C._distributed_c10d import _WorkerServer

server = _WorkerServer("127.0.0.1", 0)
print(server.port, flush=True)
sys.stdin.readline()
server.shutdown()
"""


@pytest.mark.torch
def test_torchs_own_server() -> None:
    command = [sys.executable, "-c", REAL_TORCH]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        worker = Worker(f"127.0.0.1:{process.stdout.readline().strip()}", False, 5)
        (result,) = run(lambda client: collect([worker], client=client), deadline=60)
        process.communicate("\n", timeout=60)
    (state,) = result.states
    assert (state.kind, state.rank, state.failures) == ("torch", 5, {})
    assert any(frame.function == "<module>" for t in state.threads for frame in t.frames)
    assert state.flight is not None


def test_our_own_server(short_path: Path) -> None:
    from workerserver import WorkerServer, heartbeat

    path = str(short_path / "w.sock")
    with WorkerServer(path):
        heartbeat(41)
        (result,) = run(lambda client: collect([Worker(path, True, 0)], client=client))
    (state,) = result.states
    assert state.kind == "workerserver"
    assert state.health is not None
    assert (state.health.step, state.health.pid) == (41, os.getpid())
    assert state.mode == "gil"
    assert any(thread.main for thread in state.threads)


def test_a_health_without_a_rank_keeps_what_discovery_knows(start: Start) -> None:
    (result,) = look([start({**good(0), HEALTH: health(None)})])
    assert (result.states[0].rank, result.states[0].failures) == (0, {})


# --- fast ---------------------------------------------------------------------------------------


def test_a_rank_that_keeps_its_gil_is_asked_for_what_can_be_had(start: Start) -> None:
    """A summary would have to wait for the GIL; torch's own server gives traces without it."""
    answers: dict[str, Answer] = {**good(0), HEALTH: health(0, gil_unavailable_s=4.0)}
    entries = {"version": "2.10", "entries": [{"record_id": 0}]}
    server = start({**answers, SUMMARY: hang, TRACE: http(entries)})
    rounds = look([server], rounds=2, interval=0.0)
    for round_ in rounds:
        (state,) = round_.states
        assert (state.flight, state.flight_summary) == (entries, None)
        assert "fr_summary" not in state.failures
    # The first look can't know it, and asks in one go.
    assert server.asked.count(("POST", SUMMARY)) == 1


def test_rounds_until_they_are_enough(start: Start) -> None:
    server = start(good(0))
    seen: list[int] = []

    def enough(rounds: Any) -> bool:
        seen.append(len(rounds))
        return len(rounds) == 3

    assert len(look([server], enough=enough, interval=0.01)) == 3
    assert seen == [1, 2, 3]
    # A question that can't begin in time is not asked. Only a second round is asked all the same.
    assert len(look([server], enough=lambda rounds: False, interval=0.01, longest=0.0)) == 2
