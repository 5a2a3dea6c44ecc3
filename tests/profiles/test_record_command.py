"""``workerserver record`` on real servers: what it writes and says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.jobs.peers import make_socket
from support.lifecycle import environment
from support.parking import untraced, where_it_works
from support.served import Ours, Serve, Served
from support.waiting import wait_until

from workerserver.cli import main
from workerserver.cli.record import SUFFIXES
from workerserver.cluster.ask.full.recordings import parts_of
from workerserver.stacks._stacks import recording_left

pytestmark = [untraced, where_it_works]
Run = Callable[..., tuple[int, str, str]]
SHORT = ("--duration", "0.2", "--hz", "200")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["record", *words])
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def worker(serve: Serve, folder: Path) -> Iterator[Served]:
    """Rank 0 of a job, at ``rank0.sock``."""
    served = serve("unix")
    (folder / "rank0.sock").symlink_to(str(served.address))
    yield served
    wait_until(lambda: recording_left() == 0.0, 60)


@pytest.mark.parametrize("name", [f"out{suffix}" for suffix in SUFFIXES])
def test_each_name_tells_a_format(name: str, run: Run, worker: Served, folder: Path) -> None:
    status, out, err = run("rank0.sock", "-o", name, *SHORT)
    assert (status, err) == (0, "")
    assert re.match(rf"1 of 1 ranks, \S+, \d+ samples(, \d+ missed)?, in {re.escape(name)}\n", out)
    assert re.search(r"^ +[0-9.]+% ", out, re.MULTILINE)
    body = (folder / name).read_bytes()
    form = SUFFIXES[name.removeprefix("out")]
    begin = {
        "html": b"<!DOCTYPE html>",
        "speedscope": b'{"$schema":',
        "perfetto": b'{"displayTimeUnit"',
        "pprof": b"\x1f\x8b",
    }
    assert body.startswith(begin.get(form, b"MainThread;"))
    assert not list(folder.glob("*.part"))


def test_on_the_standard_output(run: Run, worker: Served) -> None:
    status, out, err = run("rank0.sock", "-o", "-", "--format", "folded", *SHORT)
    assert status == 0
    assert all(re.fullmatch(r"\S.* [0-9]+", line) for line in out.splitlines())
    assert "in the standard output" in err


def test_some_ranks(run: Run, worker: Served, folder: Path) -> None:
    make_socket(folder / "rank1.sock")
    status, out, _ = run("rank{rank}.sock", "-o", "out.html", *SHORT, "--json")
    fields = json.loads(out)
    assert (status, fields["ranks"], fields["responded"]) == (1, 2, 1)
    first, second = fields["workers"]
    assert first["rank"] == 0
    assert first["samples"] > 0
    assert (second["reason"], second["samples"]) == ("unreachable", 0)


def test_nothing_is_written_without_a_recording(run: Run, folder: Path) -> None:
    (folder / "out.html").write_text("mine")
    make_socket(folder / "gone")
    status, out, _ = run("./gone", "-o", "out.html", *SHORT)
    assert (status, out.splitlines()[-1]) == (3, "no recording")
    assert (folder / "out.html").read_text() == "mine"


def test_who_is_recorded_already_says_so(run: Run, worker: Served, folder: Path) -> None:
    (folder / "rank1.sock").symlink_to("rank0.sock")  # a second rank in the same process
    status, out, _ = run("rank{rank}.sock", "-o", "out.html", "--duration", "0.5")
    assert status == 1
    assert "one recording runs at a time" in out


def test_one_rank_against_others(run: Run, worker: Served, folder: Path) -> None:
    words = ("rank{rank}.sock", "-o", "out.html", *SHORT, "--diff")
    status, _, err = run(*words, "7")
    assert (status, err) == (2, "workerserver: --diff 7: no such rank; there are 0\n")
    status, _, err = run("rank0.sock", *words[1:], "7")
    assert err == "workerserver: --diff 7: no such rank; the workers tell no rank\n"
    status, _, err = run(*words, "0")
    assert (status, "no other rank gave a recording" in err) == (2, True)
    make_socket(folder / "rank1.sock")
    status, _, err = run(*words, "1")
    assert status == 2
    assert "--diff 1: that rank gave no recording: unreachable: " in err
    assert not (folder / "out.html").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-o", "out.x"), "out.x: the name tells no format: end it in .html, "),
        (("-o", "out.html", "--hz", "2000"), "--hz: at most 1000"),
        (("-o", "out.html", "--duration", "9999"), "--duration: 0.05 to 3600 seconds"),
        (("-o", "-", "--format", "html", "--json"), "both write to the standard output"),
    ],
)
def test_wrong_use(words: tuple[str, ...], text: str, run: Run) -> None:
    status, out, err = run("rank0.sock", *words)
    assert (status, out) == (64, "")
    assert text in err


def test_what_can_not_be_written(run: Run, worker: Served, folder: Path) -> None:
    status, _, err = run("rank0.sock", "-o", "none/out.html", *SHORT)
    assert status == 74
    assert err == "workerserver: none/out.html: No such file or directory\n"


def test_parts() -> None:
    assert parts_of(1.0, 1) == [1.0]
    assert parts_of(10.0, 8) == [2.0] * 5
    assert parts_of(10.0, 4096) == [10.0]
    assert parts_of(60.0, 1 << 16) == [30.0] * 2
    assert sum(parts_of(3600.0, 1)) == pytest.approx(3600)


def recording(
    *words: str, stdout: int | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "workerserver", "record", "rank0.sock", *words],
        env=environment(),
        stdout=stdout,
        stderr=stderr,
    )


def test_ctrl_c_keeps_what_has_come(worker: Served, folder: Path) -> None:
    assert isinstance(worker, Ours)
    with recording("-o", "out.folded", "--duration", "60", stdout=subprocess.PIPE) as process:
        wait_until(lambda: worker.server.requests.get(("sample_stacks", 200), 0) > 0, 60)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    assert "interrupted before it answered (its first parts are kept)" in out
    assert "MainThread;" in (folder / "out.folded").read_text()
    # The worker records for nobody any more.
    wait_until(lambda: recording_left() == 0.0, 60)


def test_a_bar_on_a_terminal(worker: Served, folder: Path) -> None:
    pytest.importorskip("rich")
    ours, theirs = os.openpty()
    said = b""
    with open(ours, "rb", buffering=0) as terminal:
        words = ("-o", "out.html", "--duration", "1")
        with recording(*words, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            while select.select([terminal], [], [], 60)[0]:
                with contextlib.suppress(OSError):  # the other end has been closed
                    said, before = said + os.read(ours, 65536), said
                    if said != before:
                        continue
                break
        assert process.returncode == 0
    assert b"recording: 0 of 1 have answered" in said
