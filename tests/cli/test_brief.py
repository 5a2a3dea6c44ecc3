"""The brief form of a verdict: 20 lines at most, and nothing said twice."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from support.jobs.recordings import NAMES, rounds

from workerserver.cli.console import Output
from workerserver.cli.diagnose import MAX_BRIEF, render_all
from workerserver.cli.job_command import Judged
from workerserver.cli.text import cells, cut, wrap
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.facts import Gone
from workerserver.cluster.judge.verdict import Suspect, Verdict
from workerserver.cluster.model import Frame

LONG = "rank 7 has not entered all_reduce #6 of default_pg; it stands in compute(), hang.py:39. "


class Screen(io.StringIO):
    """A terminal, as far as Output asks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 80 columns and 24 lines."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    return Screen()


def recorded(name: str) -> list[Round]:
    return [Round(list(each.states), each.started) for each in rounds(name)]


def shown(
    verdict: Verdict, looks: Sequence[Round] = (), out: io.StringIO | None = None, **more: bool
) -> list[str]:
    stream = io.StringIO() if out is None else out
    render_all([Judged(JobView(None, list(looks)), verdict)], Output(stream), **more)
    return stream.getvalue().splitlines()


def suspects(count: int, *, alike: bool) -> tuple[Suspect, ...]:
    return tuple(
        Suspect(
            rank,
            "behind",
            f"/run/job/rank{rank}.sock",
            process_group="default_pg",
            collective="all_reduce",
            seq=6,
            location=Frame("/job/hang.py", 39 if alike else rank, "compute"),
            step=5,
            step_age_s=10.0,
            evidence=(
                *(f"line {number} of what speaks against it" for number in range(20)),
                "last heartbeat: step 5, 10.2 s ago",
            ),
        )
        for rank in range(count)
    )


@pytest.mark.parametrize("name", NAMES)
def test_recorded_jobs(name: str, small: Screen) -> None:
    looks = recorded(name)
    verdict = diagnose(looks, len(looks[0].states))
    for lines in (shown(verdict, looks), shown(verdict, looks, small)):
        assert len(lines) <= MAX_BRIEF
        told = [line for line in lines if line]
        assert len(set(told)) == len(told)
        for suspect in verdict.suspects:
            assert any(line.startswith(f"rank {suspect.rank} ") for line in told)
    assert lines[0].startswith(verdict.sentence[:40])
    assert max(map(cells, lines)) <= 80


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "each elsewhere"])
@pytest.mark.parametrize("count", [1, 2, 5, 500])
def test_many_suspects(count: int, alike: bool, small: Screen) -> None:
    verdict = Verdict(LONG * 4, 1, 1024, 1024, suspects=suspects(count, alike=alike))
    for lines in (shown(verdict), shown(verdict, out=small)):
        assert len(lines) <= MAX_BRIEF
        text = "\n".join(lines)
        assert text.count("last step: ") >= 1
        assert "last heartbeat" not in text  # the same once more
        assert "(-v" in text
        if alike and count > 1:
            assert f"ranks 0-{count - 1} ({count} in all): behind" in text
        if not alike:
            assert "\nrank 0 (/run/job/rank0.sock): behind" in text
        if not alike and count > 4:
            more = "suspect: rank 4" if count == 5 else f"suspects: ranks 4-{count - 1}"
            assert f"... and {count - 4} more {more} (-v)" in text
    assert max(map(cells, lines)) <= 80


def test_silent_ranks_share_a_line() -> None:
    gone = [Gone(rank, "timeout", "no answer in 10 s", f"/s{rank}", None) for rank in range(3, 900)]
    gone += [Gone(rank, "unreachable", f"reason {rank}", f"/s{rank}", None) for rank in range(3)]
    lines = shown(Verdict("could not tell", 2, 1024, 124, unreachable=tuple(gone)))
    assert "no answer from ranks 3-899: timeout: no answer in 10 s" in lines
    assert "no answer from 2 more (-v)" in lines
    assert len(lines) <= MAX_BRIEF


def test_what_is_missing_and_when_to_ask_again() -> None:
    looks = recorded("healthy-ours")[:1]
    verdict = Verdict("could not tell: why", 2, 4, 4, not_looked_at=("ranks 0-3: no heartbeat",))
    lines = shown(verdict, looks)
    assert "missing: ranks 0-3: no heartbeat" in lines
    assert "Another look tells no more as long as nothing changes." in lines
    lines = shown(Verdict("could not tell: why", 2, 4, 4, again_s=10.0), looks)
    assert "Ask again in 10 s: another look may tell more." in lines


def test_the_sentence_again_where_it_has_scrolled_away(small: Screen) -> None:
    looks = recorded("asleep-ours")
    verdict = diagnose(looks, 4)
    lines = shown(verdict, looks, small, verbose=True)
    assert len(lines) > 24
    last = "\n".join(lines).rpartition("\n\n")[2].replace("\n", " ")
    assert last == verdict.sentence
    assert "\n".join(shown(verdict, looks, verbose=True)).count(verdict.sentence) == 1


def test_a_single_process_has_no_others() -> None:
    held = Suspect(0, "gil held", "/run/job/rank0.sock", gil_holder=True)
    alone = "\n".join(shown(Verdict("rank 0 ...", 1, 1, 1, suspects=(held,)), verbose=True))
    assert "  one of its threads keeps the GIL" in alone
    assert "others" not in alone
    two = "\n".join(shown(Verdict("rank 0 ...", 1, 2, 2, suspects=(held,)), verbose=True))
    assert "  others wait for it, and one of its threads keeps the GIL" in two


def test_other_jobs_are_few_lines() -> None:
    jobs = [
        Judged(JobView(f"job{number}", [], leftovers=[f"left {number}"]), Verdict("fine", 0, 1, 1))
        for number in range(30)
    ]
    out = io.StringIO()
    render_all(jobs, Output(out))
    lines = out.getvalue().splitlines()
    assert len(lines) <= MAX_BRIEF
    assert "  ... and 26 more jobs (-v)" in lines
    assert "... and 28 more lines on leftovers (-v)" in lines


# ---- lines of a terminal


def test_wrap() -> None:
    assert wrap("short", 10) == ["short"]
    assert wrap("  - a line that is long", 12, 4) == ["  - a line", "    that is", "    long"]
    assert wrap("x" * 10, 4, 1) == ["xxxx", " xxx", " xxx"]
    assert wrap("日本語 文字", 6) == ["日本語", "文字"]
    assert wrap("", 5) == [""]


def test_cut() -> None:
    assert (cut("four", 4), cut("fours", 4), cut("日本", 3)) == ("four", "fou~", "日~")
    assert cells("e\u0301") == 1
