"""Who is named in made-up jobs of which the truth is known: the slow rank, and nobody else.

``WORKERSERVER_SLOW_JOBS=200`` plays the whole number of jobs; the suite has fewer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from random import Random

import pytest
from support.jobs.generated import LOADS, Job, synchronous

from workerserver.cluster.judge.flight import analyse
from workerserver.cluster.judge.sentences import came_last
from workerserver.cluster.judge.slow.arrivals import Occasion, Series, Source
from workerserver.cluster.judge.slow.pace import series_of_steps
from workerserver.cluster.judge.slow.stragglers import slow_fact
from workerserver.cluster.judge.slow.study import Study, compare, study
from workerserver.cluster.read.steps import Pace, read_steps

#: Jobs of equal loads; half as many with a slow rank.
JOBS = int(os.environ.get("WORKERSERVER_SLOW_JOBS", "24"))


def studied(job: Job, hosts: Mapping[int, str] | None = None) -> Study:
    sources = {
        rank: Source((hosts or {}).get(rank), read_steps(job.steps(rank)) if beats else None)
        for rank, beats in enumerate(job.beats)
    }
    return study(analyse(job.flights()).groups, sources)


def named(job: Job, hosts: Mapping[int, str] | None = None) -> list[int]:
    return [standing.rank for _, standing in studied(job, hosts).named]


def text(job: Job) -> str:
    ((finding, standing),) = studied(job).named
    return f"rank {standing.rank} {came_last(slow_fact(finding, standing))}"


# --- the targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [1, 4])
def test_equal_ranks(operations: int) -> None:
    """At most one is named in 200 jobs."""
    random = Random(7)
    found = []
    for seed in range(JOBS):
        load = random.choice(sorted(LOADS))
        ranks, steps = random.choice((2, 3, 4, 8, 16)), random.choice((20, 50, 120))
        job = synchronous(seed, ranks, steps, load, operations=operations, beats=seed % 2 == 0)
        found.append(named(job))
    print("equal loads:", sum(map(bool, found)), "of", len(found), "jobs with a name")
    assert sum(map(len, found)) <= 1


def test_equal_ranks_whose_loads_differ_much() -> None:
    """Many short jobs: the probability that is promised is that of a job, and not of a rank."""
    random = Random(6)
    found = 0
    for _ in range(600):
        occasions = []
        for number in range(30):
            loads = [random.expovariate(10.0) for _ in range(3)]
            late = tuple(load - min(loads) for load in loads)
            occasions.append(Occasion(1, number * 0.2, late, late))
        found += bool(compare([Series(None, (0, 1, 2), "clock", occasions)]).named)
    assert found <= 3


@pytest.mark.parametrize("load", ["uniform", "normal", "wide", "skewed"])
def test_a_rank_that_is_1_3_times_as_slow(load: str) -> None:
    """After 50 steps it is named in 95 of 100 jobs, and nobody else ever is."""
    random = Random(8)
    found = []
    count = max(JOBS // 2, 10)
    for seed in range(count):
        ranks = random.choice((3, 4, 8, 16))
        slow = random.randrange(ranks)
        found.append(named(synchronous(seed, ranks, 50, load, {slow: 1.3})) == [slow])
    print(load, sum(found), "of", len(found))
    assert sum(found) >= 0.95 * count


@pytest.mark.parametrize("steps", [1, 7])
def test_fewer_than_eight_operations_name_nobody(steps: int) -> None:
    assert named(synchronous(1, 16, steps, slow={3: 9.0})) == []


# --- what is said ---------------------------------------------------------------------------------


def test_the_sentence() -> None:
    job = synchronous(1, 4, 60, slow={2: 3.0}, step_s=1.0)
    assert text(job) == "rank 2 came last in 100 % of the last 60 all_reduces, by 2.1 s (median)"
    assert text(synchronous(1, 4, 700, slow={2: 1.3})) == (
        "rank 2 came last in 87 % of the last 500 all_reduces, by 34 ms (median)"
    )


def test_one_long_wait_among_many_short_ones() -> None:
    """Nine of ten operations follow each other at once: they tell nothing."""
    random = Random(4)
    job = Job(4)
    for _ in range(50):
        for rank in range(4):
            job.work(rank, random.uniform(0.09, 0.11) * (1.4 if rank == 1 else 1))
        for _ in range(10):
            for rank in range(4):
                job.work(rank, random.uniform(0, 20e-6))
            job.operate()
    assert text(job) == (
        "rank 1 came last in 100 % of the last 47 all_reduces that kept ranks waiting, by 41 ms"
        " (median)"
    )


def test_the_interval_holds_what_is_true() -> None:
    ((finding, standing),) = studied(synchronous(3, 4, 400, "normal", {2: 1.3})).named
    low, high = standing.share_interval
    assert low < standing.share < high
    assert standing.late_interval is not None
    least, most = standing.late_interval
    assert least < 0.3 * 0.1 < most
    assert finding.every_s == pytest.approx(0.13, rel=0.2)
    assert finding.enough


# --- nobody is blamed for another one -------------------------------------------------------------


def grid(seed: int, slow: Mapping[int, float]) -> Job:
    """Two tensor groups (0,1 and 2,3) inside of two data groups (0,2 and 1,3)."""
    random = Random(seed)
    job = Job(4)
    tensor = [job.group("1", "tp0", (0, 1)), job.group("2", "tp1", (2, 3))]
    data = [job.group("3", "dp0", (0, 2)), job.group("4", "dp1", (1, 3))]
    for _ in range(150):
        for group in tensor:
            for rank in job.groups[group][1]:
                job.work(rank, random.uniform(0.08, 0.12) * slow.get(rank, 1.0))
            job.operate(group)
        for group in data:
            for rank in job.groups[group][1]:
                job.work(rank, random.uniform(0.008, 0.012))
            job.operate(group)
    return job


def test_who_was_kept_waiting_in_another_group() -> None:
    """Rank 2 comes last to its data group each time, since rank 3 keeps it in the tensor group."""
    found = studied(grid(1, {3: 1.5}))
    assert [standing.rank for _, standing in found.named] == [3]
    (late,) = [each for each in found.findings if each.series.group.label == "dp0"]  # type: ignore[union-attr]
    behind = {each.rank: each for each in late.standings}
    assert not behind[2].slow
    assert behind[2].share < 0.7
    for seed in range(10):
        assert named(grid(seed, {})) == []


def test_overlapping_operations_are_one_occasion() -> None:
    """Gradients in eight buckets that nobody waits for: one slow backward is late for all of them.
    Three steps prove nothing, though 24 operations had the same rank last."""
    for seed in range(40):
        random = Random(seed)
        job = Job(4)
        for _ in range(3):
            loads = [random.uniform(0.5, 1.5) for _ in range(4)]
            for bucket in range(8):
                for rank in range(4):
                    job.work(rank, 0.01 * loads[rank])
                job.operate(wait=bucket == 7, input_sizes=[[bucket + 1]])
        assert named(job) == []


@pytest.mark.parametrize("beats", [False, True])
def test_steps_with_the_same_load_for_all_their_operations(beats: bool) -> None:
    """A rank's load of a step slows all of its 20 operations down."""
    wrong = [
        seed
        for seed in range(JOBS)
        if named(synchronous(seed, 4, 25, "wide", operations=20, beats=beats))
    ]
    assert len(wrong) <= 1


@pytest.mark.parametrize(("often", "expected"), [(30, []), (15, [0])])
def test_who_saves_checkpoints(often: int, expected: list[int]) -> None:
    """Some long waits may be accidents. Fourteen of them for the same rank are none."""
    random = Random(5)
    job = Job(4)
    for step in range(200):
        for rank in range(4):
            job.work(rank, random.uniform(0.08, 0.12))
        if step % often == 0:
            job.work(0, 10.0)
        job.operate()
    assert named(job) == expected
    if expected:
        assert text(job) == (
            "rank 0 came last in 100 % of the last 14 all_reduces that kept ranks waiting, by 10 s"
            " (median)"
        )


@pytest.mark.parametrize(("step_s", "late_s"), [(0.1, 0.002), (0.001, 0.0003)])
def test_late_by_nothing_that_matters(step_s: float, late_s: float) -> None:
    """Rank 3 always comes last: by a fiftieth of the step, or by less than half a millisecond."""
    job = Job(4)
    for _ in range(100):
        for rank in range(4):
            job.work(rank, step_s + late_s * (rank == 3))
        job.operate()
    found = studied(job)
    assert found.named == []
    assert max(found.findings[0].standings, key=lambda each: each.share).share == 1.0


# --- clocks ---------------------------------------------------------------------------------------

TWO_HOSTS = {0: "a", 1: "a", 2: "b", 3: "b"}


def two_hosts(slow: Mapping[int, float], *, beats: bool, seed: int = 1) -> Job:
    """The clock of host b is ahead by half of a step."""
    random = Random(seed)
    job = Job(4, {2: 50_000_000, 3: 50_000_000})
    for step in range(100):
        if beats:
            job.beat(step)
        for rank in range(4):
            job.work(rank, random.uniform(0.08, 0.12) * slow.get(rank, 1.0))
        job.operate()
    return job


def test_clocks_of_two_hosts_are_not_compared() -> None:
    assert named(two_hosts({}, beats=False), TWO_HOSTS) == []
    assert named(two_hosts({}, beats=False)) == [2, 3]  # as if they were one host's
    found = studied(two_hosts({1: 1.3}, beats=False), TWO_HOSTS)
    assert [standing.rank for _, standing in found.named] == [1]
    assert [each.series.ranks for each in found.findings] == [(0, 1), (2, 3)]


def test_each_by_its_own_clock_since_its_heartbeat() -> None:
    assert named(two_hosts({}, beats=True), TWO_HOSTS) == []
    for rank in range(4):
        found = studied(two_hosts({rank: 1.3}, beats=True), TWO_HOSTS)
        assert [standing.rank for _, standing in found.named] == [rank]
        (finding,) = found.findings
        assert (finding.series.basis, finding.series.ranks) == ("heartbeat", (0, 1, 2, 3))


def test_a_heartbeat_right_before_the_operation_tells_nothing() -> None:
    random = Random(1)
    job = Job(4)
    for step in range(100):
        for rank in range(4):
            job.work(rank, random.uniform(0.08, 0.12) * (1.3 if rank == 2 else 1.0))
        job.beat(step)
        job.operate()
    found = studied(job, TWO_HOSTS)
    assert {finding.series.basis for finding in found.findings} == {"clock"}


def test_the_shortest_on_its_gpu_came_last() -> None:
    """Clocks play no part: rank 1's are an hour behind, and operations were queued long before."""
    random = Random(1)
    job = Job(4, {1: -3600 * 10**9})
    for _ in range(60):
        for rank in range(4):
            job.work(rank, random.uniform(0.08, 0.12) * (1.3 if rank == 2 else 1.0))
        job.operate(profiling_name="nccl:all_reduce", state="completed", duration_ms=...)
    found = studied(job, {0: "a", 1: "b"})
    assert [standing.rank for _, standing in found.named] == [2]
    assert found.findings[0].series.basis == "gpu"


# --- step times -----------------------------------------------------------------------------------


def paces(slow: Mapping[int, float], steps: int = 300, step_s: float = 0.1) -> dict[int, Pace]:
    """Ranks that never wait for each other."""
    random = Random(9)
    found = {}
    for rank in range(4):
        job = Job(1)
        for step in range(steps):
            job.beats[0].append((step, job.now[0]))
            job.work(0, step_s * random.uniform(0.8, 1.2) * slow.get(rank, 1.0))
        found[rank] = read_steps(job.steps(0))
    return found


@pytest.mark.parametrize("step_s", [0.1, 0.003])
def test_ranks_that_do_not_wait(step_s: float) -> None:
    for slow, expected in (({}, []), ({1: 1.3}, [1])):
        series = series_of_steps(paces(slow, 1000, step_s))
        assert series is not None
        found = compare([series])
        assert [standing.rank for _, standing in found.named] == expected


def test_ranks_that_wait_have_equal_steps() -> None:
    job = synchronous(1, 4, 300, slow={2: 1.3}, beats=True)
    series = series_of_steps({rank: read_steps(job.steps(rank)) for rank in range(4)})
    assert series is not None
    assert compare([series]).named == []


def test_ranks_that_do_different_things_are_not_compared() -> None:
    assert series_of_steps(paces({1: 3.0, 2: 9.0})) is None
    assert series_of_steps(paces({}, 3)) is None
    assert series_of_steps({}) is None
