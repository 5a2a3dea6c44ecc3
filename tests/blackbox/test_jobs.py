"""Real torchrun jobs that end: what ``diagnose DIR`` and the watchdog say of them, and that each
job ends as it would without black boxes.

WORKERSERVER_BLACKBOX_RUNS=20 for the long form (``make blackbox``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from support.boxes.jobs import CULPRIT, PROGRAM, RANKS, run_job, watchdog_lines
from support.boxes.told import verdicts_in
from support.commands import answer

from workerserver.blackbox.runs import runs_in

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    pytest.mark.timeout(7200),
]

RUNS = int(os.environ.get("WORKERSERVER_BLACKBOX_RUNS", "1"))


class Way(NamedTuple):
    """*kind*: of the culprit's end. *words*: of the verdict. *torchrun*: its own word for it.
    *lines*: of the program, one of which is named. *hangs*: the job stands still until it is ended,
    so the watchdog tells it before."""

    kind: str
    words: str
    torchrun: str
    lines: tuple[str, ...]
    hangs: bool = False


STANDS = "time.sleep(4)  # so that the step and the stacks are in the box, and the others wait"
RAISES = 'raise ValueError("a batch of nothing")'
NOTHING = "ended by ValueError: a batch of nothing"
HELD = "ctypes.PyDLL(None).sleep(1000)"
WAYS = {
    # Nothing tells of these moments: it is the last sample that counts.
    "kill": Way(
        "killed",
        "was killed (SIGKILL)",
        "exitcode  : -9",
        (STANDS, "end(way)", "os.kill(os.getpid(), signal.SIGKILL)"),
    ),
    "os_exit": Way(
        "status",
        "left with exit status 7 by os._exit",
        "exitcode  : 7",
        (STANDS, "end(way)", "os._exit(7)"),
    ),
    "memory": Way(
        "oom",
        "was killed (out of memory",
        "exitcode  : -9",
        (STANDS, '_ = b"x" * (4 * LIMIT)'),
    ),
    "exception": Way("exception", NOTHING, "exitcode  : 1", (RAISES,)),
    "gil": Way("exception", NOTHING, "exitcode  : 1", (RAISES,)),
    "segv": Way("crash", "ended by SIGSEGV", "exitcode  : -11", ("ctypes.string_at(0)",)),
    "abort": Way("crash", "ended by SIGABRT", "exitcode  : -6", (HELD,)),
    "stand": Way("terminated", "", "", ("time.sleep(1000)",), hangs=True),
    "held": Way("terminated", "", "", (f"{HELD}  # C code that keeps the GIL",), hangs=True),
}
#: These are tried by ``make blackbox`` alone.
LONG = ("abort", "memory", "stand", "held")
STALL_SECONDS = "5"

LIMITS = Path("/sys/fs/cgroup/memory")  # of cgroup v1
if not LIMITS.exists():
    LIMITS = Path("/sys/fs/cgroup")


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cgroup that the culprit may enter."""
    folder = LIMITS / f"workerserver-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error.strerror}")
    monkeypatch.setenv("JOB_RANK_CGROUP", str(folder))
    yield
    folder.rmdir()


@pytest.mark.parametrize("way", WAYS)
def test_who_ended_the_job(way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if way in LONG and RUNS == 1:
        pytest.skip("make blackbox tries it")
    if way == "memory":
        request.getfixturevalue("limited")
    plain = run_job(way, tmp_path / "plain")
    assert WAYS[way].torchrun in " ".join(plain.cause)
    assert bool(plain.files) is (way in ("exception", "gil", "stand"))
    torn = lines = 0
    for number in range(RUNS):
        boxes = tmp_path / f"boxes{number}"
        place = tmp_path / f"job{number}"
        try:
            told = run_job(way, place, boxes, WORKERSERVER_STALL=STALL_SECONDS)
            assert told == plain
            torn += check_boxes(way, boxes)
            lines += check_watchdog(way, boxes, place / "log")
        except BaseException:
            print((place / "log").read_text(errors="replace"))
            raise
    print(f"{way}: {RUNS} runs; {torn} records torn by the kill; {lines} lines of the watchdog")


def check_boxes(way: str, boxes: Path) -> int:
    """What is said of the *boxes*. How many records were torn."""
    wanted = WAYS[way]
    (run,), problems = runs_in([str(boxes)])
    assert not problems
    assert [box.rank for box in run.boxes] == list(range(RANKS))
    # A SIGKILL may come in the middle of one record. Nobody else's is cut.
    assert sum(box.torn for box in run.boxes if box.rank != CULPRIT) == 0
    assert run.boxes[CULPRIT].torn <= (wanted.kind in ("killed", "oom", "status"))
    status, verdict = answer("diagnose", str(boxes), timeout=120)
    assert status == 1, verdict
    assert wanted.words in verdict["verdict"]
    if wanted.hangs:
        check_hang(way, verdict["verdict"])
        assert [each["rank"] for each in verdict["culprits"]] in ([], [CULPRIT])
        # Of all ranks is known how they ended. The one that stood was ended by torchrun.
        assert verdict["boxes"][CULPRIT]["end"] == wanted.kind, verdict
    else:
        (culprit,) = verdict["culprits"]
        assert (culprit["rank"], culprit["end"]) == (CULPRIT, wanted.kind), verdict
        assert culprit["step"] == 5
        assert culprit["location"]["file"] == str(PROGRAM)
        assert source(culprit["location"]["line"]) in wanted.lines
    if way == "gil":
        held = verdict["boxes"][CULPRIT + 1]
        assert held["end"] == "terminated"
        assert source(held["location"]["line"]).startswith(HELD)
    status, listed = answer("blackbox", str(boxes), timeout=120)
    assert status == 0
    assert [box["rank"] for box in listed["runs"][0]["boxes"]] == list(range(RANKS))
    return run.boxes[CULPRIT].torn


def check_hang(way: str, sentence: str) -> None:
    """It names who stood, where, and that the GIL was held."""
    assert f"rank {CULPRIT} " in sentence, sentence
    places = [number for number in range(1, 200) if source(number) in WAYS[way].lines]
    assert any(f"{PROGRAM.name}:{number}" in sentence for number in places), sentence
    assert ("GIL" in sentence) is (way == "held"), sentence


def source(line: int) -> str:
    """Without the blanks at its beginning."""
    lines = PROGRAM.read_text().splitlines()
    return lines[line - 1].strip() if line <= len(lines) else ""


def check_watchdog(way: str, boxes: Path, log: Path) -> int:
    """The watchdog has told the incident once. How many lines of it stand in the *log*."""
    lines = watchdog_lines(log)
    told = verdicts_in(boxes)
    assert len(told) == 1, [each["verdict"] for each in told]
    if not WAYS[way].hangs:
        # torchrun ends the other ranks at once: then the line may come too late for stderr.
        assert len(lines) <= 1, lines
        assert (told[0]["incident"], told[0]["status"]) == ("gone", 1)
        assert [each["rank"] for each in told[0]["culprits"]] == [CULPRIT], told[0]["verdict"]
        return len(lines)
    (line,) = lines
    assert told[0]["incident"] == "stall"
    check_hang(way, line)
    text = log.read_text(errors="replace")
    ends = "Traceback" if way == "stand" else "Sending process"
    assert ends in text
    assert text.index(line) < text.index(ends)
    return 1
