"""What several looks tell of a rank, and that all commands take them in the same way."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.jobs.ranks import C10D, LOAD, LOGGER, MODULE, REDUCE, SITE, STEP, WAIT, main, state
from support.jobs.recordings import NAMES, Round, rounds, without_traces
from support.lifecycle import environment

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Frame, Health, RankState, Worker
from workerserver.cluster.read.progress import compare, observe
from workerserver.cluster.read.stacks import parse_json

NOW = 2_000_000_000.0


def look(states: list[RankState]) -> Round:
    return Round(states, NOW)


def looks(*each: RankState | None) -> list[Round]:
    return [Round([] if one is None else [one], NOW + 10.0 * n) for n, one in enumerate(each)]


def health(step: int | None = None, age: float | None = None, **more: Any) -> Health:
    return Health("ok", pid=more.pop("pid", 1), step=step, step_age_s=age, **more)


def at(*frames: Frame, step: int | None = None, age: float | None = None, **more: Any) -> RankState:
    told = {name: more.pop(name) for name in ("pid", "uptime_s") if name in more}
    names = ("unstable", "state", "wchan", "switches", "native_id")
    thread = {name: more.pop(name) for name in names if name in more}
    return state(0, main(*frames, **thread), health=health(step, age, **told), **more)


def slept(letter: str, switches: int, wchan: str = "hrtimer_nanosleep") -> RankState:
    return at(LOAD, STEP, state=letter, wchan=wchan, switches=switches)


def operation(seq: int, retired: bool, op: str = "gloo:all_reduce") -> dict[str, Any]:
    return {
        "seq": seq, "p2p_seq": 0, "p2p": False, "op": op, "state": "scheduled", "retired": retired
    }  # fmt: skip


def summary(issued: int, retired: int = 0, **status: int) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": "0", "desc": "default_pg", "id": 0, "recorder": "fr",
                "status": status or None, "pending": 1,
                "last_issued": operation(issued, issued <= retired),
                "last_retired": operation(retired, True),
            }
        ]
    }  # fmt: skip


def trace(*numbers: int, **more: Any) -> dict[str, Any]:
    entries = [
        {
            "process_group": ["0", "default_pg"],
            "collective_seq_id": n,
            "p2p_seq_id": 0,
            "profiling_name": "gloo:all_reduce",
        }
        for n in numbers
    ]
    return {"entries": entries, **more}


SPIN = [(Frame("/job/train.py", line, "wait_for_file"), MODULE) for line in (10, 11, 12)]
GET = Frame("/usr/lib/python3.11/queue.py", 180, "get")
SELECT = [Frame("/usr/lib/python3.11/selectors.py", line, "select") for line in (415, 416)]
NEXT = Frame(f"{SITE}/torch/utils/data/dataloader.py", 725, "__next__")
ADAM = [(Frame(f"{SITE}/torch/optim/adam.py", line, "step"), MODULE) for line in (1, 2)]


SEEN: list[tuple[list[Round], str, str]] = [
    (looks(at(*REDUCE)), "unknown", "looked at only once"),
    # There are no counters, so only the stack tells.
    (looks(at(*REDUCE), at(*REDUCE)), "stuck", "the same line in 2 looks"),
    (looks(at(*SPIN[0]), at(*SPIN[1])), "busy", "its stack changes"),
    (looks(at(STEP, MODULE), at(LOAD, MODULE)), "moving", "its functions change"),
    # Steps.
    (looks(at(*REDUCE, step=5), at(*REDUCE, step=5)), "stuck", "no step and no operation"),
    (looks(at(*REDUCE, step=5), at(*REDUCE, step=6)), "moving", "step 5 -> 6"),
    (looks(at(*REDUCE, step=5, age=9.0), at(*REDUCE, step=5, age=0.5)), "moving", "heartbeat"),
    (looks(at(*REDUCE, step=5, age=8.0), at(*REDUCE, step=5, age=9.0)), "stuck", "no step"),
    (looks(at(*SPIN[0], step=5), at(*SPIN[1], step=5)), "busy", "no step and no operation"),
    (looks(at(STEP, MODULE, step=5), at(LOAD, MODULE, step=5)), "busy", "its stack changes"),
    (looks(at(*REDUCE, step=5), at(*REDUCE, step=5), at(*REDUCE, step=6)), "moving", "step"),
    # A wait with a timeout goes through several lines of the library.
    (looks(at(WAIT, GET, STEP), at(GET, STEP)), "stuck", "waits in queue.get"),
    (looks(at(WAIT, GET, STEP), at(GET, STEP._replace(line=1))), "busy", "its stack"),
    (looks(at(SELECT[0], NEXT, STEP), at(SELECT[1], NEXT, STEP)), "stuck", "DataLoader"),
    (looks(at(*ADAM[0], step=1), at(*ADAM[1], step=1)), "busy", "its stack changes"),
    # The flight recorder.
    (
        looks(at(*REDUCE, flight_summary=summary(5)), at(*REDUCE, flight_summary=summary(5))),
        "stuck",
        "no step and no operation",
    ),
    (
        looks(at(*REDUCE, flight_summary=summary(5)), at(*REDUCE, flight_summary=summary(6))),
        "moving",
        "process group default_pg: operations",
    ),
    (
        looks(
            at(*REDUCE, flight_summary=summary(5, 4)), at(*REDUCE, flight_summary=summary(5, 5))
        ),
        "moving",
        "operations went on",
    ),
    (
        looks(
            at(*REDUCE, flight_summary=summary(5, completed=4)),
            at(*REDUCE, flight_summary=summary(5, completed=5)),
        ),
        "moving",
        "operations went on",
    ),
    (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace(5))), "stuck", "no step"),
    (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace(6))), "moving", "default_pg"),
    (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace())), "moving", "default_pg"),
    (looks(at(*REDUCE, flight=trace()), at(*REDUCE, flight=trace())), "stuck", "neither"),
    (
        looks(
            at(*REDUCE, flight={"pg_status": {"0": {"last_started_collective": "3"}}}),
            at(*REDUCE, flight={"pg_status": {"0": {"last_started_collective": "4"}}}),
        ),
        "moving",
        "process group number 0",
    ),
    # It is too early to tell: a step usually takes (80 - 1) / 10 s.
    (
        looks(
            at(*REDUCE, step=10, age=0.5, uptime_s=79.5),
            at(*REDUCE, step=10, age=1.0, uptime_s=80.0),
        ),
        "unknown",
        "the last step was 1.0 s ago, and one takes about 7.9 s",
    ),
    (
        looks(
            at(*REDUCE, step=10, age=19.0, uptime_s=99.0),
            at(*REDUCE, step=10, age=20.0, uptime_s=100.0),
        ),
        "stuck",
        "the same line",
    ),
    (
        looks(
            at(*REDUCE, step=1, age=1.0, uptime_s=100.0),
            at(*REDUCE, step=1, age=2.0, uptime_s=101.0),
        ),
        "stuck",
        "the same line",
    ),
    # Looks that can't be compared.
    (looks(at(*REDUCE), None), "unknown", "no answer in look 2 of 2"),
    (looks(at(*REDUCE, pid=1), at(*REDUCE, pid=2)), "unknown", "restarted"),
    (looks(at(*REDUCE), at(*REDUCE, unstable=True)), "unknown", "while it was read"),
    (looks(at(*REDUCE, step=1), at(*REDUCE, unstable=True, step=2)), "moving", "step 1 -> 2"),
    (looks(at(state="S"), at(state="S")), "unknown", "could not be read"),
    # A short loop is met at one line. It sleeps in one look, and would run in the other.
    (looks(slept("S", 7), slept("S", 7)), "stuck", "no"),
    (looks(slept("S", 7), slept("S", 9)), "busy", "no"),
    (looks(slept("R", 7), slept("S", 9)), "busy", "no"),
    (looks(slept("S", 7), slept("R", 9)), "busy", "no"),
    (looks(slept("R", 7), slept("R", 9)), "stuck", "no"),
    (looks(slept("S", 7), slept("S", 9, "futex_do_wait")), "busy", "no"),  # it wants the GIL
    # Digests are enough where the stacks were not fetched.
    (looks(at(main_digest="a"), at(main_digest="a")), "stuck", "the same stack"),
    (looks(at(main_digest="a"), at(main_digest="b")), "busy", "its stack changes"),
]  # fmt: skip


@pytest.mark.parametrize(("rounds", "motion", "reason"), SEEN)
def test_one_rank(rounds: list[Round], motion: str, reason: str) -> None:
    observation = observe(rounds)[0]
    assert (observation.motion, observation.reason) == (motion, observation.reason)
    assert reason in observation.reason
    assert compare(rounds) == {0: motion}


def test_looks_at_a_job() -> None:
    first = [
        state(0, main(*REDUCE)),
        state(1, main(*REDUCE)),
        state(2),
        RankState(Worker("b", True)),
    ]
    second = [state(0, main(*REDUCE)), state(1, main(LOAD, STEP)), state(3, main(*REDUCE))]
    assert compare([look(first), look(second)]) == {
        0: "stuck",
        1: "moving",
        2: "unknown",
        3: "unknown",
    }
    assert compare([]) == {}


def test_two_workers_of_one_rank() -> None:
    both = [state(0, main(*REDUCE)), state(0, main(LOAD))]
    assert observe([look(both), look(both)])[0].reason.startswith("more than one worker")
    moved = RankState(Worker("elsewhere", True), 0, threads=[main(*REDUCE)], responded=True)
    assert observe(looks(both[0], moved))[0].reason == "the rank moved to another worker"


@pytest.mark.parametrize(
    "odd", [{"groups": 3}, {"groups": [3]}, {"groups": [{"last_issued": 3, "status": []}]}, {}]
)
def test_odd_flight_recorders(odd: dict[str, Any]) -> None:
    """They came over the wire."""
    rounds = looks(at(*REDUCE, flight_summary=odd), at(*REDUCE, flight_summary=odd))
    assert compare(rounds) == {0: "stuck"}
    for entries in (3, [3], [{"process_group": 3, "collective_seq_id": "x"}]):
        told = {"entries": entries, "pg_status": {"0": 3}}
        assert compare(looks(at(*REDUCE, flight=told), at(*REDUCE, flight=told))) == {0: "stuck"}
    assert compare(looks(at(*REDUCE, flight={"pg_status": 3}), at(*REDUCE))) == {0: "stuck"}


# ---- one notion for all commands


#: Whether the rank went on and whether its stack is the same, and the motions that allow this.
FACTS: dict[str, list[tuple[bool | None, bool | None]]] = {
    "stuck": [(False, True), (None, True)],
    "busy": [(False, False), (None, False)],
    "moving": [(True, True), (True, False), (True, None), (None, False)],
    "unknown": [(False, True), (None, True), (False, None), (None, None)],
}


def agree(rounds: list[Round]) -> Job:
    """``stacks`` and ``diagnose`` take the same two rounds in the same way."""
    job = Job(rounds, None)
    for rank, seen in observe(rounds).items():
        if job.before is None or rank not in job.now.states or rank not in job.before.states:
            assert seen.motion == "unknown"
            continue
        went_on, same = job.progressed(rank).went_on, job.same_stack(rank)
        if seen.reason.startswith("more than one worker"):
            continue
        assert job.motion(rank) == seen.motion
        assert (went_on, same) in FACTS[seen.motion]
        if went_on:
            assert job.moves
    return job


@pytest.mark.parametrize("name", NAMES)
def test_recorded_jobs_are_seen_alike(name: str) -> None:
    given = rounds(name)
    for pair in (given, [given[0], given[0]], given[::-1]):
        agree(pair)
        agree(without_traces(pair))
    moving = set(compare(given).values()) == {"moving"}
    assert moving == (name.partition("-")[0] in ("healthy", "straggler"))


@pytest.mark.parametrize("seen", [rounds for rounds, _, _ in SEEN if len(rounds) == 2])
def test_hand_made_looks_are_seen_alike(seen: list[Round]) -> None:
    agree(seen)


READS = [(Frame(f"{SITE}/urllib3/response.py", line, "read"), STEP, MODULE) for line in (1, 2)]
POLLS = [
    (Frame("/usr/lib/python3.11/multiprocessing/connection.py", line, "poll"), STEP, MODULE)
    for line in (1, 2)
]
ELSEWHERE = MODULE._replace(line=91)
BARRIER = Frame(C10D.file, 4000, "barrier")
LEAVES = [
    (Frame(C10D.file, line, "_shutdown_backend"), Frame(C10D.file, 2000, "destroy_process_group"))
    for line in (1, 2)
]


def retired_by_a_watchdog(retired: bool) -> dict[str, Any]:
    """NCCL's watchdog retires an operation that has timed out."""
    late = operation(5, retired, "nccl:all_reduce")
    done = operation(4, True, "nccl:all_reduce") | {"state": "completed"}
    group = {"name": "0", "desc": "default_pg", "recorder": "nccl", "last_issued": late}
    return {"groups": [group | {"last_retired": late if retired else done}]}


#: Cases in which the commands once disagreed. Both now say what the more careful one said.
DISPUTED: dict[str, tuple[RankState, RankState, str, bool | None, bool | None]] = {
    # diagnose saw no progress.
    "a heartbeat of the same step": (
        at(*REDUCE, step=5, age=9.0), at(*REDUCE, step=5, age=0.5), "moving", True, True,
    ),
    "an operation that ended": (
        at(*REDUCE, flight_summary=summary(5, 4)), at(*REDUCE, flight_summary=summary(5, 5)),
        "moving", True, True,
    ),
    # stacks saw progress.
    "an operation that timed out": (
        at(*REDUCE, flight_summary=retired_by_a_watchdog(False)),
        at(*REDUCE, flight_summary=retired_by_a_watchdog(True)),
        "stuck", False, True,
    ),
    # diagnose saw progress: another step.
    "a restart": (at(*REDUCE, pid=1, step=9), at(*REDUCE, pid=2, step=0), "unknown", None, None),
    # diagnose saw the same stack.
    "the same line from another place": (
        at(*REDUCE), at(*REDUCE[:-1], ELSEWHERE), "busy", None, False,
    ),
    "another collective at the same line": (
        at(*REDUCE), at(BARRIER, LOGGER, STEP, MODULE), "busy", None, False,
    ),
    "frames that moved after the digest": (
        at(*SPIN[0], main_digest="a"), at(*SPIN[1], main_digest="a"), "busy", None, False,
    ),
    # diagnose saw another stack, and saw the job move.
    "a wait with a timeout for a process": (at(*POLLS[0]), at(*POLLS[1]), "stuck", None, True),
    "a stack that changed while it was read": (
        at(*SPIN[0]), at(*SPIN[1], unstable=True), "unknown", None, None,
    ),
    # stacks saw a wait.
    "a read that goes on": (at(*READS[0]), at(*READS[1]), "busy", None, False),
    "a shutdown that goes on": (
        at(*LEAVES[0], STEP, MODULE), at(*LEAVES[1], STEP, MODULE), "busy", None, False,
    ),
    # diagnose did not ask how long steps take.
    "a long step": (
        at(*SPIN[0], step=30, age=29.0, uptime_s=3021.0),
        at(*SPIN[0], step=30, age=31.0, uptime_s=3031.0),
        "unknown", False, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISPUTED)
def test_disputed_looks(case: str) -> None:
    before, after, motion, went_on, same = DISPUTED[case]
    given = looks(before, after)
    assert compare(given) == {0: motion}
    job = agree(given)
    assert (job.progressed(0).went_on, job.same_stack(0)) == (went_on, same)
    assert job.moves is went_on


def test_a_long_step_is_not_stalled() -> None:
    def verdict(usual: float) -> Verdict:
        told = [
            at(LOAD, MODULE, step=30, age=age, uptime_s=30 * usual + age) for age in (35.0, 45.0)
        ]
        return diagnose(looks(*told), 1)

    assert [each.reason for each in verdict(1.0).suspects] == ["stalled"]
    assert verdict(100.0).suspects == ()


def test_a_loop_that_never_ends_is_not_called_healthy() -> None:
    """Nothing is counted, and the lines change, but in the same functions."""
    assert diagnose(looks(at(*SPIN[0]), at(*SPIN[1])), 1).status == 2
    assert diagnose(looks(at(STEP, MODULE), at(LOAD, MODULE)), 1).status == 0


STATES = st.builds(
    at,
    *[st.sampled_from([MODULE, STEP, LOAD, C10D, WAIT, GET, NEXT, *READS[0][:1]])] * 3,
    step=st.none() | st.integers(0, 4),
    age=st.none() | st.sampled_from([0.5, 9.0]),
    pid=st.integers(1, 2),
    uptime_s=st.none() | st.just(20.0),
    unstable=st.booleans(),
    main_digest=st.sampled_from([None, "a", "b"]),
    flight_summary=st.none() | st.builds(summary, st.integers(0, 3), st.integers(0, 3)),
    flight=st.none() | st.builds(trace, st.integers(0, 3)),
)


@given(STATES, STATES)
def test_any_two_looks_are_seen_alike(before: RankState, after: RankState) -> None:
    agree(looks(before, after))


# ---- a real process


LOOKED_AT = """
import sys, threading
from workerserver.stacks._stacks import snapshot

go = threading.Event()
here, on = threading.Lock(), threading.Lock()
here.acquire()
on.acquire()

def stuck():
    go.wait()

# Both calls are in one line: wherever a look meets the thread from the first one on, it is there.
def spin():
    while not go.is_set():
        here.release(); on.acquire()
        here.release(); on.acquire()

def slow():
    while not go.is_set():
        middle()

def middle():
    first()
    second()

def first():
    here.release(); on.acquire()

def second():
    here.release(); on.acquire()

def waits(stacks):
    return b'"stuck"' in stacks and b'"wait"' in stacks

def look():
    while sys.argv[1] == "stuck" and not waits(snapshot().render("json")):
        pass
    for number in range(20):
        if sys.argv[1] != "stuck":
            here.acquire()
        print(snapshot().render("json").decode(), flush=True)
        if number == 19:
            go.set()
        if sys.argv[1] != "stuck":
            on.release()

threading.Thread(target=look).start()
globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize(
    ("what", "expected"), [("stuck", "stuck"), ("spin", "busy"), ("slow", "moving")]
)
def test_a_real_process(what: str, expected: str, tmp_path: Any) -> None:
    path = tmp_path / "looked_at.py"
    path.write_text(LOOKED_AT)
    done = subprocess.run(
        [sys.executable, str(path), what],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rounds = looks(*(state(0, *parse_json(line)) for line in done.stdout.splitlines()))
    assert len(rounds) == 20
    assert compare(rounds) == {0: expected}
