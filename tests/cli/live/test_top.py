"""``top``: its rows, what fits a screen, and when it asks for more than the health."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.jobs.peers import make_socket
from support.jobs.workers import DIGEST, HEALTH, STACKS, SUMMARY, Canned, good, health

from workerserver.cli import main
from workerserver.cli.errors import NoJobError
from workerserver.cli.looks import Look, Looker
from workerserver.cli.rows import ORDERS, Row, cells, folded, matches, rows
from workerserver.cli.screen import Picture, View, draw
from workerserver.cli.text import cells as width_of
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import EVERYTHING, Round
from workerserver.cluster.find.discovery import Found, from_template
from workerserver.cluster.model import Failure, Health, RankState, Worker

HUNG = {"step": 3, "step_age_s": 100.0, "step_median_s": 0.1, "uptime_s": 200.0}


def state(rank: int, **fields: Any) -> RankState:
    worker = Worker(f"/run/rank{rank}.sock", True, rank)
    told = Health("ok", rank=rank, **{"uptime_s": 100.0, **fields})
    return RankState(worker, rank, "workerserver", told, responded=True)


def silent(rank: int, text: str) -> RankState:
    failure = Failure("unreachable", text)
    worker = Worker(f"/run/rank{rank}.sock", True, rank)
    return RankState(worker, rank, failures={"healthz": failure})


def table(*states: RankState, **more: Any) -> dict[int, Row]:
    return {row["rank"]: row for row in rows(Round(list(states), 1.0), **more)}


# ---- rows


def test_states() -> None:
    found = table(
        state(0, step=5, step_age_s=0.1),
        state(1, step=5, step_age_s=60.0, step_median_s=0.1),
        state(2, step=5, step_age_s=60.0, step_median_s=10.0),
        state(3, gil_unavailable_s=3.0),
        state(4),
        silent(5, "connection refused: nobody listens there"),
        silent(6, "connection refused: nobody listens there"),
        seen={"/run/rank6.sock"},
    )
    said = {rank: row["state"] for rank, row in found.items()}
    assert said == {
        0: "ok", 1: "no step", 2: "ok", 3: "no GIL", 4: "starting", 5: "unreachable", 6: "ended",
    }  # fmt: skip
    (shown,) = folded([found[1]])
    assert cells(shown)[:4] == ("1", "no step 1m00s", "5", "1m00s")


def test_a_job_without_heartbeats_has_started_after_a_while() -> None:
    assert table(state(0, uptime_s=5.0))[0]["state"] == "starting"
    assert table(state(0, uptime_s=500.0))[0]["state"] == "ok"


def test_vanished_workers_have_ended() -> None:
    found = table(state(0, step=1), vanished=[state(1, step=1)])
    assert (found[1]["state"], found[1]["answered"]) == ("ended", False)


def test_equal_rows_share_a_line() -> None:
    found = list(table(*(state(rank, step=9 if rank == 70 else 8) for rank in range(128))).values())
    lines = [cells(each)[0] for each in folded(found)]
    assert sorted(lines) == ["0-69,71-127", "70"]


@pytest.mark.parametrize(
    ("words", "ranks"),
    [("", [0, 1, 2]), ("1", [1]), ("0-1", [0, 1]), ("NO step", [2]), ("rank1", [1]), ("ok 2", [])],
)
def test_filters(words: str, ranks: list[int]) -> None:
    found = table(state(0, step=1), state(1, step=1), state(2, step=1, step_age_s=99.0))
    assert [rank for rank, row in sorted(found.items()) if matches(row, words)] == ranks


# ---- the screen


def everyone(count: int, seed: int) -> list[Row]:
    random_ = random.Random(seed)
    states = []
    for rank in range(count):
        if random_.random() < 0.1:
            states.append(silent(rank, f"connection refused {random_.randrange(5)}"))
        else:
            step, age = random_.randrange(100), random_.choice((0.1, 99.0))
            states.append(state(rank, step=step, step_age_s=age))
    return rows(Round(states, 1.0))


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 50), (40, 10), (20, 5)])
@pytest.mark.parametrize("count", [1, 4, 64, 1024])
def test_the_table_fits(count: int, size: tuple[int, int]) -> None:
    width, height = size
    view = View()
    suspects = {count // 3, count // 2}
    for number, key in enumerate("ss/9\nffsj sj \x1b/no\nf f"):
        found = everyone(count, number)
        view.key("escape" if key == "\x1b" else key)
        picture = Picture("job  head", found, "rank 1 is it " * 20, "red", suspects)
        lines = [text for text, _ in draw(picture, view, width, height)]
        assert len(lines) <= height
        assert max(map(width_of, lines)) <= width
        red = [text for text, style in draw(picture, view, width, height) if style == "bold red"]
        assert red
        assert any(text.startswith(str(count // 3)) for text in red) or height < 24


def test_what_is_not_shown_is_said() -> None:
    found = everyone(64, 1)
    picture = Picture("head", found, suspects={21})
    view = View(fold=False)
    lines = [text for text, _ in draw(picture, view, 80, 24)]
    count = sum(line.split()[0].isdecimal() for line in lines[1:-1] if line and line[0] != ".")
    assert f"... {64 - count} of 64 ranks not shown" in lines
    assert lines[2].split()[0] == "21"
    view.words = "nothing has this"
    lines = [text for text, _ in draw(picture, view, 80, 24)]
    assert "... 63 of 64 ranks not shown, 63 of them by the filter" in lines
    assert lines[2].split()[0] == "21"  # the guilty rank stays


def test_scrolling_ends_at_the_end() -> None:
    found = rows(Round([state(rank, step=1) for rank in range(64)], 1.0))
    view = View(order="rank", fold=False)
    picture = Picture("head", found)
    for _ in range(20):
        view.key("page down")
    lines = [text for text, _ in draw(picture, view, 80, 24)]
    assert "63" in [line.split()[0] for line in lines if line]
    for _ in range(20):
        view.key("page up")
    assert draw(picture, view, 80, 24)[2][0].split()[0] == "0"


def test_keys() -> None:
    view = View()
    assert not view.key("q")
    orders = []
    for _ in ORDERS:
        assert view.key("s")
        orders.append(view.order)
    assert sorted(orders) == sorted(ORDERS)
    for key in "/q1\x7f\n":
        assert view.key(key)
    assert (view.words, view.typing) == ("q", False)
    view.key("escape")
    assert view.words == ""


# ---- looks


@pytest.fixture
def served(folder: Path) -> Any:
    """``served(rank, answers)``: a worker at ``rank<N>.sock``."""
    with contextlib.ExitStack() as stack:

        def serve(rank: int, **fields: Any) -> Canned:
            answers = {**good(rank), HEALTH: health(rank, **fields)}
            worker = Canned(answers, folder / f"rank{rank}.sock")
            stack.callback(worker.close)
            return worker

        yield serve


def looked(count: int, find: Callable[[], Found], between: Callable[[int], None]) -> list[Look]:
    """*count* looks; *between* gets the number of each one after it."""

    async def go() -> list[Look]:
        found: list[Look] = []
        async with Client(deadline=30) as client:
            looker = Looker(find(), find, every=0.01, most=count)
            async for look in looker.looks(client, lambda: EVERYTHING):
                between(len(found))
                found.append(look)
        return found

    return asyncio.run(go())


def template() -> Found:
    try:
        return Found(from_template("./rank{rank}.sock"))
    except Exception as error:
        raise NoJobError(str(error)) from None


def test_each_look_finds_the_job_anew(served: Any, folder: Path) -> None:
    first = served(0)

    def between(number: int) -> None:
        if number == 0:
            served(1)
        if number == 1:
            first.close()
            (folder / "rank0.sock").unlink()
        if number == 2:
            (folder / "rank1.sock").rename(folder / "off")
        if number == 3:
            (folder / "off").rename(folder / "rank1.sock")

    looks = looked(5, template, between)
    ranks = [[state.rank for state in each.round.states] for each in looks]
    assert ranks == [[0], [0, 1], [1], [], [1]]
    assert [each.changed for each in looks] == [False, True, True, True, True]
    gone = [sorted(str(state.rank) for state in each.vanished) for each in looks]
    assert gone == [[], [], ["0"], ["0", "1"], ["0"]]
    assert "no socket there" in (looks[3].why or "")


def test_nothing_is_asked_twice(served: Any) -> None:
    """Of ranks with equal stacks, one is asked for its stacks in each look: whether it has run."""
    workers = [served(rank) for rank in range(3)]
    looked(4, template, lambda number: None)
    asked = [target for worker in workers for _, target in worker.asked]
    assert asked.count(HEALTH) == asked.count(SUMMARY) == 12
    assert asked.count(STACKS) == 4


# ---- the command


def top(*words: str) -> tuple[int, list[dict[str, Any]]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["top", "--json", "--every", "0.01", *words])
    return status, [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_job_that_goes_on_is_asked_for_its_health_alone(served: Any) -> None:
    workers = [served(rank) for rank in range(2)]
    status, looks = top("--count", "3", "./rank{rank}.sock")
    assert status == 0
    assert [each["verdict"] for each in looks] == [None] * 3
    assert {target for worker in workers for _, target in worker.asked} == {HEALTH}


def test_a_job_in_trouble_is_judged(served: Any) -> None:
    workers = [served(rank, **HUNG) for rank in range(2)]
    status, looks = top("--count", "8", "./rank{rank}.sock")
    assert status == 0
    assert [row["state"] for row in looks[0]["workers"]] == ["no step", "no step"]
    assert looks[0]["verdict"] is None
    assert looks[-1]["status"] in (1, 2)
    assert looks[-1]["verdict"]
    for worker in workers:  # not in each look, since nothing changes
        digests = [target for _, target in worker.asked].count(DIGEST)
        assert 1 <= digests < 7


def test_a_worker_that_ends(served: Any, folder: Path) -> None:
    served(0, step=7)
    make_socket(folder / "rank1.sock")
    status, looks = top("--count", "1", "./rank{rank}.sock")
    assert status == 1
    assert [row["state"] for row in looks[0]["workers"]] == ["unreachable", "ok"]
