"""What a box tells of each way to end, and that the process ends as it would without one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.boxes.left import await_box, await_no_keeper, keepers_of, left_on_tmpfs
from support.lifecycle import PROGRAMS, Talker, environment, run_isolated, talking
from support.waiting import wait_until

from workerserver.blackbox.read import Box, read_box

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

pytestmark = pytest.mark.timeout(400)

#: Ways that need nobody else, and what the box says.
BY_ITSELF: dict[str, dict[str, Any]] = {
    "return": {"why": "exit"},
    "exception": {"why": "exception", "type": "ValueError", "text": "a batch of nothing"},
    "segv": {"why": "signal", "signal": signal.SIGSEGV},
    "overflow": {"why": "signal", "signal": signal.SIGSEGV},
    "faulthandler": {"why": "signal", "signal": signal.SIGSEGV},
    "abort": {"why": "signal", "signal": signal.SIGABRT},
    "exit": {"why": "exit"},
}


def outcome(way: str, *arguments: str, **more: str) -> tuple[int, int, str]:
    """The pid, the exit status and stderr of a rank that ends in that *way*. Without a watchdog,
    whose line stands in stderr too."""
    more = {"WORKERSERVER_WATCHDOG": "0", **more}
    with talking("blackbox/ending_rank.py", way, *arguments, **more) as rank:
        pid = int(rank.hear())
        rank.say("end")
        rank.hear()
        code, errors = rank.end()
    return pid, code, errors


def frames_of(box: Box, thread: int | None = None) -> list[str]:
    """The functions on the stack of *thread* (the main thread) at the end, the newest first."""
    assert box.last is not None
    threads = box.last.value["stacks"]["threads"]
    native = box.pid if thread is None else thread
    found = [each for each in threads if each["native_id"] == native]
    assert len(found) == 1, threads
    return [frame["function"] for frame in found[0]["frames"]]


@pytest.mark.parametrize("way", BY_ITSELF)
def test_why(way: str, tmp_path: Path) -> None:
    if way == "overflow" and sys.version_info >= (3, 12):
        pytest.skip("this CPython raises RecursionError before the stack ends")
    pid, code, errors = outcome(way, str(tmp_path))
    _, same_code, same_errors = outcome(way)
    assert (code, without_addresses(errors)) == (same_code, without_addresses(same_errors))
    box = await_box(tmp_path, pid)
    assert box.torn == 0
    told = box.ends[0].value
    assert {name: told[name] for name in BY_ITSELF[way]} == BY_ITSELF[way]
    assert told["thread"] == pid
    assert box.health["step"] == 2
    if told["why"] == "signal":
        assert way == "overflow" or "load_batch" in frames_of(box)
        assert len(box.ends) == 1
    else:
        assert box.ends[-1].value["why"] == "exit"
    if way == "exception":
        assert told["frames"][-1][2] == "load_batch"
        assert "load_batch(way)" in told["traceback"]
    wait_until(lambda: not left_on_tmpfs(pid))  # the keeper copies first, and removes then


def without_addresses(text: str) -> str:
    """faulthandler prints the ids of threads, all threads, and all extension modules; from CPython
    3.14 on the frames of C, too, where our handler called its own."""
    blocks = re.sub(r"Current thread 0x[0-9a-f]+", "Current thread", text).split("\n\n")
    ours = ("Thread 0x", "Extension modules:", "Current thread's C stack trace")
    return "\n\n".join(block.strip() for block in blocks if not block.strip().startswith(ours))


def test_an_exception_in_a_thread_is_told_and_ends_nothing(tmp_path: Path) -> None:
    pid, code, errors = outcome("thread", str(tmp_path))
    assert code == 0
    assert "RuntimeError: no prefetch" in errors
    box = await_box(tmp_path, pid)
    thread, end = (each.value for each in box.ends)
    assert (thread["why"], thread["name"], thread["text"]) == ("thread", "prefetch", "no prefetch")
    assert thread["frames"][-1][2] == "fail"
    assert end["why"] == "exit"


def test_what_leaves_no_trace(tmp_path: Path) -> None:
    """os._exit: only the keeper knows."""
    with talking("blackbox/ending_rank.py", "os_exit", str(tmp_path)) as rank:
        pid = int(rank.hear())
        wait_until(lambda: read_box(left_on_tmpfs(pid)[0]).stacks)
        rank.say("end")
        rank.hear()
        assert rank.end()[0] == 7
    box = await_box(tmp_path, pid)
    assert box.ends == ()
    assert box.last is None
    assert box.stacks  # but what it did is there
    assert box.keeper is not None
    assert box.keeper.value["wait_status"] in (7 << 8, None)


@pytest.mark.parametrize("way", ["wait", "gil"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed(way: str, number: signal.Signals, tmp_path: Path) -> None:
    """Also with the GIL held by C code, when no Python handler could run."""
    with talking(
        "blackbox/ending_rank.py", way, str(tmp_path), WORKERSERVER_BLACKBOX_INTERVAL="0.1"
    ) as rank:
        pid = int(rank.hear())
        rank.say("end")
        rank.hear()
        wait_until(lambda: stands_in(tmp_path, pid, way))
        os.kill(pid, number)
        assert rank.process.wait(60) == -number
    box = await_box(tmp_path, pid)
    assert box.torn <= (number == signal.SIGKILL)
    assert box.keeper is not None
    assert box.keeper.value["wait_status"] in (number, None)
    if number == signal.SIGTERM:
        told = box.ends[0].value
        assert told["signal"] == number
        assert told["pid"] == os.getpid()
        assert frames_of(box)[0] == "load_batch"
    else:
        assert box.ends == ()
        assert "load_batch" in str(box.stacks[-1].value)


def stands_in(folder: Path, pid: int, way: str) -> bool:
    """Whether a sample of the box on the tmpfs shows the rank at its end."""
    box = read_box(left_on_tmpfs(pid)[0])
    return bool(box.stacks) and "load_batch" in str(box.stacks[-1].value)


def test_a_handler_of_the_program_runs_as_before(tmp_path: Path) -> None:
    with talking("blackbox/ending_rank.py", "handler", str(tmp_path)) as rank:
        pid = int(rank.hear())
        rank.say("end")
        rank.hear()
        os.kill(pid, signal.SIGTERM)
        assert rank.end() == (0, "")
    box = await_box(tmp_path, pid)
    assert [end.value["why"] for end in box.ends] == ["signal", "exit"]


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with talking("blackbox/ending_rank.py", "ignored", str(tmp_path)) as rank:
        pid = int(rank.hear())
        rank.say("end")
        rank.hear()
        os.kill(pid, signal.SIGTERM)
        rank.say("end")
        assert rank.end() == (0, "")
    assert [end.value["why"] for end in await_box(tmp_path, pid).ends] == ["exit"]


def test_nothing_changes_unless_it_is_asked_for(tmp_path: Path) -> None:
    """No handler, no hook, no mapping, no module."""
    for arguments in ((), (str(tmp_path / "s.sock"),)):
        done = run_isolated("blackbox/nothing_asked.py", *arguments)
        assert done.returncode == 0, done.stderr


def test_a_forked_child_has_neither_handlers_nor_the_mapping(tmp_path: Path) -> None:
    with talking("blackbox/forking_rank.py", str(tmp_path)) as rank:
        pid, child = map(int, rank.hear().split())
        assert rank.hear() == "child: no handler, no mapping, no hook told"
        os.kill(child, signal.SIGTERM)
        assert rank.hear() == f"child ended: {signal.SIGTERM}"
        rank.say("end")
        assert rank.end()[0] == 0
    box = await_box(tmp_path, pid)
    assert [end.value["why"] for end in box.ends] == ["exit"]
    assert box.pid == pid


def test_a_handler_that_comes_later_stands_and_is_told(tmp_path: Path) -> None:
    with talking("blackbox/late_handler.py", str(tmp_path)) as rank:
        pid = int(rank.hear())
        wait_until(lambda: replaced(pid) == ["SIGTERM"])
        os.kill(pid, signal.SIGTERM)
        assert rank.hear() == "late handler"
        assert rank.end()[0] == 0
    assert [end.value["why"] for end in await_box(tmp_path, pid).ends] == ["exit"]


def replaced(pid: int) -> list[str]:
    states = read_box(left_on_tmpfs(pid)[0]).states
    return list(states[-1].value["replaced"]) if states else []


def talker_ends(rank: Talker) -> None:
    rank.say("end")
    rank.end()


def test_a_keeper_of_its_own_ends_with_the_last_rank(tmp_path: Path) -> None:
    """It holds nothing of training's, and no stream that a pipe waits for."""
    alone = {"WORKERSERVER_WATCHDOG": "0"}
    with talking("blackbox/ending_rank.py", "return", str(tmp_path), **alone) as rank:
        pid = int(rank.hear())
        wait_until(lambda: keepers_of(tmp_path))
        await_box(tmp_path, pid, ended=False)
        (keeper,) = keepers_of(tmp_path)
        # Once it has said that it is ready: three streams, its lock, the rank's pidfd.
        # Before that, /dev/null is open once more, and a stream is still the rank's pipe.
        wait_until(lambda: links_of(keeper).count("/dev/null") == 3 and not streams_of(keeper))
        assert os.getpriority(os.PRIO_PROCESS, keeper) >= 10
        assert os.getsid(keeper) == keeper or os.getsid(keeper) != os.getsid(pid)
        resident = int(Path(f"/proc/{keeper}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        assert resident < 30 << 20
        talker_ends(rank)
    await_no_keeper(tmp_path)
    assert await_box(tmp_path, pid).ends


def streams_of(pid: int) -> list[str]:
    return [link for link in links_of(pid) if link.startswith(("socket:", "pipe:"))]


def links_of(pid: int) -> list[str]:
    """What its descriptors stand for."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.append(os.readlink(path))
    return found


def test_a_folder_that_can_not_be_written_is_one_warning(tmp_path: Path) -> None:
    wrong = tmp_path / "file"
    wrong.write_text("no folder")
    program = PROGRAMS / "blackbox" / "ending_rank.py"
    done = subprocess.Popen(
        [sys.executable, str(program), "return", str(wrong)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stdin is not None
    assert done.stdout is not None
    assert done.stderr is not None
    with done:
        done.stdout.readline()
        line = done.stderr.readline()
        done.stdin.write("end\n")
        done.stdin.close()
        rest = done.stderr.read()
    assert "black boxes are not copied to" in line
    assert rest == ""
    assert done.returncode == 0
    await_no_keeper(wrong)
    assert not list(Path("/").glob(f"rank*-{done.pid}.box*"))  # the keeper's own folder
    (left,) = left_on_tmpfs(done.pid)
    os.unlink(left)


def test_earlier_runs_are_kept_up_to_a_number(tmp_path: Path) -> None:
    for _ in range(4):
        with talking("blackbox/kept_runs.py", str(tmp_path), "2") as rank:
            pid = int(rank.hear())
            talker_ends(rank)
        await_box(tmp_path, pid)
        await_no_keeper(tmp_path)
    runs = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(runs) == 2
