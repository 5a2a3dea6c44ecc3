"""Recorders of several backends in one process: which are asked for, and what is read from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.commands import answer
from support.jobs.flight_entries import entry, pending, trace
from support.jobs.workers import HEALTH, SUMMARY, TEXT, Answer, Canned, Start, good, hang, http
from support.jobs.workers import health as healthy
from support.lifecycle import environment
from support.torchrun import training

from workerserver.cluster.ask.bodies import clock_ahead
from workerserver.cluster.ask.client import run
from workerserver.cluster.ask.fetch_full import Traces
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.flight import Analysis, analyse, combine
from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Health, RankState
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import Key

JOB = Path(__file__).resolve().parents[2] / "programs/cluster/hooked_rank.py"
TRACE = "/handler/fr_trace_json"
NCCL_TRACE = "/handler/dump_nccl_trace_json?includecollectives=true"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield Start(stack, tmp_path)


def gloo(record: int, seq: int, **changes: Any) -> dict[str, Any]:
    """gloo says "retired", and never "completed"."""
    told = {"profiling_name": "gloo:all_reduce", "state": "scheduled", "retired": True}
    return entry(record, seq, **{**told, **changes})


def hooked(record: int, seq: int, op: str = "all_reduce", **changes: Any) -> dict[str, Any]:
    """An operation of a backend that tells no end: retired as soon as it is issued."""
    return gloo(record, seq, profiling_name=f"mine:{op}", **changes)


def waits(analysis: Analysis) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    return [(each.group.label, each.name, each.waiting, each.absent) for each in analysis.waits]


# ---- what is read


def test_the_backends_of_a_group_count_for_themselves() -> None:
    """Mixed, number 2 would be two operations on one rank and another one on the other."""
    both = [gloo(0, 1), gloo(1, 2)], [entry(0, 1, "broadcast"), pending(1, 2)]
    less = [gloo(0, 1), gloo(1, 2)], [entry(0, 1, "broadcast")]
    records = [
        read(trace(*first), more={"nccl": trace(*second, ranks="[0, 1]")})
        for first, second in (both, less)
    ]
    assert [list(record.groups) for record in records] == [
        [Key("0", "default_pg", "gloo"), Key("0", "default_pg", "nccl")]
    ] * 2
    analysis = combine(dict(enumerate(records)), 2)
    assert waits(analysis) == [("default_pg (nccl)", "all_reduce #2", (0,), (1,))]
    assert analysis.mismatches == ()


def test_numbers_of_groups_are_a_recorders_own() -> None:
    """A group's number in another recorder is no sign of a group that was made again."""
    record = read(trace(gloo(0, 1, pg_id=3)), more={"nccl": trace(entry(0, 1, pg_id=0))})
    assert [(each.number, each.earlier) for each in record.groups.values()] == [
        (3, frozenset()),
        (0, frozenset()),
    ]


def test_a_rank_that_has_issued_nothing_with_a_backend_belongs_to_its_group() -> None:
    none = {"groups": [{"recorder": None, "name": "0", "desc": "default_pg", "ranks": "0-2"}]}
    issued = trace(pending(0, 1), ranks="[0, 1, 2]")
    analysis = analyse({0: issued, 1: issued}, 3, {2: none})
    assert waits(analysis) == [("default_pg", "all_reduce #1", (0, 1), (2,))]


def test_an_operation_that_was_retired_when_it_was_issued_may_go_on() -> None:
    record = read(trace(hooked(0, 1)))
    (group,) = record.groups.values()
    assert group.last_issued is not None
    assert (group.last_retired, group.first_pending) == (None, None)
    everybody = analyse({rank: trace(hooked(0, 1)) for rank in range(3)}, 3)
    assert waits(everybody) == []


def test_what_not_all_have_entered_has_not_ended() -> None:
    ahead, behind = trace(hooked(0, 1), hooked(1, 2)), trace(hooked(0, 1))
    analysis = analyse({0: ahead, 1: ahead, 2: behind}, 3)
    assert waits(analysis) == [("default_pg", "all_reduce #2", (0, 1), (2,))]


@pytest.mark.parametrize("op", ["broadcast", "reduce", "gather", "scatter", "send 0->1"])
def test_what_one_rank_may_leave_early_tells_nothing(op: str) -> None:
    ahead, behind = trace(hooked(0, 1), hooked(1, 2, op)), trace(hooked(0, 1))
    assert waits(analyse({0: ahead, 1: ahead, 2: behind}, 3)) == []


def test_nccl2_says_completed() -> None:
    def nccl2(record: int, seq: int, **more: Any) -> dict[str, Any]:
        return entry(record, seq, profiling_name="nccl2:all_reduce", **more)

    waiting = trace(nccl2(0, 1), nccl2(1, 2, state="scheduled", retired=False))
    analysis = analyse({0: waiting, 1: trace(nccl2(0, 1))}, 2)
    assert waits(analysis) == [("default_pg", "all_reduce #2", (0,), (1,))]


# ---- what is asked for


def stock(names: list[str], traces: dict[str, Any]) -> dict[str, Answer]:
    thread = b'Thread 0x1 (most recent call first):\n  File "/job/a.py", line 3 in <module>\n'
    answers: dict[str, Answer] = {
        TEXT: http(thread, "200 OK", "Content-Type: text/plain"),
        "/handler/": http(names),
    }
    return {**answers, **{target: http(told) for target, told in traces.items()}}


def look(servers: list[Canned], **options: Any) -> Round:
    workers = [server.worker(rank) for rank, server in enumerate(servers)]
    (result,) = run(lambda client: collect(workers, client=client, **options), deadline=60)
    return result


def asked(server: Canned) -> list[str]:
    return [target for _, target in server.asked if "trace_json" in target]


def test_torchs_own_server_is_asked_for_each_recorder_that_torch_brings(start: Start) -> None:
    traces = {TRACE: trace(gloo(0, 1)), f"{TRACE}?backend=nccl2": trace(entry(0, 1))}
    traces |= {f"{TRACE}?backend=nccl-lazy": trace(), f"{TRACE}?backend=ucc": trace(entry(0, 2))}
    server = start(stock(["fr_trace_json", "fr_dump_file", "dump_traceback"], traces))
    (state,) = look([server]).states
    assert asked(server) == [TRACE, f"{TRACE}?backend=nccl2", f"{TRACE}?backend=nccl-lazy"]
    assert state.flight == traces[TRACE]
    assert state.more_flights == {"nccl2": traces[f"{TRACE}?backend=nccl2"]}
    assert state.failures == {}
    (state,) = look([server], backends=["ucc"]).states
    assert sorted(state.more_flights) == ["nccl2", "ucc"]


def test_a_torch_with_two_recorders_is_asked_for_both(start: Start) -> None:
    traces = {TRACE: trace(gloo(0, 1)), NCCL_TRACE: trace(pending(0, 1))}
    server = start(stock(["fr_trace_json", "dump_nccl_trace_json"], traces))
    (state,) = look([server]).states
    assert asked(server) == [TRACE, NCCL_TRACE]
    assert state.more_flights == {"nccl": traces[NCCL_TRACE]}


def test_a_torch_without_any_handler_of_recorders(start: Start) -> None:
    server = start(stock(["ping", "dump_traceback"], {}))
    round_ = look([server])
    assert asked(server) == []
    assert (round_.states[0].recorders, round_.states[0].failures) == (frozenset(), {})
    assert any("no handler for flight recorders" in each for each in unseen(round_))


def test_a_rank_without_the_gil_is_asked_for_its_recorders(start: Start) -> None:
    answers: dict[str, Answer] = {**good(0), HEALTH: healthy(0, gil_unavailable_s=4.0)}
    answers["/handler/"] = http(["fr_trace_json", "fr_dump_file"])
    answers |= {TRACE: http(trace()), f"{TRACE}?backend=nccl2": http(trace(pending(0, 1)))}
    server = start(answers)
    (state,) = look([server]).states
    assert state.flight == trace(pending(0, 1))
    assert state.flight_summary is None


def test_a_rank_without_the_gil_behind_a_collector(start: Start) -> None:
    """A collector asks for summaries, and passes on no traces."""
    server = start({TRACE: http(trace(gloo(0, 1)))})
    held = Health("ok", gil_unavailable_s=4.0)
    state = RankState(server.worker(0), 0, "workerserver", held, responded=True)
    run(lambda client: Traces([state], ()).ask_rest(client), deadline=60)
    assert state.flight == trace(gloo(0, 1))


def test_a_recorder_that_needs_the_gil_is_not_waited_for(start: Start) -> None:
    server = start({"/handler/": http(["fr_trace_json"]), TRACE: hang})
    held = Health("ok", gil_unavailable_s=4.0)
    state = RankState(server.worker(0), 0, "workerserver", held, responded=True)
    run(lambda client: Traces([state], ()).ask_rest(client), deadline=3600)
    assert state.failures["flight"].reason == "timeout"


def summary_of(backend: str, seq: int) -> bytes:
    operation = {"seq": seq, "op": f"{backend}:all_reduce", "state": "completed", "retired": True}
    group = {"recorder": "fr", "id": 0, "name": "0", "desc": "default_pg", "ranks": "0-1"}
    last = {"last_issued": operation, "last_retired": operation, "first_pending": None}
    return http({"rank": 0, "version": "2.10", "groups": [{**group, **last, "backend": backend}]})


def test_every_recorder_of_a_summary_is_fetched(start: Start) -> None:
    target = f"{TRACE}?backend=mine"
    servers = [
        start({**good(rank), SUMMARY: summary_of("mine", rank), target: http(trace(hooked(0, 1)))})
        for rank in range(2)
    ]
    states = look(servers).states
    assert [asked(server) for server in servers] == [[target]] * 2
    assert all(state.flight == trace(hooked(0, 1)) for state in states)


def test_a_backend_that_one_rank_names_is_asked_for_everywhere(start: Start) -> None:
    """A stock worker tells no names of backends, but ranks of one job have the same ones."""
    target = f"{TRACE}?backend=mine"
    told = trace(hooked(0, 1))
    servers = [
        start({**good(0), SUMMARY: summary_of("mine", 1)}),
        start(stock(["fr_trace_json", "fr_dump_file"], {TRACE: trace(), target: told})),
    ]
    assert look(servers).states[1].flight == told


def test_a_backends_name_is_escaped_or_left_out(start: Start) -> None:
    servers = [
        start({**good(rank), SUMMARY: summary_of("x&y=/../ping", rank), TRACE: http(trace())})
        for rank in range(2)
    ]
    look(servers)
    assert [asked(server) for server in servers] == [[TRACE]] * 2


def test_who_has_issued_nothing_differs_from_who_has(start: Start) -> None:
    nothing = {"recorder": None, "name": "0", "desc": "default_pg", "ranks": "0-1"}
    servers = [
        start({**good(0), SUMMARY: summary_of("mine", 1), f"{TRACE}?backend=mine": http(trace())}),
        start({**good(1), SUMMARY: http({"groups": [nothing]})}),
    ]
    look(servers)
    assert [asked(server) for server in servers] == [[f"{TRACE}?backend=mine"], [TRACE]]


# ---- clocks, and what was not looked at


def unseen(*rounds: Round) -> tuple[str, ...]:
    return diagnose(rounds, len(rounds[-1].states)).not_looked_at


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Sat, 29 Feb 2020 23:59:59 GMT", 1_583_020_799.0),
        ("Fri, 31 Dec 1999 00:00:00 GMT", 946_598_400.0),
        ("Sun, 01 Mar 2026 12:00:00 GMT", 1_772_366_400.0),
    ],
)
def test_a_date_in_seconds(date: str, ahead: float) -> None:
    told = clock_ahead({"date": date})
    assert told is not None
    assert abs(told + time.time() - ahead) < 60


def test_a_date_that_is_none() -> None:
    told = [clock_ahead({"date": date}) for date in ("", "now", "Sun, 99 Xyz 2026 12:00:00 GMT")]
    assert told == [None] * 3
    now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    assert clock_ahead({"date": now}) == 0.0


def test_a_clock_that_is_behind_does_not_make_a_wait_old(start: Start) -> None:
    """By this machine's clock the operation was issued an hour ago; by its own just now."""
    behind = time.gmtime(time.time() - 3600)
    date = "Date: " + time.strftime("%a, %d %b %Y %H:%M:%S GMT", behind)
    issued = int((time.time() - 3600) * 1e9)
    waiting = trace(pending(0, 1, time_created_ns=issued), ranks="[0, 1]")
    facts = {"status": "ok", "pid": 1, "uptime_s": 9.0, "step": None, "step_age_s": None}
    answers = {**good(0), HEALTH: http({**facts, "rank": 0}, "200 OK", date), TRACE: http(waiting)}
    operation = {"seq": 1, "op": "nccl:all_reduce", "state": "started", "created_ns": issued}
    group = {"recorder": "nccl", "id": 0, "name": "0", "desc": "default_pg", "ranks": "0-1"}
    last = {"last_issued": operation, "first_pending": operation, "last_retired": None}
    told = http({"rank": 0, "version": "2.10", "groups": [{**group, **last}]})
    servers = [
        start({**answers, SUMMARY: told, NCCL_TRACE: http(waiting)}),
        start({**good(1), HEALTH: http({**facts, "rank": 1}, "200 OK", date)}),
    ]
    round_ = look(servers)
    assert any("behind this machine's" in line for line in unseen(round_))
    job = Job([round_], 2)
    wait = next(each for each in job.analysis.waits if each.group.key.backend == "nccl")
    age = job.age(wait)
    assert age is not None
    assert age < 600


# ---- real jobs


def hook_is_there() -> bool:
    c10d = pytest.importorskip("torch._C._distributed_c10d")
    return hasattr(c10d, "_reset_fr_trace")


@pytest.mark.torch
@pytest.mark.timeout(280)  # four processes import torch, a CUDA build in a minute on a busy machine
@pytest.mark.parametrize("scene", ["waits", "inside"])
@pytest.mark.parametrize("kind", ["workerserver", "torch"])
def test_a_hung_job_of_another_backend(short_path: Path, kind: str, scene: str) -> None:
    if not hook_is_there():
        pytest.skip("this torch has no recorder for each backend")
    sockets = f"{short_path}/rank{{rank}}.sock"
    settings = environment(TORCH_WORKER_SERVER_SOCKET=sockets, FOLDER=str(short_path))
    named = ("--backend", "mine") if kind == "torch" else ()
    with training(["--standalone", str(JOB), kind, scene], settings, short_path, 3):
        give_up = time.monotonic() + 60
        status, verdict = answer("diagnose", *named, "--world-size", "3", sockets)
        while status != 1 and time.monotonic() < give_up:
            status, verdict = answer("diagnose", *named, "--world-size", "3", sockets)
        assert [(each["rank"], each["seq"]) for each in verdict["suspects"]] == [(2, 4)]
        assert verdict["suspects"][0]["location"].endswith("prepare")
        status, fields = answer("fr", *named, sockets)
        (group,) = fields["process_groups"]
        assert (status, group["backend"]) == (1, "mine")
        if kind == "torch":
            status, fields = answer("fr", sockets)
            assert status == 2
            assert any("--backend NAME" in line for line in fields["not_looked_at"])
        status, _ = answer("stacks", sockets)
        assert status == 0
