"""Fork, SIGKILL, restart, over and over, while a client knocks.

``make long`` does it a thousand times.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest
from support.lifecycle import run_isolated
from support.wire import post

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CYCLES = int(os.environ.get("WORKERSERVER_SOAK_RESTARTS", "8"))


def knock(path: str, over: threading.Event, answers: list[bytes]) -> None:
    """Connect and ask, again and again: forks come in the middle of accepts and answers."""
    while not over.is_set():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            try:
                sock.connect(path)
                sock.sendall(post("ping"))
                answers.append(sock.recv(4096)[-4:])
            except (FileNotFoundError, ConnectionError):
                over.wait(0.001)


@pytest.mark.slow
def test_fork_kill_restart(short_path: Path) -> None:
    over = threading.Event()
    answers: list[bytes] = []
    client = threading.Thread(target=knock, args=(str(short_path / "s"), over, answers))
    client.start()
    try:
        done = run_isolated(
            "server/restart_scene.py",
            str(short_path),
            str(CYCLES),
            seconds=60 + 2 * CYCLES,
            PYTHONWARNINGS="ignore::DeprecationWarning",  # of forks beside threads, from 3.12 on
        )
    finally:
        over.set()
        client.join()
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["problems"] == []
    assert facts["cycles"] == CYCLES
    assert len(facts["own descriptors"]) == 1
    assert set(answers) <= {b"pong", b""}
    assert answers.count(b"pong") > CYCLES
    if CYCLES > 100:
        print(json.dumps({**facts, "pings beside": len(answers)}))
