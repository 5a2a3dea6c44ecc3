"""A collector's answer in groups: nothing is lost, nothing in it is trusted, and collectors and
askers of the version before understand each other with those of this one."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs.workers import SUMMARY, Canned, Start, good, http, summary
from support.wire import Client as Raw
from support.wire import message

from workerserver.cluster.ask.bodies import HEALTH_FIELDS, health_of
from workerserver.cluster.ask.client import run
from workerserver.cluster.ask.collector_format import MAX_WORKER_BYTES
from workerserver.cluster.ask.collector_format import encode as encode_each
from workerserver.cluster.ask.exchange import Answer
from workerserver.cluster.ask.folded.decode import decode
from workerserver.cluster.ask.folded.encode import encode
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.model import FAILURE_REASONS, Failure, Health, RankState, Worker
from workerserver.cluster.read.columns.summaries import FIRST_TIME, Summary, summary_of
from workerserver.collector.service import Collector
from workerserver.server import WorkerServer

NOW = 1_795_951_236_760_866_964
DOOR = Worker("x:1", False, host="node7", collector=True)


def answer(body: bytes) -> Answer:
    return Answer(200, "OK", {}, body, 0)


def look(*workers: Worker) -> Round:
    (result,) = run(lambda client: collect(workers, client=client), deadline=60.0)
    return result


def body(rank: int, seq: int, **more: Any) -> bytes:
    group = {"name": "0", "desc": "default_pg", "ranks": "0-7", "last_issued": {
        "seq": seq, "op": "gloo:all_reduce", "created_ns": NOW + 1000 * rank, "started_ns": None,
    }}  # fmt: skip
    return json.dumps({"rank": rank, "groups": [group], **more}, separators=(",", ":")).encode()


def state(rank: int | None, number: int, **changes: Any) -> RankState:
    worker = Worker(f"/run/job/rank{number}.sock", True, rank)
    found = RankState(worker, rank, "workerserver", responded=True)
    found.health = health_of({"status": "ok", "pid": 100 + number, "rank": rank, "uptime_s": 4.5})
    found.digest, found.main_digest, found.mode = "aa", "bb", "gil"
    found.flight_summary = summary_of(body(number, 5 + number % 2))
    return replace(found, **changes)


def through_json(states: list[RankState], each: bool) -> list[RankState]:
    limit = MAX_WORKER_BYTES * max(len(states), 1)
    encoded = encode_each(states, limit) if each else encode(states, limit)
    assert json.loads(encoded)["version"] == (1 if each else 2)
    return decode(answer(encoded), DOOR)


TIMES = st.integers(-1, 1 << 64)
TEXTS = st.text(max_size=8)
SUMMARIES = st.one_of(
    st.none(),
    st.builds(lambda rank, seq: summary_of(body(rank, seq)), st.integers(0, 9), st.integers(0, 2)),
    st.builds(
        lambda rank, told: summary_of(body(rank, 1, created_ns=told)), st.integers(0, 9), TIMES
    ),
    st.dictionaries(TEXTS, st.one_of(TEXTS, TIMES, st.none()), max_size=3),
)
HEALTHS = st.one_of(
    st.none(),
    st.builds(
        Health,
        st.sampled_from(["ok", "stalled"]),
        pid=st.one_of(st.none(), st.integers(0, 9)),
        rank=st.one_of(st.none(), st.integers(0, 9)),
        uptime_s=st.one_of(st.none(), st.floats(0, 1e9)),
        job=st.one_of(st.none(), st.text(min_size=1, max_size=8)),
        newer=st.booleans(),
    ),
)
FAILURES = st.dictionaries(
    st.sampled_from(["healthz", "digest", "fr_summary"]),
    st.builds(Failure, st.sampled_from(FAILURE_REASONS), TEXTS),
    max_size=2,
)
STATES = st.lists(
    st.builds(
        lambda rank, address, changes: replace(
            RankState(Worker(address, True, rank), rank), **changes
        ),
        st.one_of(st.none(), st.integers(0, 9)),
        st.text(max_size=6),
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["workerserver", "torch", "unknown"]),
                "responded": st.booleans(),
                "health": HEALTHS,
                "digest": st.one_of(st.none(), st.sampled_from(["aa", "bb"])),
                "flight_summary": SUMMARIES,
                "failures": FAILURES,
            }
        ),
    ),
    max_size=8,
)


@given(STATES)
@settings(deadline=None, max_examples=200)
def test_groups_say_what_each_worker_says(states: list[RankState]) -> None:
    """The old format and the new one give the same states, in the same order."""
    assert through_json(states, each=False) == through_json(states, each=True)


def test_equal_answers_are_one_group() -> None:
    states = [state(rank, rank) for rank in range(8)]
    told = json.loads(encode(states, MAX_WORKER_BYTES * 8))
    assert [group["rows"] for group in told["groups"]] == ["0-6:2", "1-7:2"]
    assert [group["rank"] for group in told["groups"]] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    even = told["groups"][0]
    assert even["address"] == {
        "begin": "/run/job/rank",
        "middle": ["0", "2", "4", "6"],
        "end": ".sock",
    }
    assert even["health"]["uptime_s"] == [4.5]
    assert even["health"]["pid"] == [100, 102, 104, 106]
    assert even["summary"]["times"] == [[NOW, NOW + 2000, NOW + 4000, NOW + 6000]]
    assert len(encode(states, 1 << 20)) < len(encode_each(states, 1 << 20)) / 2


def test_shapes_are_shared_beyond_one_collector() -> None:
    found = [
        decode(answer(encode([state(rank, rank)], MAX_WORKER_BYTES)), DOOR)[0].flight_summary
        for rank in (0, 2)
    ]
    one, other = found
    assert isinstance(one, Summary)
    assert isinstance(other, Summary)
    assert one.shape is other.shape


def test_health_has_the_fields_of_the_model() -> None:
    assert [name for name, _ in HEALTH_FIELDS] == [each.name for each in fields(Health)]


def test_too_large_for_groups_is_told_of_each() -> None:
    """Quotation marks take two bytes in a text, so a group may be larger than what it holds."""
    quotes = {"groups": ['"' * (MAX_WORKER_BYTES // 3)]}
    states = [state(0, 0, flight_summary=quotes), state(1, 1)]
    encoded = encode(states, 2 * MAX_WORKER_BYTES - 20_000)
    assert len(encoded) <= 2 * MAX_WORKER_BYTES - 20_000
    assert decode(answer(encoded), DOOR)[0].flight_summary == quotes


def test_a_summary_that_is_too_large_is_left_out() -> None:
    large = summary_of(body(0, 5, more="x" * MAX_WORKER_BYTES))
    found = through_json([state(0, 0, flight_summary=large), state(1, 1)], each=False)
    assert found[0].flight_summary is None
    assert found[0].failures["fr_summary"].reason == "too large"
    assert found[1].flight_summary is not None
    assert found == through_json([state(0, 0, flight_summary=large), state(1, 1)], each=True)


# --- one that lies


def lie(*path: str | int, value: Any) -> dict[str, Any]:
    """What a collector tells of ranks 0 and 2 and of rank 1, with *value* in one place."""
    told = json.loads(encode([state(rank, rank) for rank in range(3)], 1 << 20))
    place = told["groups"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = copy.deepcopy(value)
    return dict(told)


OF_ONE_GROUP = {
    "kind": lie(0, "kind", value="root"),
    "mode": lie(0, "mode", value=["gil"]),
    "digest": lie(0, "digest", value="../.."),
    "responded": lie(0, "responded", value=1),
    "failures": lie(0, "failures", value={"healthz": ["hacked", "x"]}),
    "no address": lie(0, "address", value="/x.sock"),
    "addresses": lie(0, "address", "middle", value=["1", "2", "3"]),
    "long address": lie(0, "address", "middle", value=["1", "2" * 5000]),
    "address of no text": lie(0, "address", "middle", value=[1, 2]),
    "status": lie(0, "health", "status", value=["fine"]),
    "pids": lie(0, "health", "pid", value=[1, 2, 3]),
    "pid": lie(0, "health", "pid", value=[1, "2"]),
    "health": lie(0, "health", value=[]),
    "parts": lie(0, "summary", "parts", value=["{}", 5]),
    "too many parts": lie(0, "summary", "parts", value=["{}"] * 9),
    "no JSON": lie(0, "summary", "parts", value=["{", "}"]),
    "places": lie(0, "summary", "places", value=[7]),
    "place below 0": lie(0, "summary", "places", value=[-1]),
    "times": lie(0, "summary", "times", value=[[1, 2, 3]]),
    "more times": lie(0, "summary", "times", value=[[1], [2]]),
    "time": lie(0, "summary", "times", value=[[True, 2]]),
    "large time": lie(0, "summary", "times", value=[[FIRST_TIME]]),
    "ranks": lie(0, "summary", "ranks", value=[1, 2, 3]),
    "rank of no number": lie(0, "summary", "ranks", value=["1"]),
}


@pytest.mark.parametrize("name", OF_ONE_GROUP)
def test_a_wrong_group_is_the_problem_of_its_ranks(name: str) -> None:
    states = decode(answer(json.dumps(OF_ONE_GROUP[name]).encode()), DOOR)
    found = {each.rank: each for each in states}
    assert set(found) == {0, 1, 2}
    assert [found[rank].failures["healthz"].reason for rank in (0, 2)] == ["malformed"] * 2
    assert found[0].failures["healthz"].text.startswith("groups[0]: ")
    assert found[1].failures == {}


OF_ALL = {
    "no list": {"version": 2, "groups": {}},
    "no groups": {"version": 2},
    "no object": {"version": 2, "groups": [7]},
    "version": {"version": 3, "groups": []},
    "rows": lie(0, "rows", value="x"),
    "twice": lie(0, "rows", value="1-2"),
    "too many": lie(0, "rows", value="0-9999"),
    "gap": lie(0, "rows", value="0,5"),
    "a rank of no number": lie(0, "rank", value=["0", "2"]),
    "rank below 0": lie(0, "rank", value=[0, -1]),
    "rank too high": lie(0, "rank", value=[0, 1 << 24]),
    "three ranks": lie(0, "rank", value=[0, 1, 2]),
}


@pytest.mark.parametrize("name", OF_ALL)
def test_a_wrong_answer(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(answer(json.dumps(OF_ALL[name]).encode()), DOOR)


def test_ranks_that_are_none_of_its_own() -> None:
    states = [state(0, 0), state(8, 8), state(None, 3)]
    door = replace(DOOR, ranks=(8, 9))
    stranger, own, unknown, missing = decode(answer(encode(states, 1 << 20)), door)
    assert stranger.failures["healthz"].reason == "lied"
    assert own.failures == unknown.failures == {}
    assert (missing.rank, missing.failures["healthz"].reason) == (9, "missing")


# --- of another version


@pytest.fixture
def stack(no_leaks: None) -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as exits:
        yield exits


def served(stack: contextlib.ExitStack, servers: list[Canned]) -> Worker:
    collector = Collector([server.address for server in servers], (0, 1))
    server = stack.enter_context(WorkerServer("127.0.0.1", 0, registry=collector.registry))
    return Worker(server.address, False, host="node7", collector=True, ranks=(0, 1))


def asked(door: Worker, target: str) -> dict[str, Any]:
    host, _, port = door.address.rpartition(":")
    with Raw((host, int(port))) as client:
        reply = client.ask(message("POST", target, b""))
    return dict(json.loads(reply.body))


def test_an_older_asker_gets_the_older_answer(start: Start, stack: contextlib.ExitStack) -> None:
    door = served(stack, [start(good(rank), "unix") for rank in range(2)])
    old = asked(door, "/handler/collect?want=health")
    assert old["version"] == 1
    assert [each["rank"] for each in old["workers"]] == [0, 1]
    new = asked(door, "/handler/collect?want=health&version=2")
    assert new["version"] == 2
    assert [each["rank"] for each in new["groups"]] == [[0, 1]]


class Older(dict[str, Any]):
    """The answers of a collector that knows no version 2."""

    def get(self, target: str, default: Any = None) -> Any:
        name, _, query = target.partition("?")
        if name != "/handler/collect":
            return default
        if "version=" in query:
            return http(b"unknown parameter 'version'", "400 Bad Request")
        states = [state(rank, rank) for rank in range(2)]
        return http(encode_each(states, 1 << 20))


def test_an_older_collector_is_asked_in_the_older_way(start: Start) -> None:
    server = start({})
    server.answers = Older()
    door = Worker(server.address, False, collector=True, ranks=(0, 1))

    async def two(client: Any) -> list[Round]:
        return await collect([door], want={"health"}, client=client, rounds=2, interval=0.01)

    for each in run(two, deadline=60.0):
        assert [(one.rank, one.digest, one.failures) for one in each.states] == [
            (0, "aa", {}),
            (1, "aa", {}),
        ]
    versions = ["version=2" in target for _, target in server.asked]
    assert versions == [True, False, False]


def test_a_job_is_learnt_alike_in_groups(start: Start, stack: contextlib.ExitStack) -> None:
    servers = [start({**good(rank), SUMMARY: summary(5)}, "unix") for rank in range(2)]
    through = look(served(stack, servers))
    direct = look(*(server.worker() for server in servers))
    for one, other in zip(through.states, direct.states, strict=True):
        assert (one.health, one.digest, one.flight_summary) == (
            other.health,
            other.digest,
            other.flight_summary,
        )


def test_one_long_summary_of_many_workers() -> None:
    """A lying collector makes no endless work of a short answer: a summary that can't be kept as
    one shape is read once, and not for thousands of workers if it is long."""

    def told(count: int, items: int) -> list[RankState]:
        text = json.dumps({"last_time_ns": NOW * 10, "filler": [{}] * items})
        group = {
            "rows": f"0-{count - 1}", "rank": list(range(count)), "kind": "workerserver",
            "unix": False, "tls": False, "responded": True, "failures": {}, "health": None,
            "address": {"begin": "h:", "middle": [str(n) for n in range(count)], "end": ""},
            "summary": {"parts": [text], "places": [], "times": []},
        }  # fmt: skip
        return decode(answer(json.dumps({"version": 2, "groups": [group]}).encode()), DOOR)

    few = told(16, 1000)
    assert few[0].flight_summary
    assert all(each.flight_summary is few[0].flight_summary for each in few)
    many = told(4096, 10_000)
    assert {each.failures["healthz"].reason for each in many} == {"malformed"}
    assert not any(each.flight_summary for each in many)
