"""``workerserver report``: what it writes, of what, and what it says when it can't."""

from __future__ import annotations

import html
import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.boxes.made import STARTED, put_box, stacks_of
from support.jobs.replaying import replaying
from support.served import Serve

from workerserver.cli import main
from workerserver.process._pulse import heartbeat

Report = Callable[..., tuple[int, str]]


@pytest.fixture
def job(folder: Path, no_leaks: None) -> Iterator[Callable[[str], str]]:
    with replaying(folder) as start:
        yield start


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """``report(word...)``: its exit status and what it wrote to stdout."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["report", *words])
        return status, capsys.readouterr().out

    return call


def test_of_live_ranks(job: Callable[[str], str], report: Report, folder: Path) -> None:
    target = job("asleep-ours")
    status, out = report(target, "-o", "report.html", "--interval", "0.05")
    page = html.unescape((folder / "report.html").read_text())
    sentence, where = out.splitlines()
    assert status == 1
    assert sentence in page
    assert where == f"report.html: {(folder / 'report.html').stat().st_size} bytes"
    assert f"workerserver diagnose -v '{target}'" in page
    assert not list(folder.glob("*.part"))
    assert stat.S_IMODE((folder / "report.html").stat().st_mode) & 0o111 == 0


def test_the_steps_of_live_ranks(serve: Serve, report: Report, folder: Path) -> None:
    (folder / "rank3.sock").symlink_to(str(serve("unix").address))
    for step in (7, 8):
        heartbeat(step)
    report("rank{rank}.sock", "-o", "report.html", "--rounds", "1")
    page = (folder / "report.html").read_text()
    (row,) = re.findall(r'<tr class="[^"]*" data-r="3"><td>.*?</tr>', page)
    assert "step 8, 0.0 s before the newest" in row


def test_of_a_healthy_job(job: Callable[[str], str], report: Report, folder: Path) -> None:
    assert report(job("healthy-ours"), "-o", "report.html", "--interval", "0.05")[0] == 0
    page = (folder / "report.html").read_text()
    assert "<title>Healthy" in page
    assert 'class="card"' not in page


def test_of_black_boxes(report: Report, folder: Path) -> None:
    torch = "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
    gone = {"copied": 1.0, "ended": STARTED + 7.0, "wait_status": 9, "oom_kills": 1}
    beats = [[1203, 3.0], [1204, 1.5]]
    steps = {"time": STARTED + 6.0, "tick_s": 0.004, "step_median_s": 1.5, "beats": beats}
    here = Path("boxes")
    for rank in range(4):
        frame = ("/job/data.py", 33, "load_batch") if rank == 2 else (torch, 3000, "all_reduce")
        stacks = stacks_of(frame, ("/job/train.py", 9, "main"))
        ends = [("keeper", 8.0, gone)] if rank == 2 else []
        samples = [("stacks", at, stacks) for at in (4.0, 5.0)]
        put_box(here, rank, *samples, ("steps", 6.0, steps), *ends)  # type: ignore[arg-type]
    status, out = report("boxes", "-o", "report.html", "--json")
    told = json.loads(out)
    page = html.unescape((folder / "report.html").read_text())
    assert status == told["status"] == 1
    assert told["verdict"].startswith("rank 2 was killed (out of memory)")
    assert told["verdict"] in page
    assert re.search(r'class="k\d+ s" data-r="2"', page)
    assert page.count('class="card"') == 1
    assert "workerserver blackbox boxes" in page
    assert "the last two samples of the stacks, 1.0 s apart" in page
    assert "step 1,204, 0.0 s before the newest" in page
    assert "node7" in page
    assert report("boxes", "-o", "redacted.html", "--redact")[0] == 1
    redacted = html.unescape((folder / "redacted.html").read_text())
    for word in ("node7", "/job", "boxes/2026", "<dd>train", "site-packages"):
        assert word in page
        assert word not in redacted, word
    assert ".../data.py:33 load_batch" in redacted


def test_of_boxes_that_nobody_can_read(report: Report, folder: Path) -> None:
    path = put_box(Path("boxes"), 0)
    path.write_bytes(b"nonsense")
    assert report("boxes", "-o", "report.html")[0] == 2
    page = (folder / "report.html").read_text()
    assert "Could not tell" in page
    assert path.name in page


def test_of_no_job(report: Report, folder: Path) -> None:
    assert report("./nobody", "-o", "report.html")[0] == 3
    assert "No job to judge" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("missing/report.html", "No such file or directory"),
        ("taken", "Is a directory"),
        ("/dev/full", "No space left on device"),
    ],
)
def test_what_cannot_be_written(
    output: str,
    why: str,
    job: Callable[[str], str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "taken").mkdir()
    assert main(["report", job("healthy-ours"), "-o", output, "--rounds", "1"]) == 74
    assert f"{output}: {why}" in capsys.readouterr().err
    assert not [path for path in folder.rglob("*.part") if path.is_file()]


def test_a_page_for_another_program(
    job: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    target = job("healthy-ours")
    Path("link").symlink_to("/proc/self/fd/1")  # as /dev/stdout is one
    main(["report", target, "-o", "link", "--rounds", "1"])
    assert Path("link").is_symlink()
    out = capfd.readouterr().out
    assert out.startswith("<!DOCTYPE html>")
    assert out.endswith("</html>\n")


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "boxes"])
    assert ended.value.code == 64
    assert "-o" in capsys.readouterr().err
