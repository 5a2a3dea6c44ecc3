"""os.closerange() under a running server: no descriptor of anybody else's is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.lifecycle import PROGRAMS, environment

from workerserver.process.canary import Canary

SCENE = PROGRAMS / "process" / "closerange_scene.py"


@pytest.mark.parametrize(
    ("transport", "busy"),
    [("native", "asleep"), ("native", "awake"), ("native", "timer"), ("uvloop", "asleep")],
)
def test_numbers_that_training_has_now_are_left_alone(transport: str, busy: str) -> None:
    """Daemonisers close everything. The numbers of the server's sockets, of its epoll instance and
    of what wakes its threads then belong to files of training's."""
    result = subprocess.run(
        [sys.executable, str(SCENE), transport, busy],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["numbers"], "the files did not get the numbers"
    assert found["whole"] == 200, "something was written to training's files"
    assert found["same"] == 200, "a file of training's was closed"
    assert found["quiet"], "a thread of the server's goes on without its descriptors"
    assert found["again"] == "HTTP/1.1 200 OK", "no new server could be started"
    assert result.stderr.count("closed all descriptors") == 1, result.stderr


def test_a_canary_knows_its_number() -> None:
    canary = Canary()
    assert canary.alive
    with open(os.devnull) as other:
        os.dup2(other.fileno(), canary.fd)
    assert not canary.alive
    canary.close()  # not ours
    os.close(canary.fd)


def test_a_canary_that_is_gone_stays_gone() -> None:
    canary = Canary()
    kept = os.dup(canary.fd)
    os.close(canary.fd)
    assert not canary.alive
    os.dup2(kept, canary.fd)
    assert not canary.alive
    os.close(kept)
    os.close(canary.fd)
