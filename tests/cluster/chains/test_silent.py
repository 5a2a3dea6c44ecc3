"""A worker that takes a connection and never answers: what the kernel says of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cluster_waits import looks, main, state

from workerserver.cluster.ask.client import run
from workerserver.cluster.ask.rounds import collect
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Failure, RankState, Worker

#: It listens, and says so; then it stops itself.
STOPS = """
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_that_was_stopped(short_path: Path) -> None:
    path = str(short_path / "w.sock")
    command = [sys.executable, "-S", "-c", STOPS, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            rounds = run(
                lambda client: collect([Worker(path, True, 1)], client=client), deadline=0.5
            )
        finally:
            process.send_signal(signal.SIGKILL)
    (state,) = rounds[-1].states
    assert (state.responded, state.peer_pid, state.peer_state) == (False, process.pid, "T")
    verdict = diagnose(rounds)
    assert verdict.sentence == "rank 1 does not answer: its process is stopped by a signal"
    line = f"process {process.pid} is stopped by a signal; kill -CONT {process.pid} lets it go on"
    assert line in verdict.suspects[0].evidence


@pytest.mark.parametrize(
    ("letter", "text", "line"),
    [
        ("t", ": its process is stopped by a debugger", "process 7 is stopped by a debugger"),
        (
            "D",
            " (timeout)",
            "process 7 is in the kernel, where no signal reaches it: a disk, perhaps",
        ),
        ("S", " (timeout)", "process 7 exists; the kernel has it in state S"),
    ],
)
def test_in_words(letter: str, text: str, line: str) -> None:
    silent = RankState(Worker("/run/w1.sock", True, 1), 1, peer_pid=7, peer_state=letter)
    silent.failures["healthz"] = Failure("timeout", "no answer in 10 s")
    verdict = diagnose(looks(state(0, [main(".all_reduce", "step")]), silent))
    assert verdict.sentence == f"rank 1 does not answer{text}"
    assert line in verdict.suspects[0].evidence
    alone = diagnose(looks(silent))
    assert (alone.status, alone.suspects != ()) == ((1, True) if letter == "t" else (2, False))
