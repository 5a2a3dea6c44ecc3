"""``workerserver slow`` and ``diagnose`` on served jobs, and on a real one of four ranks."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import answer
from support.jobs.generated import Job, synchronous
from support.jobs.peers import make_socket
from support.lifecycle import PROGRAMS, environment
from support.torchrun import training
from support.waiting import wait_until

from workerserver.cli import main
from workerserver.collector.service import Collector
from workerserver.http.registry import Registry
from workerserver.server import WorkerServer
from workerserver.types import Response

Served = Callable[..., str]
Run = Callable[..., tuple[int, str]]


def served_by(registry: Registry, name: str, value: object) -> None:
    def answer(**ignored: str) -> Response:
        return Response(json.dumps(value).encode(), content_type="application/json")

    registry.register(name, answer)


@pytest.fixture
def serve_job(short_path: Path, no_leaks: None) -> Iterator[Served]:
    """``serve_job(job)``: a server for each rank, with what it would answer."""
    with contextlib.ExitStack() as stack:

        def start(job: Job, *, recorders: bool = True) -> str:
            for rank, flight in job.flights().items():
                registry = Registry()
                groups = [
                    {"recorder": "fr", "id": 0, "name": name, "desc": desc, "ranks": None}
                    for name, (desc, _) in job.groups.items()
                ]
                summary = {"rank": rank, "version": "2.10", "groups": groups if recorders else []}
                served_by(registry, "fr_summary", summary)
                served_by(registry, "fr_trace_json", flight if recorders else {"version": "2.10"})
                if job.beats[rank]:
                    served_by(registry, "steps", job.steps(rank))
                path = str(short_path / f"rank{rank}.sock")
                stack.callback(WorkerServer(path, -1, registry=registry).shutdown)
            return str(short_path / "rank{rank}.sock")

        yield start


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(words)
        return status, capsys.readouterr().out

    return call


def test_a_slow_rank(serve_job: Served, run: Run) -> None:
    target = serve_job(synchronous(1, 4, 60, slow={2: 1.5}, beats=True))
    status, out = run("slow", target)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith("rank 2 came last in ")
    assert " of the last 60 all_reduces, by " in lines[0]
    assert lines[1].startswith("4 of 4 ranks answered; ")
    assert lines[3].startswith("default_pg: ranks 0-3, 60 all_reduces, one every ")
    assert lines[4].split() == ["RANK", "CAME", "LAST", "BY", "(MEDIAN)", "USUALLY", "STEP"]
    assert lines[5].split()[0] == "2"
    assert len(lines) == 9
    assert "\x1b" not in out


def test_as_json(serve_job: Served, run: Run) -> None:
    target = serve_job(synchronous(1, 4, 60, slow={2: 1.5}, beats=True))
    status, out = run("slow", target, "--json", "--last", "40")
    fields = json.loads(out)
    assert list(fields) == [
        "schema_version", "verdict", "status", "ranks", "responded", "unreachable", "slow",
        "compared", "steps", "notes", "problems", "time", "cost",
    ]  # fmt: skip
    assert (status, fields["status"], fields["ranks"], fields["responded"]) == (1, 1, 4, 4)
    (slow,) = fields["slow"]
    assert (slow["rank"], slow["process_group"]) == (2, "default_pg")
    assert slow["text"] == fields["verdict"]
    low, high = slow["share_interval"]
    assert low <= slow["share"] <= high
    assert slow["late_interval_s"][0] <= slow["late_s"] <= slow["late_interval_s"][1]
    (compared,) = fields["compared"]
    assert (compared["ranks"], compared["basis"], compared["operations"]) == ("0-3", "clock", 40)
    assert [each["slow"] for each in compared["standings"]] == [False, False, True, False]
    assert [(each["rank"], each["steps"]) for each in fields["steps"]] == [
        (rank, 60) for rank in range(4)
    ]
    assert (fields["notes"], fields["problems"], fields["unreachable"]) == ([], [], [])
    assert fields["cost"].keys() == {"rounds", "seconds", "questions", "bytes_received"}


def test_through_a_collector(serve_job: Served, run: Run) -> None:
    target = serve_job(synchronous(1, 4, 60, slow={2: 1.5}, beats=True))
    collector = Collector([target])
    server = WorkerServer("127.0.0.1", 0, registry=collector.registry)
    try:
        status, out = run("slow", "--collectors", f"127.0.0.1:{server.port}", "--json")
    finally:
        server.shutdown()
    fields = json.loads(out)
    assert (status, fields["responded"], fields["problems"]) == (1, 4, [])
    assert [each["rank"] for each in fields["slow"]] == [2]
    assert [each["steps"] for each in fields["steps"]] == [60] * 4


def test_equal_ranks_are_healthy(serve_job: Served, run: Run) -> None:
    status, out = run("slow", serve_job(synchronous(2, 4, 60, beats=True)))
    assert (status, out.splitlines()[0]) == (
        0,
        "no rank is slow: in 60 operations none came last too often",
    )


def test_too_few_operations(serve_job: Served, run: Run) -> None:
    status, out = run("slow", serve_job(synchronous(2, 4, 6)))
    assert status == 2
    assert out.startswith("could not tell: of ranks 0-3 none stands out so far\n")
    assert "default_pg: 6 operations on 6 occasions are too few to tell" in out


def test_step_times_alone(serve_job: Served, run: Run) -> None:
    """Of a job that waits at each step they say nothing, and the command says so."""
    job = synchronous(1, 4, 60, slow={2: 1.5}, beats=True)
    status, out = run("slow", serve_job(job, recorders=False), "--json")
    fields = json.loads(out)
    assert (status, fields["slow"]) == (2, [])
    assert any("step times can't tell who is slow" in each for each in fields["notes"])
    assert any("set TORCH_FR_BUFFER_SIZE=2000" in each for each in fields["notes"])


def test_a_rank_that_does_not_answer(serve_job: Served, run: Run, short_path: Path) -> None:
    """The others are compared, but nobody is called healthy."""
    target = serve_job(synchronous(2, 4, 60))
    make_socket(short_path / "rank4.sock")
    status, out = run("slow", target, "--json")
    fields = json.loads(out)
    assert (status, fields["ranks"], fields["responded"]) == (2, 5, 4)
    assert [each["rank"] for each in fields["unreachable"]] == [4]


@pytest.mark.parametrize(
    "body",
    [
        {"beats": [[1, -1.0]]},
        {"beats": [["x", 1.0]]},
        {"beats": 5},
        {"beats": [[1, 1.0]] * 5000},
        {"time": -1},
        {"tick_s": "soon"},
    ],
)
def test_nonsense_is_a_problem_and_no_end(
    serve_job: Served, run: Run, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = synchronous(1, 4, 60, slow={2: 1.5}, beats=True)
    steps = job.steps
    monkeypatch.setattr(job, "steps", lambda rank: {**steps(rank), **(body if rank == 1 else {})})
    status, out = run("slow", serve_job(job), "--json")
    fields = json.loads(out)
    assert (status, fields["slow"][0]["rank"]) == (1, 2)
    (problem,) = fields["problems"]
    assert problem.startswith("rank 1: steps: malformed: ")


@pytest.mark.parametrize("last", ["0", "7", "1000000", "x"])
def test_last_has_bounds(run: Run, last: str, short_path: Path) -> None:
    make_socket(short_path / "rank0.sock")
    with contextlib.suppress(SystemExit):
        status, _ = run("slow", "--last", last, str(short_path / "rank0.sock"))
        assert status != 0


# --- a real job -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("kind", ["workerserver", "torch"])
@pytest.mark.parametrize("factor", [1.3, 1.0])
def test_a_real_job(kind: str, factor: float) -> None:
    """Four ranks of gloo; rank 2 works *factor* times as long as the others."""
    pytest.importorskip("torch")
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp", ignore_cleanup_errors=True) as name:
        settings = environment(
            TORCH_FR_BUFFER_SIZE="2000", OMP_NUM_THREADS="1", FOLDER=name, TMPDIR=name
        )
        script = str(PROGRAMS / "cluster/uneven_ranks.py")
        arguments = ["--standalone", script, kind, str(factor)]
        with training(arguments, settings, Path(name), 4):
            wait_until(lambda: (Path(name) / "enough").exists(), 100)
            status, fields = answer("slow", f"{name}/rank{{rank}}.sock", timeout=60)
            healthy, verdict = answer("diagnose", f"{name}/rank{{rank}}.sock", timeout=60)
    expected = [2] if factor > 1 else []
    print(fields["verdict"])
    assert (status, [each["rank"] for each in fields["slow"]]) == (len(expected), expected), fields
    told = [each["rank"] for each in verdict["stragglers"]]
    assert (healthy, told) == (0, expected), verdict["verdict"]
