"""What can't be known: two jobs with different truths that give the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .job.generate import generate
from .job.program import FOREVER, Job, Op, from_dict, to_dict
from .job.truth import Played, play
from .told.answers import stacks_json, tell, text_of

#: Jobs of a kind that have to be found among so many seeds.
LEAST, SEEDS = 3, range(8000)


def told(played: Played) -> list[Any]:
    """All that the workers answer in all looks."""
    return [
        (
            each.failures,
            each.healthz,
            each.summary,
            each.threads is not None and (text_of(each) if each.stock else stacks_json(each)),
            each.recorded is not None and [each.trace(name) for name in ("gloo", "nccl")],
        )
        for _, look in played.looks
        for each in look
    ]


def twins(
    wanted: Callable[[Job], bool], change: Callable[[Job], None]
) -> Iterator[tuple[Played, Played]]:
    found = 0
    for job in map(generate, SEEDS):
        if found == LEAST:
            return
        if not wanted(job):
            continue
        twin = from_dict(to_dict(job))
        change(twin)
        found += 1
        yield play(job, tell), play(twin, tell)
    raise AssertionError("there are too few jobs of the kind")


def planted(job: Job, rank: int) -> list[Op]:
    return [op for strand in job.ranks[rank].strands for op in strand.ops if op.planted]


def test_a_pause_and_a_hang_look_alike_while_the_pause_lasts() -> None:
    """So without a hint of how long steps take, no judge can know a pause that is longer than all
    its looks. The simulator makes none."""

    def pauses(job: Job) -> bool:
        late = bool(job.plants) and job.plants[0].kind in ("late sleep", "late data", "late child")
        return late and all(not plan.beats and not plan.ring for plan in job.ranks)

    def longer(job: Job) -> None:
        for op in planted(job, job.plants[0].rank):
            op.seconds = FOREVER
        job.plants[0] = replace(job.plants[0], late=False, reason="behind")

    for late, hung in twins(pauses, longer):
        ends = late.machine.planted_at + planted(late.job, late.job.plants[0].rank)[0].seconds
        assert not late.truth.deadlocked
        assert hung.truth.deadlocked
        if late.looks[-1][0] < ends:
            assert told(late) == told(hung)


def test_stacks_alone_do_not_tell_whose_tensor_has_another_shape() -> None:
    """All ranks stand in one collective, at one line."""

    def shaped(job: Job) -> bool:
        alone = not any(plan.ring or plan.stock for plan in job.ranks)
        kinds = [plant.kind for plant in job.plants]
        alike = job.layout == "ddp" and job.backend == "gloo" and kinds in (["shape"], ["dtype"])
        return alone and alike and job.look == "settled"

    def another(job: Job) -> None:
        guilty = job.plants[0].rank
        innocent = (guilty + 1) % job.world
        for mine, yours in zip(job.ranks[guilty].strands, job.ranks[innocent].strands, strict=True):
            for index, op in enumerate(mine.ops):
                if op.planted:
                    mine.ops[index], yours.ops[index] = yours.ops[index], op
        job.plants[0] = replace(job.plants[0], rank=innocent)

    for one, other in twins(shaped, another):
        assert one.truth.guilty != other.truth.guilty
        assert told(one) == told(other)


def test_who_has_no_server_may_hang_or_have_ended() -> None:
    def unserved(job: Job) -> bool:
        if job.backend != "nccl" or len(job.plants) != 1 or job.plants[0].kind != "sleep":
            return False
        return not job.ranks[job.plants[0].rank].served

    def ended(job: Job) -> None:
        for op in planted(job, job.plants[0].rank):
            op.kind = "die"
        job.plants[0] = replace(job.plants[0], kind="die", reason="unreachable")

    def many(job: Job) -> bool:
        for plant in job.plants:  # it happens too seldom to be waited for
            job.ranks[plant.rank].served &= plant.kind != "sleep"
        return unserved(job)

    for one, other in twins(many, ended):
        assert one.truth.reasons != other.truth.reasons
        assert told(one) == told(other)
