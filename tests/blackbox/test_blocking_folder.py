"""The folder of the black boxes is on a file system that blocks: training knows nothing of that.

``pytest -s`` prints what pings, heartbeats and the exit take, with such a folder and without.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from support.boxes.blocking import blocking_folder, may_mount, waits_for_it
from support.boxes.left import await_no_keeper, keepers_of, left_on_tmpfs
from support.boxes.watched import SECONDS, watched
from support.lifecycle import Talker, alive, ask, talking
from support.waiting import wait_until

from workerserver.blackbox.read import Box, read_box

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not may_mount(), reason="needs root and FUSE"),
]

PINGS = int(os.environ.get("WORKERSERVER_BLACKBOX_PINGS", "100"))
TURNS = int(os.environ.get("WORKERSERVER_BLACKBOX_RUNS", "1"))


@contextlib.contextmanager
def rank(folder: Path) -> Iterator[tuple[Talker, int, str]]:
    """A worker, its pid and its socket."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as place:
        path = f"{place}/rank.sock"
        with talking(
            "blackbox/timed_rank.py", str(folder), TORCH_WORKER_SERVER_SOCKET=path
        ) as talker:
            pid = int(talker.hear())
            wait_until(lambda: alive(path))
            yield talker, pid, path


@pytest.mark.parametrize("way", ["return", "SIGTERM", "SIGKILL"])
def test_ping_heartbeat_and_exit_are_unharmed(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    with blocking_folder(tmp_path):
        with rank(folder) as (talker, pid, path):
            wait_until(lambda: any(map(waits_for_it, keepers_of(folder))), 60)
            (keeper,) = keepers_of(folder)
            assert not waits_for_it(pid)
            for _ in range(PINGS):
                assert ask(path)[-1] == "pong"
            step = json.loads(ask(path, "/healthz", "GET")[-1])["step"]
            talker.say("beat")
            talker.hear()
            assert json.loads(ask(path, "/healthz", "GET")[-1])["step"] > step
            (left,) = left_on_tmpfs(pid)
            wait_until(lambda: (read_box(left).health.get("step") or 0) > step, 60)
            if way == "return":
                code, errors = talker.end()
                assert "black box" not in errors
            else:
                os.kill(pid, signal.Signals[way])
                code = talker.process.wait(60)
            assert code == (0 if way == "return" else -signal.Signals[way])
        assert waits_for_it(keeper)  # only the keeper has waited
        try:
            check(way, read_box(left))
        finally:
            os.kill(keeper, signal.SIGKILL)
            os.unlink(left)
    await_no_keeper(folder)


def check(way: str, box: Box) -> None:
    """The box stays on the tmpfs, and tells the end."""
    assert box.torn == 0
    why = [end.value["why"] for end in box.ends]
    assert why == {"return": ["exit"], "SIGTERM": ["signal"], "SIGKILL": []}[way]
    assert box.health["step"] > 0
    assert box.keeper is None


def test_the_watchdog_tells(tmp_path: Path) -> None:
    """A stall, its end, and the end of a rank. Only the verdict's file is missing."""
    folder = tmp_path / "blocking"
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as place, blocking_folder(folder):
        with watched(
            tmp_path,
            2,
            WORKERSERVER_BLACKBOX=f"{folder}/boxes",
            TORCH_WORKER_SERVER_SOCKET=f"{place}/rank{{rank}}.sock",
        ) as job:
            wait_until(lambda: any(waits_for_it(pid) for pid, _ in job.keepers()), SECONDS)
            with job.hung(0, 1):
                (line,) = job.await_lines(1)
                assert "the file lock on" in line
                for _ in range(PINGS):
                    assert ask(f"{place}/rank0.sock")[-1] == "pong"
            assert job.await_lines(2)[1].startswith("the job goes on")
            assert job.end(1, "kill") == -signal.SIGKILL
            assert "rank 1" in job.await_lines(3)[2]
            assert ask(f"{place}/rank0.sock")[-1] == "pong"
            assert job.end(0) == 0
            # The job's output ends, though the keeper is still waiting.
            wait_until(lambda: not any(holds(pid, job.log) for pid, _ in job.keepers()), SECONDS)
            ((keeper, _),) = job.keepers()
            assert waits_for_it(keeper)
            os.kill(keeper, signal.SIGKILL)
        for process in job.ranks:
            for left in left_on_tmpfs(process.pid):
                os.unlink(left)


def holds(pid: int, log: Path) -> bool:
    """Whether process *pid* has the file *log* open."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.readlink() == log for path in Path(f"/proc/{pid}/fd").iterdir())
    return False


def test_figures(tmp_path: Path) -> None:
    """In turns: a folder that blocks, and one that does not."""
    found: dict[str, list[tuple[float, float, float]]] = {"blocks": [], "does not": []}
    for number in range(TURNS):
        place = tmp_path / f"blocking{number}"
        place.mkdir()
        with blocking_folder(place):
            found["blocks"].append(timed(place / "boxes"))
            for keeper in keepers_of(place / "boxes"):
                os.kill(keeper, signal.SIGKILL)
        await_no_keeper(place / "boxes")
        found["does not"].append(timed(tmp_path / f"plain{number}"))
        await_no_keeper(tmp_path / f"plain{number}")
    for name, figures in found.items():
        ping, beat, end = (median(column) for column in zip(*figures, strict=True))
        print(
            f"\nthe folder {name}: ping p50 {ping * 1e6:.0f} us, heartbeat {beat:.0f} ns, "
            f"exit {end * 1e3:.0f} ms"
        )
    assert all(len(figures) == TURNS for figures in found.values())


def timed(folder: Path) -> tuple[float, float, float]:
    """Seconds of a ping, nanoseconds of a heartbeat, seconds of the exit."""
    with rank(folder) as (talker, pid, path):
        pings = []
        for _ in range(PINGS):
            began = time.perf_counter()
            assert ask(path)[-1] == "pong"
            pings.append(time.perf_counter() - began)
        talker.say("beat")
        beat = float(talker.hear())
        began = time.perf_counter()
        code, _ = talker.end()
        ended = time.perf_counter() - began
        assert code == 0
    for left in left_on_tmpfs(pid) if "blocking" in folder.parent.name else []:
        os.unlink(left)
    return median(pings), beat, ended
