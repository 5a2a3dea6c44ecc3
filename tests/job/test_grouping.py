"""Which workers are one job, and what becomes of those that have ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from workerserver.cluster.ask.rounds import settle_ranks
from workerserver.cluster.failures import REFUSED
from workerserver.cluster.find.group import Member, group
from workerserver.cluster.find.here import Ended
from workerserver.cluster.find.jobs import JobView, split
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Failure, Health, RankState, Worker
from workerserver.job.identity import Identity


def who(rank: int | None = 0, **more: Any) -> Identity:
    fields = {"world_size": 4, "host": "n1", "agent": "10:1", "started": 1.0, **more}
    return Identity("j", "MASTER_ADDR", rank=rank, **fields)


def jobs(*identities: Identity, pids: tuple[int, ...] = ()) -> list[list[int]]:
    numbers = pids or tuple(range(100, 100 + len(identities)))
    members = [
        Member(number, each, pid)
        for number, (each, pid) in enumerate(zip(identities, numbers, strict=True))
    ]
    return [sorted(int(str(key)) for key in each.keys) for each in group(members)]


def test_one_launcher_is_one_job() -> None:
    assert jobs(*(who(rank) for rank in range(4))) == [[0, 1, 2, 3]]
    assert jobs(who(None), who(None)) == [[0, 1]]  # mp.spawn, before the ranks are known


def test_two_launchers_on_one_host_are_two_jobs() -> None:
    """A job was left over from yesterday, and has the same address and port."""
    found = jobs(who(0), who(1), who(0, agent="20:9", started=9.0), who(1, agent="20:9"))
    assert found == [[2, 3], [0, 1]]
    apart = who(2, agent="20:9", started=9.0)
    assert jobs(who(0), who(1), apart) == [[2], [0, 1]]


def test_two_launchers_that_torchrun_has_numbered_are_one_job() -> None:
    one, other = who(0, group_rank=0), who(2, agent="20:9", group_rank=1)
    assert jobs(one, other) == [[0, 1]]
    assert len(jobs(one, who(2, agent="20:9", group_rank=1, world_size=8))) == 2
    assert len(jobs(one, who(0, agent="20:9", group_rank=1))) == 2


def test_several_hosts() -> None:
    assert jobs(who(0), who(2, host="n2", agent="77:1")) == [[0, 1]]
    assert len(jobs(who(0), who(0, host="n2", agent="77:1"))) == 2
    script = Identity("t.py-5", "process", agent="5:5", host="n1")
    assert len(jobs(script, Identity("t.py-5", "process", agent="5:5", host="n2"))) == 2


def test_restarts_are_told_apart() -> None:
    assert jobs(who(0, restart=0), who(0, restart=1, started=5.0)) == [[1], [0]]


def test_rays_workers_have_no_launcher() -> None:
    alone = [who(rank, agent=f"{100 + rank}:1") for rank in range(3)]
    assert jobs(*alone) == [[0, 1, 2]]
    nobody = [who(None, agent=f"{100 + rank}:1", world_size=None) for rank in range(2)]
    assert len(jobs(*nobody)) == 2


def test_a_name_that_comes_later() -> None:
    """Of two children of mp.spawn one has set MASTER_ADDR, and the other has not yet."""
    early = Identity("t.py-10", "process", agent="10:1", host="n1")
    assert jobs(early, who(0)) == [[0, 1]]
    assert jobs(early, who(0), Identity("k", "MASTER_ADDR", agent="10:1", host="n1")) != [[0, 1, 2]]


def test_labels_tell_jobs_of_one_name_apart() -> None:
    members = [Member(0, who(0), 1), Member(1, who(0, agent="20:9"), 2)]
    assert {each.label for each in group(members)} == {
        "j (started by process 10)",
        "j (started by process 20)",
    }
    again = [Member(0, who(0, restart=0), 1), Member(1, who(0, restart=1), 2)]
    assert {each.label for each in group(again)} == {"j (restart 0)", "j (restart 1)"}


# --- from the answers ---------------------------------------------------------------------------


@dataclass
class Look:
    states: list[RankState]
    started: float = 1.0
    duration_s: float = 0.0
    more: list[int] = field(default_factory=list)


def living(rank: int | None, path: str = "", job: str | None = "j", **more: Any) -> RankState:
    pid = more.pop("pid", rank)
    fields: dict[str, Any] = {"world_size": 2, "agent": "10:1", "host": "n1", **more}
    told = {"job": job, "job_from": "MASTER_ADDR", **fields} if job is not None else {}
    health = Health("ok", pid=pid, rank=rank, **told)
    worker = Worker(path or f"/s/rank{rank}.sock", unix=True)
    return RankState(worker, rank, "workerserver", health, responded=True)


def dead(path: str, rank: int | None = None, text: str = REFUSED) -> RankState:
    worker = Worker(path, unix=True, rank=rank)
    return RankState(worker, rank, failures={"healthz": Failure("unreachable", text)})


def silent(path: str, rank: int | None = None) -> RankState:
    worker = Worker(path, unix=False, rank=rank)
    return RankState(worker, rank, failures={"healthz": Failure("timeout", "no answer in 3 s")})


def views(*states: RankState, ended: tuple[Ended, ...] = ()) -> list[JobView[Look]]:
    return split([Look(list(states))], ended)


def ranks(view: JobView[Look]) -> list[int | None]:
    return [state.rank for state in view.rounds[-1].states]


def test_two_jobs_are_never_mixed() -> None:
    one, two = views(living(0), living(1), living(0, "/x", job="k"), living(1, "/y", job="k"))
    assert {one.label, two.label} == {"j", "k"}
    assert ranks(one) == ranks(two) == [0, 1]


def test_leftovers_count_nowhere() -> None:
    """Ranks beyond the world, and ranks that another worker has."""
    states = [living(0), living(1), dead("/s/rank3.sock", 3), dead("/old/rank1.sock", 1)]
    (view,) = views(*states, dead("/s/77.sock"))
    assert ranks(view) == [0, 1]
    (line,) = view.leftovers
    for path in ("/s/rank3.sock", "/old/rank1.sock", "/s/77.sock"):
        assert path in line
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    assert (verdict.ranks, verdict.unreachable, verdict.suspects) == (2, (), ())


def test_a_rank_below_the_world_is_gone() -> None:
    (view,) = views(living(0), dead("/s/rank1.sock", 1))
    assert ranks(view) == [0, 1]
    assert view.leftovers == []
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    assert [(gone.rank, gone.address) for gone in verdict.unreachable] == [(1, "/s/rank1.sock")]


def test_a_dead_address_and_a_missing_rank_are_one_thing() -> None:
    (view,) = views(living(0), dead("/s/4711.sock"))
    assert ranks(view) == [0, 1]
    (view,) = views(living(0), silent("n1:80"))
    assert ranks(view) == [0, 1]
    assert view.leftovers == []
    # Two dead addresses and one missing rank: which one is it?
    (view,) = views(living(0), dead("/s/4711.sock"), dead("/s/4712.sock"))
    assert ranks(view) == [0]


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        ({}, True),
        ({"job": "k"}, False),
        ({"restart": 1}, False),
        ({"agent": "9:9"}, False),
        ({"world_size": 3}, False),
        ({"host": "n2", "agent": "9:9"}, True),
    ],
)
def test_the_record_of_an_ended_worker(changed: dict[str, Any], gone: bool) -> None:
    fields = {"job": "j", "agent": "10:1", "world_size": 2, "host": "n1", "rank": 1, **changed}
    known = Identity(job_from="MASTER_ADDR", **fields)
    (view,) = views(living(0), ended=(Ended("/r/rank1.sock", 1, 4711, known),))
    assert ranks(view) == ([0, 1] if gone else [0])
    assert bool(view.leftovers) is not gone
    if gone:
        state = view.rounds[-1].states[-1]
        assert state.failures["healthz"].text == "its process has ended (pid 4711)"


def test_nobody_listens() -> None:
    (view,) = views(dead("/s/rank0.sock", 0), dead("/s/rank1.sock", 1, "no such socket"))
    assert view.is_over
    (view,) = views(dead("/s/rank0.sock", 0), silent("/s/rank1.sock", 1))
    assert not view.is_over


def test_ranks_that_nobody_looked_for() -> None:
    """The ranks of another host are no suspects; those of this host are looked for."""
    told: Any = {"world_size": 4, "local_world_size": 2}
    (view,) = views(living(0, local_rank=0, **told), living(1, local_rank=1, **told))
    assert view.elsewhere == {2, 3}
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    assert verdict.ranks == 4
    assert any(line.startswith("ranks 2-3: nobody looked") for line in verdict.not_looked_at)
    (view,) = views(living(0, local_rank=0, **told))
    assert view.elsewhere == {2, 3}  # and rank 1 is missing
    store = Worker("n1:80", False, rank=0, source="store")
    state = living(0, **told)
    state.worker = store
    (view,) = views(state)
    assert view.elsewhere == frozenset()


def test_a_worker_that_tells_no_job() -> None:
    """torch's own servers, and ours of before: of the only job there is."""
    stock = RankState(Worker("/s/rank1.sock", True), 1, "torch", responded=True)
    (view,) = views(living(0), stock)
    assert ranks(view) == [0, 1]
    three = views(living(0), living(0, "/x", job="k"), stock)
    assert sorted(len(each.rounds[-1].states) for each in three) == [1, 1, 1]
    alien = RankState(Worker("/s/rank7.sock", True), 7, "torch", responded=True)
    assert len(views(living(0), alien)) == 2


def test_a_process_that_no_launcher_has_started_is_rank_0() -> None:
    alone: dict[str, Any] = {"world_size": None, "agent": "7:1", "pid": 7}
    (view,) = views(living(None, "/s", **alone))
    assert ranks(view) == [0]
    assert view.rounds[0].states[0].inferred is None
    # Not if it was spawned, if a process group has it, or if the user says that there are more.
    for more in ({"agent": "6:1"}, {"world_size": 2}):
        (view,) = views(living(None, "/s", **{**alone, **more}))
        assert ranks(view) == [None]
    (view,) = split([Look([living(None, "/s", **alone)])], world_size=2)
    assert ranks(view) == [None]
    one, two = views(
        living(None, "/s", **alone), living(None, "/t", **{**alone, "agent": "8:1", "pid": 8})
    )
    assert ranks(one) == ranks(two) == [0]


def test_a_rank_is_remembered_over_the_looks() -> None:
    """A worker that tells its rank once, and then falls silent, is no nameless one."""
    first = [living(0, "n1:80"), living(1, "n1:81")]
    later = [living(0, "n1:80"), RankState(first[1].worker, None)]
    later[1].failures["healthz"] = Failure("timeout", "no answer in 3 s")
    (view,) = split([Look(first), Look(later)])
    assert [state.rank for state in view.rounds[-1].states] == [0, 1]


# --- stock workers ------------------------------------------------------------------------------


def stock(path: str, *names: str) -> RankState:
    """A worker of torch's, whose recorder has sends and receives of these *names*."""
    entries = [{"process_group": ["0", "default_pg"], "profiling_name": name} for name in names]
    state = RankState(Worker(path, unix=True), kind="torch", responded=True)
    state.flight = {"entries": entries}
    return state


@pytest.mark.parametrize(
    ("states", "found"),
    [
        ([stock("/s/rank7.sock")], [7]),
        ([stock("/s/w1.sock"), stock("/s/w0.sock")], [1, 0]),
        ([stock("/s/w1.sock"), stock("/s/w4711.sock")], [None, None]),  # pids
        ([stock("/s/w1.sock"), stock("/t/w1.sock")], [None, None]),
        ([stock("/s/a", "gloo:send 5->2", "gloo:recv 5<-1")], [5]),
        ([stock("/s/a", "gloo:send 5->2", "gloo:recv 4<-1")], [None]),
        ([stock("/s/a", "gloo:all_reduce")], [None]),
    ],
)
def test_the_rank_of_a_stock_worker_is_inferred(
    states: list[RankState], found: list[int | None]
) -> None:
    states = [replace(state) for state in states]
    settle_ranks(states)
    assert [state.rank for state in states] == found
    assert [state.inferred is not None for state in states] == [rank is not None for rank in found]


def test_two_of_ours_and_two_stock_workers_are_four_ranks() -> None:
    """And none of them is missing."""
    ours = [living(0, world_size=4), living(1, world_size=4)]
    states = [*ours, stock("/s/a.sock"), stock("/s/b.sock")]
    settle_ranks(states)
    (view,) = views(*states)
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    assert (verdict.ranks, verdict.suspects, verdict.unreachable) == (4, (), ())
    states = [*ours, stock("/s/w2.sock"), stock("/s/w3.sock")]
    settle_ranks(states)
    (view,) = views(*states)
    assert ranks(view) == [0, 1, 2, 3]
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    assert verdict.ranks == 4
    assert any("the rank is inferred" in line for line in verdict.not_looked_at)


def test_two_workers_of_two_jobs_may_have_one_rank() -> None:
    """In one job they may not: one of them lies."""
    for job, lies in (("k", 0), ("j", 2)):
        states = [living(0, "/a"), living(0, "/b", job=job)]
        settle_ranks(states)
        assert sum("healthz" in state.failures for state in states) == lies
