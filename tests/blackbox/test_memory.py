"""The kernel kills a rank for want of memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.boxes.left import await_box, await_no_keeper
from support.commands import answer
from support.lifecycle import talking
from support.waiting import wait_until

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

from workerserver.blackbox.keeper import DYING_SECONDS, Rank
from workerserver.blackbox.read import read_box

LIMITS = Path("/sys/fs/cgroup/memory")  # of cgroup v1
if not LIMITS.exists():
    LIMITS = Path("/sys/fs/cgroup")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    folder = LIMITS / f"workerserver-test-memory-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error.strerror}")
    if not (folder / "memory.max").exists() and not (folder / "memory.limit_in_bytes").exists():
        folder.rmdir()
        pytest.skip("this cgroup counts no memory")
    yield folder
    folder.rmdir()


@pytest.mark.timeout(300)
def test_out_of_memory_is_told(cgroup: Path, tmp_path: Path) -> None:
    with talking("blackbox/greedy_rank.py", str(tmp_path), str(cgroup)) as rank:
        assert rank.hear() == "begins"
        pid = rank.process.pid
        # The keeper has counted, and the step is in the box.
        wait_until(lambda: await_box(tmp_path, pid, ended=False).health.get("step") == 7, 100)
        rank.say("begin")
        assert rank.process.wait(100) == -signal.SIGKILL
    box = await_box(tmp_path, pid)
    await_no_keeper(tmp_path)
    assert box.keeper is not None
    if box.keeper.value["wait_status"] is None:
        pytest.skip("this kernel does not tell how a process ended")
    assert box.keeper.value["oom_kills"] == 1
    assert read_box(box.path).ends == ()
    status, told = answer("diagnose", str(tmp_path))
    assert status == 1
    assert "was killed (out of memory), with " in told["verdict"]


def test_who_takes_long_to_die_is_counted(tmp_path: Path) -> None:
    """The kernel counts at once; gigabytes are given back before the process has ended."""
    rank = Rank(str(tmp_path), 1, 1, -1)
    rank.look(None, 0.0)
    assert rank.seen is None
    for now in range(5):
        rank.look(2, float(now))
    for now in range(5, 5 + int(DYING_SECONDS)):
        rank.look(3, float(now))
    assert rank.seen == 2
    for now in range(20, 20 + int(DYING_SECONDS)):
        rank.look(3, float(now))
    assert rank.seen == 3
    assert len(rank.looks) < 2 * DYING_SECONDS
    soon = Rank(str(tmp_path), 1, 1, -1, seen=4)  # as of the first copy
    soon.look(5, 0.0)
    assert soon.seen == 4
