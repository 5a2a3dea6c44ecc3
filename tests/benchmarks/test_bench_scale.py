"""A job of simulated workers, as the command line and the benchmark of its size see it."""

from __future__ import annotations

import io
import json
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.commands import answer
from support.lifecycle import ask

from benchmarks.__main__ import check
from benchmarks.context import Context
from benchmarks.simulated.workers import ANYTHING, Job, Recording, Table, listening, record
from benchmarks.subjects.servers import Missing, available
from benchmarks.suites import scale

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are Linux's"),
]

JOB = Job(16, 3)
PLACES = 4


def compilers() -> None:
    """Skip where there is none."""
    try:
        available("epoll")
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def recording() -> Recording:
    pytest.importorskip("torch")
    compilers()
    with tempfile.TemporaryDirectory(prefix="ws-") as folder:
        return record(Path(folder), PLACES)


@pytest.fixture
def sockets(recording: Recording, short_path: Path) -> Iterator[str]:
    folder = short_path / "job"
    with listening(JOB.table(recording), folder, tcp=False) as (workers, _), workers.awake():
        yield f"{folder}/rank{{rank}}.sock"


def test_the_command_line_sees_a_job_that_hangs(sockets: str) -> None:
    status, verdict = answer("diagnose", "--interval", "0.01", sockets)
    assert status == 1
    assert (verdict["ranks"], verdict["responded"], verdict["problems"]) == (16, 16, [])
    (suspect,) = verdict["suspects"]
    assert (suspect["rank"], suspect["reason"]) == (5, "behind")
    assert suspect["location"].endswith(" compute")
    (group,) = verdict["process_groups"]
    assert (group["desc"], group["ranks"], group["complete"]) == ("default_pg", "0-15", True)
    status, stacks = answer("stacks", sockets)
    assert status == 0
    # Three stages of a pipeline, one of them without rank 5.
    assert [each["ranks"] for each in stacks["groups"]] == ["5", "0-4", "6-10", "11-15"]
    # Each worker is asked for its health and its digest. One worker of each group gives the
    # full answer. If that answer stands for other workers too, the worker is asked for its
    # digest once more.
    assert stacks["cost"]["questions"] == 2 * 16 + 4 + 3


def test_a_wrong_answer_is_no_figure(sockets: str) -> None:
    status, stacks = answer("stacks", sockets)
    scale.check("stacks", JOB, status, stacks)
    for wrong in (Job(16, 2), Job(17, 3)):
        with pytest.raises(RuntimeError, match="stacks, Job"):
            scale.check("stacks", wrong, status, stacks)
    stacks["groups"][0]["ranks"] = "4"
    with pytest.raises(RuntimeError, match="stacks, Job"):
        scale.check("stacks", JOB, status, stacks)


def test_simulated_workers_differ_as_real_ones_do(recording: Recording, short_path: Path) -> None:
    times = set()
    table = JOB.table(recording)
    with listening(table, short_path / "job", tcp=True) as (workers, ports), workers.awake():
        for rank, port in enumerate(ports):
            status, text = ask(("127.0.0.1", port), "/healthz", "GET")
            assert (status, json.loads(text)["rank"]) == (200, rank)
            status, text = ask(("127.0.0.1", port), "/handler/fr_summary")
            summary = json.loads(text)
            (group,) = summary["groups"]
            assert (summary["rank"], group["ranks"]) == (rank, "0-15")
            assert group["pending"] == (rank != JOB.behind)
            times.add(group["last_issued"]["created_ns"])
        assert ask(("127.0.0.1", ports[0]), "/handler/nothing")[0] == 404
    assert len(times) == JOB.ranks


def test_a_table_of_anything(short_path: Path) -> None:
    """Pipelined requests with bodies, from a client that reads slowly."""
    compilers()
    large = b"x" * (3 << 20)
    node = "POST /node?deadline=*"
    table = Table(("POST /node", node, ANYTHING))
    table.add({"POST /node": b"", node: large, ANYTHING: b"?"})
    table.add({"POST /node": b"", node: b"other", ANYTHING: b"!"})
    request = (
        b"POST /node?deadline=7.9 HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + b"b" * 5000
    )
    with (
        listening(table, short_path / "w", tcp=False) as (workers, ports),
        workers.awake(),
        closing(socket.socket(socket.AF_UNIX)) as first,
        closing(socket.socket(socket.AF_UNIX)) as second,
    ):
        assert ports == []
        first.connect(f"{short_path}/w/rank0.sock")
        second.connect(f"{short_path}/w/rank1.sock")
        first.sendall(request + request + b"GET /node HTTP/1.1\r\n\r\n")
        second.sendall(request)
        assert second.recv(100) == b"other"
        wanted = large + large + b"?"
        answer = b""
        while len(answer) < len(wanted):
            answer += first.recv(1 << 20)
        assert answer == wanted


@pytest.mark.slow
def test_the_suite(short_path: Path) -> None:
    context = Context(1, True, short_path, log=io.StringIO())
    report = scale.run(context, (8, 16), (1, 2), compared=Job(16, 2), hosted=[Job(16, 2)])
    check(report)
    assert report.missing == {}
    stacks, diagnose, hosted_stacks, hosted_diagnose, compared = report.tables
    assert [row[:2] for row in stacks.rows] == [(8, 2), (8, 3), (16, 2), (16, 3)]
    assert [row[:2] for row in diagnose.rows] == [row[:2] for row in stacks.rows]
    for table in (hosted_stacks, hosted_diagnose):
        assert [row[:2] for row in table.rows] == [(16, 3)]
    assert len(compared.rows) == 3
    assert list(report.ratios) == [
        "stacks of all ranks tcp ours/torch",
        "stacks of all ranks tcp collectors/torch",
    ]
    assert all(target.figure is not None for target in report.targets)
