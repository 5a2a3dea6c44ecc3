"""What is said of a run of which black boxes are left: only what they tell."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.boxes.made import STARTED, put_box, stacks_of

from workerserver.blackbox.format import LaneName
from workerserver.blackbox.read import read_box
from workerserver.blackbox.runs import runs_in
from workerserver.cli import blackbox, diagnose
from workerserver.cli.errors import NoJobError
from workerserver.cli.schema import schema_of
from workerserver.cluster.judge.ends import who_ended
from workerserver.cluster.read.boxes.endings import ending

Put = tuple[LaneName, float, Mapping[str, Any]]

LOAD: Put = ("stacks", 5.0, stacks_of(("/job/data.py", 33, "load_batch"), ("/job/t.py", 9, "main")))
TORCH = "/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
BLACK_BOX = "/lib/python3.11/site-packages/workerserver/native/black_box.py"
REDUCE: Put = ("stacks", 5.0, stacks_of((TORCH, 3000, "all_reduce"), ("/job/t.py", 12, "main")))


def gone(status: int | None, kills: int | None = 0) -> Put:
    told = {"copied": 1.0, "ended": STARTED + 7.0, "wait_status": status, "oom_kills": kills}
    return ("keeper", 8.0, told)


def sent(number: int, **more: Any) -> Put:
    told = {"why": "signal", "signal": number, "thread": 4711, "time": STARTED + 6.0, **more}
    return ("end", 6.0, told)


def raised(kind: str, text: str) -> Put:
    frames = [["/job/t.py", 9, "main"], ["/job/data.py", 33, "load_batch"], [TORCH, 9, "check"]]
    told = {"why": "exception", "type": kind, "text": text, "frames": frames}
    return ("end", 6.0, {**told, "thread": 4711, "time": STARTED + 6.0})


EXIT: Put = ("end", 6.5, {"why": "exit", "thread": 4711, "time": STARTED + 6.5})
INTERRUPTED = "was ended by Ctrl-C (KeyboardInterrupt)"
SENT = "was ended by SIGTERM from process 99"
LOST = raised("RuntimeError", "[../pair.cc:534] Connection closed by peer [127.0.0.1]:2222")
TOLD = sent(signal.SIGTERM, pid=99)


@pytest.mark.parametrize(
    ("records", "kind", "words"),
    [
        ([EXIT, gone(0)], "clean", "ended by itself"),
        ([EXIT, gone(None)], "clean", "ended by itself"),
        ([EXIT, gone(3 << 8)], "status", "left with exit status 3"),
        ([gone(7 << 8)], "status", "left with exit status 7 by os._exit, exec or from C"),
        ([gone(0)], "left", "left with exit status 0 by os._exit, exec or from C"),
        ([gone(9)], "killed", "was killed (SIGKILL)"),
        ([gone(9, 1)], "oom", "was killed (out of memory)"),
        ([gone(9, None)], "killed", "was killed (SIGKILL)"),
        ([gone(None)], "no trace", "ended without a trace: SIGKILL, os._exit or its host"),
        ([], "alive", "has not ended as far as its box tells"),
        ([TOLD, gone(15)], "terminated", "was ended by SIGTERM from process 99"),
        ([TOLD, gone(None)], "terminated", "was ended by SIGTERM from process 99"),
        (
            [TOLD, gone(9)],
            "terminated",
            "was ended by SIGTERM from process 99, and by SIGKILL later",
        ),
        ([gone(15)], "terminated", "was ended by SIGTERM"),
        # The launcher ended it while it was telling.
        ([raised("ValueError", "no"), TOLD, gone(15)], "exception", "ended by ValueError: no"),
        ([TOLD, raised("Stop", "ping"), gone(1 << 8)], "terminated", SENT),
        ([TOLD, EXIT, gone(0)], "terminated", "was ended by SIGTERM from process 99"),
        ([sent(11, address=16), gone(11)], "crash", "ended by SIGSEGV at address 0x10"),
        ([sent(11, address=16), gone(None)], "crash", "ended by SIGSEGV at address 0x10"),
        ([gone(139)], "crash", "ended by SIGSEGV"),  # 128: a core was dumped
        (
            [raised("ValueError", "no\nmore"), EXIT, gone(1 << 8)],
            "exception",
            "ended by ValueError: no",
        ),
        ([raised("ValueError", ""), gone(None)], "exception", "ended by ValueError"),
        (
            [raised("RuntimeError", "a worker is gone"), EXIT, gone(1 << 8, 1)],
            "exception",
            "ended by RuntimeError: a worker is gone after the kernel had killed a process of its "
            "cgroup (out of memory)",
        ),
        ([raised("KeyboardInterrupt", ""), gone(2)], "terminated", INTERRUPTED),
        ([raised("KeyboardInterrupt", ""), EXIT, gone(1 << 8)], "terminated", INTERRUPTED),
    ],
)
def test_how_it_ended(records: list[Put], kind: str, words: str, tmp_path: Path) -> None:
    found = ending(read_box(str(put_box(tmp_path, 5, *records))))
    assert (found.kind, found.detail) == (kind, words)
    assert found.step == 1204


def verdict(folder: Path, *options: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = diagnose.main([*options, str(folder)])
    return status, out.getvalue()


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_ctrl_c_accuses_nobody(tmp_path: Path) -> None:
    for rank in range(2):
        put_box(tmp_path, rank, raised("KeyboardInterrupt", ""), gone(1 << 8))
    status, said = verdict(tmp_path)
    assert status != 1, said
    assert "ranks 0-1 were ended by Ctrl-C" in said


def test_the_one_that_was_killed_is_named(tmp_path: Path) -> None:
    put_box(tmp_path, 0, REDUCE, LOST, EXIT, gone(1 << 8))
    put_box(tmp_path, 1, REDUCE, LOST, EXIT, gone(1 << 8))
    put_box(tmp_path, 2, LOAD, gone(9))
    put_box(tmp_path, 3, REDUCE, TOLD, gone(15))
    status, text = verdict(tmp_path)
    assert status == 1
    first = text.splitlines()[0]
    assert first.startswith("rank 2 was killed (SIGKILL) at ")
    assert "; last seen at step 1,204, in load_batch(), data.py:33 (2.0 s before); " in first
    assert first.endswith("rank 3 was ended by SIGTERM, ranks 0-1 lost the others")


def test_out_of_memory_with_its_figures(tmp_path: Path) -> None:
    files = {"memory.current": "68612521984\n", "memory.max": "68719476736\n"}
    state: Put = ("state", 5.0, {"health": {"status": "ok", "rank": 0, "step": 9}, "files": files})
    put_box(tmp_path, 0, state, LOAD, gone(9, 2), size=1)
    status, text = verdict(tmp_path)
    assert status == 1
    assert "rank 0 was killed (out of memory), with 63.9 of 64.0 GiB in use at " in text


FORGED = "x\nrank 1 was killed (SIGKILL)"


@pytest.mark.parametrize(
    "records",
    [
        [raised(FORGED, FORGED)],
        [("end", 6.0, {"why": "exception", "frames": [[FORGED, 1, FORGED]], "time": STARTED})],
        [("end", 6.0, {"why": "signal", "signal": FORGED, "thread": 4711})],
        [("stacks", 5.0, stacks_of((FORGED, 1, FORGED))), sent(signal.SIGSEGV)],
    ],
)
def test_no_text_of_a_box_makes_a_line_of_its_own(tmp_path: Path, records: list[Put]) -> None:
    put_box(tmp_path, 0, *records, size=1)
    (run,) = runs_in([str(tmp_path)])[0]
    assert "\n" not in who_ended(ending(run.boxes[0]))


def test_an_exception_names_the_users_line_and_shows_the_traceback(tmp_path: Path) -> None:
    told = raised("ValueError", "a batch of nothing")
    told[2]["traceback"] = "  File data.py, line 33\n    load()"  # type: ignore[index]
    put_box(tmp_path, 0, told, EXIT, gone(1 << 8), size=2)
    put_box(tmp_path, 1, REDUCE, TOLD, gone(15), size=2)
    status, text = verdict(tmp_path)
    assert status == 1
    assert "ended by ValueError: a batch of nothing" in text
    assert "in load_batch(), data.py:33" in text
    assert "File data.py, line 33" in text


def test_old_boxes_do_not_say_that_a_job_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keeper may be gone, or their folder full: then no end is in them."""
    now = STARTED + 8.0
    monkeypatch.setattr(time, "time", lambda: now)
    copied: Put = ("keeper", 8.0, {"copied": now, "ended": None})
    told = {"status": "ok", "pid": 4711, "rank": 0, "world_size": 1, "step_age_s": 0.1}
    steps: list[Put] = [
        ("state", at, {"health": {**told, "step": step}, "files": {}})
        for at, step in ((4.0, 1203), (5.0, 1204))
    ]
    path = put_box(tmp_path, 0, ("stacks", 4.0, LOAD[2]), LOAD, *steps, copied, size=1)
    os.utime(path, (now, now))
    status, text = verdict(tmp_path)
    assert status == 0, text
    for later in (3600, -3600):  # a clock that is behind the others is no sign of life
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        status, text = verdict(tmp_path)
        assert status == 2, text
        assert text.startswith("could not tell: the newest black box is 3,600 s old")


def test_who_is_killed_long_after_sigterm_began_nothing(tmp_path: Path) -> None:
    """It was stopped, say, and could not act on its own SIGTERM."""
    put_box(tmp_path, 0, REDUCE, TOLD, gone(15), size=2)
    late = {"copied": 1.0, "ended": STARTED + 36.0, "wait_status": 9, "oom_kills": 0}
    put_box(tmp_path, 1, LOAD, ("keeper", 37.0, late), size=2)
    text = verdict(tmp_path)[1]
    assert not text.startswith("rank 1 was killed"), text
    assert json_verdict(tmp_path)["culprits"] == []
    assert "rank 1 was killed (SIGKILL)" in text  # how the ranks ended
    put_box(tmp_path, 1, LOAD, gone(9), size=2)
    assert verdict(tmp_path)[1].startswith("rank 1 was killed (SIGKILL) at ")


def json_verdict(folder: Path) -> dict[str, Any]:
    return dict(json.loads(verdict(folder, "--json")[1]))


def test_an_exit_status_has_the_last_line_of_the_program(tmp_path: Path) -> None:
    """At the interpreter's exit our own functions alone are on the stack."""
    at_exit: Put = ("last", 6.5, stacks_of((BLACK_BOX, 155, "_write_end")))
    put_box(tmp_path, 0, LOAD, EXIT, at_exit, gone(3 << 8), size=1)
    status, text = verdict(tmp_path)
    assert status == 1
    assert "rank 0 left with exit status 3 at " in text
    assert "in load_batch(), data.py:33" in text


def test_everybody_ended_by_itself(tmp_path: Path) -> None:
    for rank in range(4):
        put_box(tmp_path, rank, LOAD, EXIT, gone(0))
    assert verdict(tmp_path)[0] == 3


@pytest.mark.parametrize("end", [EXIT, LOAD])
def test_who_leaves_a_job_that_is_done_is_accused_of_nothing(end: Put, tmp_path: Path) -> None:
    """By ``os._exit(0)``: so destructors that hang are left out."""
    put_box(tmp_path, 0, end, gone(0), size=2)
    put_box(tmp_path, 1, LOAD, gone(0), size=2)
    status, text = verdict(tmp_path)
    assert status == 3, text
    assert "rank 1 left with exit status 0" in text or "ranks 0-1 left" in text


def test_who_leaves_a_job_that_goes_on_is_named(tmp_path: Path) -> None:
    put_box(tmp_path, 0, EXIT, gone(0), size=3)
    put_box(tmp_path, 1, LOAD, gone(0), size=3)
    put_box(tmp_path, 2, REDUCE, TOLD, gone(15), size=3)  # it waited until it was ended
    status, text = verdict(tmp_path)
    assert status == 1, text
    assert text.startswith("rank 1 left with exit status 0 by os._exit, exec or from C at ")
    put_box(tmp_path, 3, LOAD, gone(9), size=4)
    assert verdict(tmp_path)[1].startswith("rank 3 was killed (SIGKILL) at ")


def test_a_rank_without_a_box_is_said_and_keeps_the_verdict_open(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        put_box(tmp_path, rank, LOAD, EXIT, gone(0))
    status, text = verdict(tmp_path)
    assert status == 2
    assert "of rank 2 there is no box" in text


@pytest.mark.parametrize("everybody", [LOST, sent(signal.SIGABRT), TOLD])
def test_nobody_is_accused_of_what_others_did(everybody: Put, tmp_path: Path) -> None:
    """All lost their connections, were aborted by a watchdog, or were ended by the launcher; and
    the samples show nobody who kept the others waiting."""
    for rank in range(4):
        put_box(tmp_path, rank, REDUCE, everybody, gone(None))
    status, text = verdict(tmp_path)
    assert status == 2, text
    assert "could not tell" in text


@pytest.mark.parametrize("mode", ["nogil", "gil"])
def test_an_abort_of_a_rank_that_waits_for_nobody_accuses_it(mode: str, tmp_path: Path) -> None:
    """A thread without the GIL aborts while another one keeps it. The others lose this rank.

    In a snapshot under the GIL, only whoever took the snapshot has the GIL."""
    stacks = stacks_of(("/job/data.py", 33, "load_batch"), ("/job/t.py", 9, "main"))
    stacks["stacks"]["mode"] = mode
    stacks["stacks"]["threads"][0]["current"] = True
    last: Put = ("last", 6.0, stacks)
    for rank in (0, 1, 3):
        put_box(tmp_path, rank, REDUCE, LOST, gone(1 << 8))
    put_box(tmp_path, 2, LOAD, sent(signal.SIGABRT, thread=4712), last, gone(6))
    status, text = verdict(tmp_path)
    if mode == "gil":
        assert status == 2, text
        return
    assert status == 1, text
    assert text.startswith("rank 2 ended by SIGABRT")
    assert "data.py:33" in text.splitlines()[0]


def test_a_hang_that_somebody_ended_is_judged_by_the_last_samples(tmp_path: Path) -> None:
    """As the judge of live jobs does it: one rank stands in user code, the others wait for it."""
    waits = stacks_of((TORCH, 3000, "all_reduce"), ("/job/t.py", 12, "main"))
    stands = stacks_of(("/job/data.py", 33, "load_batch"), ("/job/t.py", 9, "main"))
    for rank in range(4):
        stacks = stands if rank == 2 else waits
        health = {"status": "ok", "pid": 4711, "rank": rank, "step": 7, "world_size": 4}
        states: list[Put] = []
        for after in (100.0, 400.0):
            aged = {**health, "step_age_s": after - 10, "step_median_s": 0.1, "uptime_s": after}
            states += [("state", after, {"health": aged, "files": {}}), ("stacks", after, stacks)]
        told = sent(signal.SIGTERM, pid=99)
        put_box(tmp_path, rank, *states, told, gone(15))
    status, text = verdict(tmp_path)
    assert status == 1, text
    assert text.startswith("before the job was ended: ")
    assert "rank 2" in text.splitlines()[0]


def test_bad_files_are_said_in_one_line_each_and_the_rest_stands(tmp_path: Path) -> None:
    killed = put_box(tmp_path, 2, LOAD, gone(9))
    put_box(tmp_path, 0, REDUCE, TOLD, gone(15))
    whole = killed.read_bytes()
    (killed.parent / "rank1-1.box").write_bytes(whole[:100])
    os.mkfifo(killed.parent / "rank3-1.box")
    (killed.parent / "rank4-1.box").symlink_to(killed)
    status, text = verdict(tmp_path)
    assert status == 1
    assert text.startswith("rank 2 was killed (SIGKILL)")
    for name, reason in (
        ("rank1-1.box", "too short for a black box: 100 bytes"),
        ("rank3-1.box", "it is no file"),
        ("rank4-1.box", "it is a symbolic link"),
    ):
        assert [line for line in text.splitlines() if line.endswith(f"{name}: {reason}")]
    assert blackbox.main([str(tmp_path)]) == 1


def test_runs_are_told_apart_and_hosts_belong_together(tmp_path: Path) -> None:
    put_box(tmp_path, 0, EXIT, gone(0), began=0, size=2)
    put_box(tmp_path, 0, EXIT, gone(0), began=1000, size=2)
    put_box(tmp_path, 1, EXIT, gone(0), began=1003, host="node8", size=2)
    newest, older = runs_in([str(tmp_path)])[0]
    assert [box.rank for box in newest.boxes] == [0, 1]
    assert newest.missing == []
    assert older.missing == [1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert blackbox.main(["--all", "--json", str(tmp_path)]) == 0
    assert [run["without_box"] for run in json.loads(out.getvalue())["runs"]] == [[], [1]]


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_hosts_whose_clocks_differ_belong_together(ahead: int, tmp_path: Path) -> None:
    """The times of the files, all by one clock, tell that the job ran on both at the same time."""
    paths = []
    for began, run in ((0, 1), (300, 2)):
        for rank, host, clock in ((0, "node7", 0), (1, "node8", ahead)):
            when = STARTED + began + clock
            end = gone(0) if (rank, run) == (0, 1) else gone(9)
            told: Put = ("keeper", 8.0, {**end[2], "copied": when + 8, "ended": when + 7})
            path = put_box(
                tmp_path, rank, LOAD, told, began=began + clock + 9000, host=host, size=2
            )
            os.utime(path, (when + 9000 - clock, when + 9000 + 8 - clock))
            paths.append(path)
    runs = runs_in([str(tmp_path)])[0]
    assert [[box.rank for box in run.boxes] for run in runs] == [[0, 1], [0, 1]]
    assert [run.clocks_differ_s for run in runs] == [3600, 3600]
    assert [{str(box.path) for box in run.boxes} for run in runs] == [
        {str(path) for path in paths[2:]},
        {str(path) for path in paths[:2]},
    ]
    text = verdict(tmp_path)[1]
    assert "the clocks of its hosts differ by about 3,600 s: each time is by its own" in text
    # In files that were copied again nothing of this is left.
    for path in paths:
        os.utime(path, (STARTED + 99999, STARTED + 99999))
    assert len(runs_in([str(tmp_path)])[0]) == 4


def test_an_exception_of_another_thread_is_shown(tmp_path: Path) -> None:
    raises = raised("ValueError", "no batch")[2]
    told: Put = ("end", 3.0, {**raises, "why": "thread", "name": "prefetch"})
    put_box(tmp_path, 0, LOAD, told, gone(9))
    text = verdict(tmp_path)[1]
    assert text.startswith("rank 0 was killed (SIGKILL)")
    raised_there = "ValueError: no batch, in the thread prefetch, in load_batch(), /job/data.py:33"
    assert f"before: {raised_there}" in text


def test_a_rank_that_somebody_ended_alone_is_named(tmp_path: Path) -> None:
    """By ``kill PID``. The launcher has ended the others because of it."""
    by_launcher, stranger = sent(signal.SIGTERM, pid=98), sent(signal.SIGTERM, pid=99)
    for rank in range(3):
        put_box(tmp_path, rank, LOAD, stranger if rank == 1 else by_launcher, gone(15), size=3)
    status, text = verdict(tmp_path)
    assert status == 1, text
    assert text.startswith("rank 1 was ended by SIGTERM from process 99 at ")
    assert "; ranks 0,2 were ended by SIGTERM" in text
    put_box(tmp_path, 2, LOAD, stranger, gone(15), size=3)  # as Slurm ends a job
    assert verdict(tmp_path)[0] == 2


def test_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(NoJobError, match="no black box in"):
        blackbox.main([str(tmp_path)])


def test_json(tmp_path: Path) -> None:
    put_box(tmp_path, 0, LOAD, gone(9), size=1)
    status, text = verdict(tmp_path, "--json")
    told = json.loads(text)
    assert (status, told["status"], told["schema_version"]) == (1, 1, 1)
    (culprit,) = told["culprits"]
    assert (culprit["rank"], culprit["end"], culprit["step"]) == (0, "killed", 1204)
    assert culprit["location"] == {"file": "/job/data.py", "line": 33, "function": "load_batch"}
    (tmp_path / "20260101T000000-train@node7-1" / "rank1-1.box").write_bytes(b"none")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        blackbox.main(["--json", str(tmp_path)])
    check("blackbox", out.getvalue())
    check("diagnose", verdict(tmp_path, "--json")[1])


def check(command: str, text: str) -> None:
    """The published schema describes it."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(schema_of(command)).validate(json.loads(text))
