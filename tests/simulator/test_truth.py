"""The simulator's truth: told twice, by two machines that share nothing but the program."""

from __future__ import annotations

import os

import pytest

from .job.generate import LAYOUTS, generate
from .job.program import Job, text
from .job.replay import stuck_ranks
from .job.truth import play
from .told.answers import stacks_json, tell

#: The long form: WORKERSERVER_SIMULATED_JOBS=1000000.
QUICK = 2000
JOBS = int(os.environ.get("WORKERSERVER_SIMULATED_JOBS", QUICK))
#: Brute force takes several times as long.
REPLAYED = max(JOBS // 10, 400)

pytestmark = [pytest.mark.timeout(0)] if JOBS > QUICK else []


def test_brute_force_finds_the_same_ranks_stuck() -> None:
    wrong = []
    for seed in range(REPLAYED):
        job = generate(seed)
        truth = play(job).truth
        if stuck_ranks(job) != truth.stuck:
            wrong.append((seed, sorted(truth.stuck), sorted(stuck_ranks(job))))
    assert not wrong


def test_a_fault_hangs_the_job_and_no_other_does() -> None:
    hung = healthy = 0
    for seed in range(JOBS):
        job = generate(seed)
        truth = play(job).truth
        lasting = [plant for plant in job.plants if not plant.late]
        assert not truth.deadlocked or lasting, seed
        hung += truth.deadlocked
        healthy += not lasting
        harmless = {plant.kind for plant in lasting} <= {"crossed groups"}
        assert truth.deadlocked or not lasting or harmless, seed
        if truth.deadlocked:
            assert truth.guilty <= truth.allowed <= set(range(job.world))
            assert truth.stuck, seed
    assert hung > JOBS * 0.4
    assert healthy > JOBS * 0.3


@pytest.mark.parametrize("seed", [1, 17, 4242])
def test_a_seed_gives_one_job(seed: int) -> None:
    def told(job: Job) -> list[object]:
        looks = [each for _, look in play(job, tell).looks for each in look]
        return [[each.healthz, each.summary, stacks_json(each)] for each in looks]

    assert text(generate(seed)) == text(generate(seed))
    assert told(generate(seed)) == told(generate(seed))


def test_all_kinds_of_jobs_are_made() -> None:
    jobs = [generate(seed) for seed in range(1500)]
    assert {job.layout for job in jobs} == set(LAYOUTS)
    assert {job.backend for job in jobs} == {"gloo", "nccl"}
    assert {job.look for job in jobs} == {"running", "settled", "fresh"}
    assert {len({plan.stock for plan in job.ranks}) for job in jobs} == {1, 2}
    assert any(plan.ring == 0 for job in jobs for plan in job.ranks)
    assert any(plan.clock for job in jobs for plan in job.ranks)
    assert any(len({group.name for group in job.groups}) < len(job.groups) for job in jobs)
