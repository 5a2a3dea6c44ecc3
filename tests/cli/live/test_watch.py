"""``watch``: a line when the verdict changes, and the job found anew at each look."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from support.lifecycle import PROGRAMS, environment
from support.waiting import wait_until

from workerserver.cli.watch import essence
from workerserver.cluster.judge.verdict import Suspect, Verdict

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """``start()``: a job of one process at ``rank0.sock``, which stands still once ``stop`` is
    there."""
    with contextlib.ExitStack() as stack:

        def begin() -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(PROGRAMS / "job" / "stops.py"), "stop"],
                    env=environment(TORCH_WORKER_SERVER_SOCKET="./rank{rank}.sock", RANK="0"),
                )
            )
            stack.callback(process.kill)
            wait_until(lambda: is_listening("rank0.sock"))
            return process

        yield begin


def is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asked:
        return asked.connect_ex(path) == 0


@contextlib.contextmanager
def watching(*words: str) -> Iterator[IO[str]]:
    """``watch`` in a process of its own; its output."""
    command = [sys.executable, "-m", "workerserver", "watch", "./rank{rank}.sock", *words]
    with subprocess.Popen(
        [*command, "--every", "0.2"], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout
        finally:
            process.terminate()


def past(word: str, lines: IO[str]) -> str:
    """The next line with *word*. Before it the job may be unclear: one look seldom tells."""
    line = lines.readline()
    while word not in line:
        assert "  unclear  " in line or '"status": 2' in line
        line = lines.readline()
    return line


def test_a_line_when_the_verdict_changes(start: Start, folder: Path) -> None:
    start()
    with watching() as lines:
        assert "  no rank is stuck" in past("healthy", lines)
        (folder / "stop").touch()
        line = past("SUSPECT", lines)
    assert "  rank 0 has made no step for " in line
    assert line.endswith("it stands in load_shard(), stops.py:13\n")


def test_json_on_stdout(start: Start, folder: Path) -> None:
    start()
    with watching("--json") as lines:
        first = json.loads(past('"status": 0', lines))
        assert (first["ranks"], first["suspects"]) == (1, [])
        (folder / "stop").touch()
        value = json.loads(past('"status": 1', lines))
    assert [each["reason"] for each in value["suspects"]] == ["stalled"]
    assert value.keys() == first.keys()


def test_every_verdict(start: Start) -> None:
    start()
    with watching("-v") as lines:
        past("healthy", lines)
        assert {lines.readline().split()[2] for _ in range(4)} == {"healthy"}


def test_a_job_that_is_restarted(start: Start, folder: Path) -> None:
    job = start()
    with watching() as lines:
        past("healthy", lines)
        job.kill()
        job.wait()
        assert "  ended  the job has ended: nobody listens at ./rank0.sock" in lines.readline()
        (folder / "rank0.sock").unlink()
        assert "  ended  the job has ended: ./rank{rank}.sock: no socket" in lines.readline()
        start()
        past("healthy", lines)


def test_what_changes_a_verdict() -> None:
    def suspected(rank: int, seconds: int) -> Verdict:
        sentence = f"rank {rank} has made no step for {seconds} s"
        return Verdict(sentence, 1, 4, 4, suspects=(Suspect(rank, "stalled", "/r"),))

    assert essence(suspected(1, 10)) == essence(suspected(1, 70))
    assert essence(suspected(1, 10)) != essence(suspected(2, 10))
    going = [Verdict(f"no rank is stuck; at step {step}", 0, 4, 4) for step in (5, 9)]
    assert essence(going[0]) == essence(going[1])
    apart = Verdict("no rank is stuck; at steps 5 to 9", 0, 4, 4)
    assert essence(apart) == essence(Verdict("no rank is stuck; at steps 105 to 109", 0, 4, 4))
    unsure = [Verdict(f"could not tell: rank {rank} does not answer", 2, 4, 4) for rank in (1, 2)]
    assert essence(unsure[0]) != essence(unsure[1])
    assert essence(going[0]) != essence(unsure[0])
