"""``diagnose`` and ``top`` in terminals of three sizes, on jobs of 4, 64 and 1,024 ranks.

The ranks are simulated (``benchmarks.simulated``): two real ranks' answers, one of which has not
come to an all_reduce.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.jobs.terminal import Terminal, needs_tmux, terminal
from support.lifecycle import ROOT, environment

pytestmark = [pytest.mark.torch, needs_tmux]
if not (ROOT / "benchmarks" / "simulated").exists():
    pytest.skip("needs the sources, not a wheel alone", allow_module_level=True)

SIZES = ((80, 24), (100, 30), (200, 50))
RANKS = (4, 64, 1024)
Run = Callable[..., contextlib.AbstractContextManager[Terminal]]


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """The folders of the jobs' sockets, by the number of ranks."""
    pytest.importorskip("torch")
    from benchmarks.simulated.workers import Job, listening, record

    folder = tmp_path_factory.mktemp("fleets")
    with contextlib.ExitStack() as stack:
        recording = record(folder, 2)
        found = {}
        for ranks in RANKS:
            found[ranks] = folder / f"job{ranks}"
            table = Job(ranks, 2).table(recording)
            server, _ = stack.enter_context(listening(table, found[ranks], tcp=False))
            server.signal(signal.SIGCONT)
        yield found


@pytest.fixture
def run(fleets: dict[int, Path], folder: Path) -> Run:
    """``run(ranks, (width, height), word...)``: a command on one of the jobs."""

    def start(
        ranks: int, size: tuple[int, int], *words: str
    ) -> contextlib.AbstractContextManager[Terminal]:
        width, height = size
        target = str(fleets[ranks] / "rank{rank}.sock")
        command, *options = words
        return terminal(
            folder / "tmux",
            [command, target, *options],
            environment(),
            width=width,
            height=height,
        )

    return start


every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
every_job = pytest.mark.parametrize("ranks", RANKS)


@every_size
@every_job
def test_diagnose(ranks: int, size: tuple[int, int], run: Run) -> None:
    guilty = f"rank {ranks // 3} "
    with run(ranks, size, "diagnose") as screen:
        screen.wait_for(lambda: "ended with" in screen.text(), "the command goes on")
        assert not screen.is_wrapped()
        lines, everything = screen.screen(), screen.lines()
    assert "ended with 1" in lines
    assert len(everything) <= size[1]  # nothing has scrolled away
    assert lines[0].startswith(f"{guilty}has not entered all_reduce #")
    assert lines.index("ended with 1") <= 20
    words = " ".join(" ".join(lines).split())  # a long path of a socket is on a line of its own
    assert re.search(rf"{guilty}\(\S+\):? behind", words), lines
    assert any(line.startswith("  stands in: ") for line in lines), lines


def test_the_sentence_is_the_last_line_of_a_long_output(run: Run) -> None:
    with run(64, (80, 24), "diagnose", "-v") as screen:
        screen.wait_for(lambda: "ended with" in screen.text(), "the command goes on")
        assert not screen.is_wrapped()
        lines, everything = screen.screen(), screen.lines()
    assert len(everything) > 24
    said = [line for line in lines if line.startswith("rank 21 has not entered all_reduce #")]
    assert len(said) == 1
    assert lines.index("ended with 1") - lines.index(said[0]) <= 2


@every_size
@every_job
def test_top(ranks: int, size: tuple[int, int], run: Run) -> None:
    guilty = str(ranks // 3)
    with run(ranks, size, "top", "--every", "1") as screen:
        screen.wait_for(
            lambda: f"rank {guilty} has not entered" in screen.text(), "no verdict in the head"
        )
        assert not screen.is_wrapped()
        lines = screen.screen()
        assert lines[0].startswith(f"simulated  {ranks} ranks: {ranks} no step")
        header = next(n for n, line in enumerate(lines) if line.startswith("RANK "))
        assert lines[header + 1].split()[0] == guilty
        assert all(len(line) <= size[0] for line in lines)
        # Every rank by itself: not all have room, and the guilty one stays.
        screen.keys("f", "f", "s")
        screen.wait_for(lambda: "fold: off   " in screen.text(), "no key is taken")
        lines = screen.screen()
        assert lines[header + 1].split()[0] == guilty
        hidden = [line for line in lines if line.endswith(f"of {ranks} ranks not shown")]
        assert bool(hidden) == (ranks > size[1])
        # A filter that it doesn't pass.
        screen.keys("/", "0", "Enter")
        screen.wait_for(lambda: "by the filter" in screen.text(), "no filter")
        lines = screen.screen()
        assert [line.split()[0] for line in lines[header + 1 : header + 3]] == [guilty, "0"]
        screen.keys("q")
        screen.wait_for(lambda: "ended with 0" in screen.text(), "q does not end it")
        assert any(line.startswith(f"{guilty} ") for line in screen.lines())


def test_the_terminal_may_change_its_size(run: Run) -> None:
    with run(64, (200, 50), "top", "--every", "1") as screen:
        screen.wait_for(lambda: "rank 21 has not entered" in screen.text(), "no verdict")
        screen.tmux("resize-window", "-x", "80", "-y", "24")

        def is_drawn_anew() -> bool:
            lines = screen.screen()
            guilty = any(line.startswith("21 ") for line in lines)
            return len(lines) == 24 and lines[-1].startswith("q quit") and guilty

        screen.wait_for(is_drawn_anew, "it is not drawn anew")
        assert not screen.is_wrapped()


def test_a_signal_gives_the_terminal_back(run: Run) -> None:
    with run(4, (80, 24), "top", "--every", "1") as screen:
        screen.wait_for(lambda: "q quit" in screen.text(), "it has not begun")
        pid = screen.tmux("list-panes", "-F", "#{pane_pid}").strip()
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        screen.wait_for(lambda: "ended with 143" in screen.text(), "it goes on")
        assert screen.tmux("display-message", "-p", "#{alternate_on}").strip() == "0"
