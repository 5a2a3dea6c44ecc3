"""Who is asked for its own stacks: ranks with equal stacks may wait for different things."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import HEALTH, STACKS, Canned, Start, good, health, http

from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.read.progress import still


@pytest.fixture
def start(short_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as exits:
        yield Start(exits, short_path)


def stacks(pid: int, waits: dict[str, Any] | None = None) -> Any:
    body = good(0)[STACKS]
    assert isinstance(body, bytes)
    value = json.loads(body.partition(b"\r\n\r\n")[2])
    (thread,) = value["threads"]
    if waits is not None:
        thread |= {"waits_for": waits, "switches": 7}
    return http({**value, "pid": pid, "pid_namespace": 99, "mode": "nogil"})


def worker(rank: int, word: str, waits: dict[str, Any] | None = None) -> dict[str, Any]:
    pid = 100 + rank
    return {**good(rank, word), HEALTH: health(rank, pid=pid), STACKS: stacks(pid, waits)}


def receiving(peer: int) -> dict[str, Any]:
    return {"kind": "operation", "source": "locals", "op": "recv", "peer": peer}


def look(servers: list[Canned], rounds: int = 1) -> list[Round]:
    workers = [server.worker(rank) for rank, server in enumerate(servers)]

    async def ask(client: Client) -> list[Round]:
        return await collect(workers, client=client, rounds=rounds, interval=0.01)

    return run(ask, deadline=60)


def asked(server: Canned) -> int:
    return sum(target == STACKS for _, target in server.asked)


def test_each_tells_for_itself_in_each_round(start: Start) -> None:
    servers = [start(worker(rank, "aa", receiving(rank + 5))) for rank in range(4)]
    servers.append(start(worker(4, "bb")))
    for result in look(servers, rounds=2):
        for rank, state in enumerate(result.states[:4]):
            (thread,) = state.threads
            assert thread.waits is not None
            assert (thread.waits.peer, thread.switches) == (rank + 5, 7)
            assert state.own is not None
            assert (state.own.mode, state.own.pid, state.own.namespace) == ("nogil", 100 + rank, 99)
    assert [asked(server) for server in servers] == [2, 2, 2, 2, 2]
    assert result.stacks_fetched == 5


def sleeping(switches: int) -> Any:
    body = good(0)[STACKS]
    assert isinstance(body, bytes)
    value = json.loads(body.partition(b"\r\n\r\n")[2])
    (thread,) = value["threads"]
    thread |= {"switches": switches, "state": "S", "wchan": "hrtimer_nanosleep"}
    return http({**value, "pid": 104, "mode": "nogil"})


def give_next(answers: Iterator[bytes], connection: socket.socket) -> None:
    connection.sendall(next(answers))


def test_who_stands_apart_is_asked_in_each_round(start: Start) -> None:
    """Its digest is the same each time: only its own answer tells that it has run."""
    many = [start(worker(rank, "aa", receiving(rank + 5))) for rank in range(3)]
    few = [start(worker(rank, "bb")) for rank in range(3, 5)]
    for each in few:
        each.answers[STACKS] = partial(give_next, iter([sleeping(7), sleeping(9)]))
    first, second = look([*many, *few], rounds=2)
    for number in (3, 4):
        then, now = (result.states[number].threads[0] for result in (first, second))
        assert (then.frames, then.switches, now.switches) == (now.frames, 7, 9)
        assert still(first.states[number], second.states[number]) is False
    assert still(first.states[0], second.states[0]) is True


def test_who_does_not_answer_has_the_stacks_of_its_group_and_no_facts(start: Start) -> None:
    broken = {**worker(1, "aa"), STACKS: http(b"no", "500 Oops")}
    servers = [start(worker(0, "aa", receiving(5))), start(broken)]
    (result,) = look(servers)
    first, second = result.states
    assert first.threads[0].waits is not None
    assert second.threads[0].frames == first.threads[0].frames
    assert (second.threads[0].waits, second.own, second.failures) == (None, None, {})


@pytest.mark.parametrize("kind", ["queue", "condition", "descriptor", "future"])
def test_what_has_no_owner_is_asked_of_one(start: Start, kind: str) -> None:
    """In each look: only its own answer tells whether it has run in between."""
    servers = [start(worker(rank, "aa", {"kind": kind})) for rank in range(3)]
    look(servers, rounds=2)
    assert [*map(asked, servers)] == [2, 0, 0]


@pytest.mark.parametrize(("step", "times"), [(None, 2), (7, 1)])
def test_whoever_counts_no_steps_is_asked_in_each_look(
    start: Start, step: int | None, times: int
) -> None:
    """Ranks in an all_reduce may be in that of each step."""
    body = good(0)[STACKS]
    assert isinstance(body, bytes)
    value = json.loads(body.partition(b"\r\n\r\n")[2])
    (thread,) = value["threads"]
    file = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
    thread["frames"].insert(0, {**thread["frames"][0], "file": file, "function": "all_reduce"})
    servers = [
        start({**good(rank), STACKS: http(value), HEALTH: health(rank, step=step)})
        for rank in range(3)
    ]
    look(servers, rounds=2)
    assert sum(map(asked, servers)) == times


def test_the_holder_of_a_file_lock_is_asked_too(start: Start) -> None:
    """Its own answer says whether its process id means the same."""
    lock = {"kind": "file_lock", "source": "kernel", "pid": 102}
    servers = [start(worker(0, "aa", lock)), *(start(worker(each, "bb")) for each in (1, 2, 3))]
    first, second = look(servers, rounds=2)
    for result in (first, second):
        assert result.states[2].own is not None
        assert result.states[2].own.pid == 102
        assert result.states[3].own is None
    assert asked(servers[2]) == 2
    assert asked(servers[3]) == 0
