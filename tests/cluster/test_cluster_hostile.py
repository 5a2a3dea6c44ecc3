"""Workers that hang, lie, or answer what they should not: that rank's problem, and nobody else's.

Every behaviour is tried at each question, and at the first one over TLS too. All hostile workers
are asked in one round, beside three good ones, which must not be touched by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificate
from support.jobs.misbehaving import BEHAVIOURS, GOOD, PLACES
from support.jobs.workers import (
    DIGEST,
    HEALTH,
    SUMMARY,
    TRACE,
    Answer,
    Canned,
    good,
    health,
    http,
)
from support.jobs.workers import digest as digest_answer
from support.jobs.workers import summary as summary_answer
from support.lifecycle import environment
from support.waiting import becomes

from workerserver.cli import main
from workerserver.cluster.ask.client import run, tls_context
from workerserver.cluster.ask.engine import at_once
from workerserver.cluster.ask.rounds import Round, collect
from workerserver.cluster.model import Failure, RankState, Worker

#: Seconds. Enough for everything that is sent here, on a busy machine too; see misbehaving.py.
DEADLINE = 3.0
MISBEHAVING = "support.jobs.misbehaving"


@dataclass(frozen=True)
class Outcome:
    round: Round
    by_name: dict[str, RankState]
    good: list[RankState]


WAYS = [*((place, "tcp") for place in PLACES), ("healthz", "unix"), ("healthz", "tls")]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def outcome(request: pytest.FixtureRequest) -> tuple[str, Outcome]:
    place, kind = request.param
    with tempfile.TemporaryDirectory(prefix="ws-") as folder:
        command = [sys.executable, "-m", MISBEHAVING, place, folder if kind == "unix" else "-"]
        options: dict[str, Any] = {"deadline": DEADLINE}
        if kind == "tls":
            files = make_certificate(Path(folder))
            command += files
            options["tls"] = tls_context(files[1])
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            addresses = json.loads(process.stdout.readline())
            workers = [Worker(a, kind == "unix", tls=kind == "tls") for a in addresses]
            (result,) = run(lambda client: collect(workers, client=client), **options)
            process.stdin.close()
    states = result.states
    named = dict(zip(BEHAVIOURS, states[len(GOOD) :], strict=True))
    return place, Outcome(result, named, states[: len(GOOD)])


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_hostile_worker_is_its_own_problem(outcome: tuple[str, Outcome], name: str) -> None:
    place, result = outcome
    _, reasons, word = BEHAVIOURS[name]
    state = result.by_name[name]
    failure = state.failures[place]
    assert failure.reason in reasons, failure
    assert word in failure.text
    assert len(failure.text) < 400
    assert "\n" not in failure.text
    if place != "healthz":  # the parts before the bad one are kept
        assert state.health is not None
        assert state.responded
    if place in ("digest", "stacks"):
        assert not state.threads


def test_good_workers_are_not_touched(outcome: tuple[str, Outcome]) -> None:
    _, result = outcome
    for rank, state in zip(GOOD, result.good, strict=True):
        assert (state.rank, state.kind, state.responded) == (rank, "workerserver", True)
        assert state.failures == {}
        assert state.health is not None
        assert [thread.frames[0].function for thread in state.threads] == ["train"]
        assert state.flight_summary is not None


def test_nothing_large_is_read(outcome: tuple[str, Outcome]) -> None:
    _, result = outcome
    endless = [result.by_name[name] for name in BEHAVIOURS if "endless" in name or "GB" in name]
    assert max(state.bytes_received for state in endless) < 64 << 20


# --- valid JSON that makes no sense ---------------------------------------------------------------

STRANGE = {
    "rank abc": b'{"status":"ok","rank":"abc"}',
    "rank -1": b'{"status":"ok","rank":-1}',
    "rank 1.0": b'{"status":"ok","rank":1.0}',
    "rank true": b'{"status":"ok","rank":true}',
    "rank too high": b'{"status":"ok","rank":999999999999}',
    "rank of 4,000 digits": b'{"status":"ok","rank":' + b"9" * 4000 + b"}",
    "step 1e400": b'{"status":"ok","rank":1,"step":1e400}',
    "step a list": b'{"status":"ok","rank":1,"step":[]}',
    "step of 65 bits": b'{"status":"ok","rank":1,"step":18446744073709551616}',
    "age 1e400": b'{"status":"ok","rank":1,"step_age_s":1e400}',
    "age below 0": b'{"status":"ok","rank":1,"step_age_s":-1}',
    "age NaN": b'{"status":"ok","rank":1,"step_age_s":NaN}',
    "pid a text": b'{"status":"ok","rank":1,"pid":"1"}',
    "status unknown": b'{"status":"fine","rank":1}',
    "status missing": b'{"rank":1}',
    "status a list": b'{"status":[],"rank":1}',
}


def one(answers: dict[str, Answer], worker_rank: int | None = None) -> RankState:
    server = Canned(answers)
    try:
        workers = [server.worker(worker_rank)]
        (result,) = run(lambda client: collect(workers, client=client), deadline=10)
        return result.states[0]
    finally:
        server.close()


@pytest.mark.parametrize("name", STRANGE)
def test_strange_health(name: str) -> None:
    state = one({**good(1), HEALTH: http(STRANGE[name])})
    assert state.failures["healthz"].reason == "malformed"
    assert state.health is None
    assert state.responded


@pytest.mark.parametrize(
    "value",
    [
        {"digest": 7, "main": None},
        {"digest": "../../etc/passwd", "main": None},
        {"digest": "aa", "main": 1},
        {"digest": "AA", "main": None},
        {"digest": "a" * 65, "main": None},
        {"main": "aa"},
    ],
)
def test_strange_digest(value: object) -> None:
    state = one({**good(1), DIGEST: http(value)})
    assert state.failures["digest"].reason == "malformed"
    assert state.flight_summary is not None


@pytest.mark.parametrize(
    "value",
    [
        {"groups": 7},
        {"groups": [None, 1, "x", []]},
        {"groups": [{"name": [], "ranks": "all", "last_issued": 3}]},
        {"groups": [{"ranks": ["a", {}], "first_pending": {"seq": {}, "op": []}}]},
        {},
    ],
)
def test_a_strange_summary_is_passed_on(value: object) -> None:
    state = one({**good(1), SUMMARY: http(value)})
    assert state.failures == {}
    assert state.flight_summary == value


def test_a_mode_that_there_is_not_is_none() -> None:
    assert one({**good(1), DIGEST: digest_answer(mode="\x1b[2J")}).mode is None


# --- who is who ----------------------------------------------------------------------------------


def test_another_ranks_name() -> None:
    state = one(good(7), worker_rank=3)
    assert state.failures == {"healthz": Failure("lied", "found as rank 3, says that it is rank 7")}
    assert (state.rank, state.responded, state.digest) == (3, True, None)


def ask_each(servers: list[Canned], *ranks: int | None, assumed: bool = False) -> Round:
    workers = [
        server.worker(rank, assumed=assumed) for server, rank in zip(servers, ranks, strict=True)
    ]
    (result,) = run(lambda client: collect(workers, client=client), deadline=10)
    return result


def test_two_workers_of_one_rank() -> None:
    with contextlib.ExitStack() as stack:
        servers = [Canned(good(4)), Canned(good(4))]
        for server in servers:
            stack.callback(server.close)
        for _ in range(3):
            result = ask_each(servers, None, None)
            for state, other in zip(result.states, reversed(servers), strict=True):
                text = f"says that it is rank 4, and so does {other.address}"
                text += ": workers of two jobs? Name one job"
                assert state.failures == {"healthz": Failure("lied", text)}
                assert state.rank == 4
                assert state.threads


def test_a_counted_rank_gives_way() -> None:
    with contextlib.ExitStack() as stack:
        servers = [Canned(good(1)), Canned(good(0))]
        for server in servers:
            stack.callback(server.close)
        result = ask_each(servers, 0, 1, assumed=True)
        assert [state.rank for state in result.states] == [1, 0]
        assert not any(state.failures for state in result.states)


# --- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_backlog_that_is_full(kind: str, short_path: Path) -> None:
    """Nothing accepts: on TCP connect() hangs, on a Unix socket each connect() fails at once."""
    address: str | tuple[str, int] = str(short_path / "full.s") if kind == "unix" else ("", 0)
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind(address if kind == "unix" else ("127.0.0.1", 0))
        listener.listen(0)
        bound = listener.getsockname()
        for _ in range(8):
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(bound)
        name = bound if kind == "unix" else f"127.0.0.1:{bound[1]}"
        friend = Canned(good(0))
        stack.callback(friend.close)
        workers = [Worker(name, kind == "unix", 1), friend.worker(0)]
        (result,) = run(lambda client: collect(workers, client=client), deadline=DEADLINE)
    assert result.states[0].failures == {"healthz": Failure("timeout", "no connection in 3 s")}
    assert not result.states[0].responded
    assert result.states[1].failures == {}


def test_nobody_there(short_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        stale = short_path / "stale.s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(stale))
        workers = [
            Worker(f"127.0.0.1:{port}", unix=False),
            Worker(str(stale), unix=True),
            Worker(str(short_path / "gone.s"), unix=True),
            Worker(str(short_path / ("x" * 120)), unix=True),
            Worker("no-such-host.invalid:80", unix=False),
            Worker("\x1b[2J no address", unix=False, rank=5, source="store"),
            Worker("", unix=False, rank=6, source="store"),
            Worker("/proc/self/mem", unix=True),
        ]
        (result,) = run(lambda client: collect(workers, client=client), deadline=DEADLINE)
    reasons = [state.failures["healthz"].reason for state in result.states]
    assert reasons[:4] == ["unreachable"] * 4
    assert reasons[4] in ("unreachable", "timeout")
    assert reasons[5:] == ["unreachable"] * 3
    assert result.states[6].failures["healthz"].text == "not registered"
    assert not any(state.responded for state in result.states)


def test_a_flood_of_different_stacks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crowd and the odd ones out are fetched, the rest is said to be missing. A crowd of three
    is so small that each of its ranks is asked for its own stacks."""
    monkeypatch.setattr("workerserver.cluster.ask.fetch_full.MAX_STACKS", 4)
    words = ["aa"] * 3 + [f"{number:04x}" for number in range(9)]
    with contextlib.ExitStack() as stack:
        servers = [Canned(good(rank, word)) for rank, word in enumerate(words)]
        for server in servers:
            stack.callback(server.close)
        workers = [server.worker(rank) for rank, server in enumerate(servers)]
        (result,) = run(lambda client: collect(workers, client=client), deadline=10)
    assert result.stacks_fetched == 4 + 2
    assert all(state.threads for state in result.states[:3])
    without = [state for state in result.states if not state.threads]
    assert len(without) == 6
    assert all(state.failures["stacks"].reason == "too large" for state in without)


def test_a_worker_that_speaks_out_of_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes after an answer are not taken for the next answer, if the questions are put one by one.
    Of questions in one go, each next answer is the worker's own word."""
    monkeypatch.setattr(at_once, "_ask", None)
    forged = health(1) + http({"digest": "ff", "main": None})
    state = one({**good(1, "0a"), HEALTH: forged})
    assert state.failures.get("digest") is None
    assert state.digest == "0a"


def test_a_trace_that_is_broken(short_path: Path) -> None:
    """If summaries differ, full traces are fetched. A worker without a trace keeps its summary."""
    with contextlib.ExitStack() as stack:
        servers = [
            Canned({**good(0), SUMMARY: summary_answer(5), TRACE: http(b"{")}),
            Canned({**good(1), SUMMARY: summary_answer(6), TRACE: http({"entries": []})}),
        ]
        for server in servers:
            stack.callback(server.close)
        result = ask_each(servers, 0, 1)
    assert result.states[0].failures["flight"].reason == "malformed"
    assert result.states[0].flight_summary is not None
    assert result.states[1].flight == {"entries": []}
    assert json.dumps(result.states[1].flight) == '{"entries": []}'


# --- the token and other users' sockets ----------------------------------------------------------

NOBODY = 65534
COMMANDS = (
    "diagnose --rounds 1 --deadline 3 TARGET", "stacks --deadline 3 TARGET",
    "ping --deadline 3 TARGET", "fr --deadline 3 TARGET", "top --count 1 TARGET",
    "profile --deadline 3 -o FOLDER/profile TARGET",
    "record --deadline 3 --duration 0.1 -o FOLDER/job.html TARGET",
    "watch --count 1 --deadline 3 --folder FOLDER TARGET",
    "ls TARGET", "call ping TARGET", "bench TARGET --requests 1",
)  # fmt: skip


@contextlib.contextmanager
def another_users_worker(folder: Path, owner: int, mode: int) -> Iterator[Canned]:
    """A worker of user nobody whose socket is in *folder*, of *owner*."""
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    folder.parent.chmod(0o711)
    os.seteuid(NOBODY)  # the kernel notes the user that calls listen()
    try:
        worker = Canned(good(0), folder / "rank0.sock")
    finally:
        os.seteuid(0)
    try:
        yield worker
    finally:
        worker.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make another user's socket")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text.split()[0])
@pytest.mark.parametrize("target", ["rank0.sock", "*.sock", "rank{rank}.sock"])
def test_roots_token_stays_out_of_a_shared_folder(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, target: str
) -> None:
    """In a folder like /tmp any user can make a socket, so root can't know whose worker it is."""
    monkeypatch.setenv("WORKERSERVER_TOKEN", "the-secret")
    with another_users_worker(short_path / "shared", 0, 0o1777) as worker:
        command = command.replace("TARGET", str(short_path / "shared" / target))
        with contextlib.suppress(SystemExit):
            main(command.replace("FOLDER", str(short_path)).split())
        assert becomes(lambda: worker.accepted), "the command did not even try"
        assert not any(b"the-secret" in head for head in worker.heads)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make another user's socket")
@pytest.mark.parametrize(
    ("owner", "mode", "goes"),
    [
        (NOBODY, 0o700, True),  # a job's own folder
        (0, 0o755, True),  # root has put the socket there
        (NOBODY, 0o770, False),
        (1, 0o755, False),  # the folder of a third user
    ],
)
def test_roots_token_goes_where_only_one_user_writes(
    short_path: Path, owner: int, mode: int, goes: bool
) -> None:
    folder = short_path / "job"
    if owner == NOBODY:
        prepared = another_users_worker(folder, owner, mode)
    else:  # nobody could make a socket there
        prepared = another_users_worker(folder, 0, 0o1777)
    with prepared as worker:
        os.chown(folder, owner, owner)
        folder.chmod(mode)
        (result,) = run(
            lambda client: collect([worker.worker(0)], client=client),
            deadline=DEADLINE,
            token="the-secret",
        )
        sent = any(b"the-secret" in head for head in worker.heads)
    assert sent == goes
    failure = result.states[0].failures.get("healthz")
    assert goes or (failure is not None and "token" in failure.text)
