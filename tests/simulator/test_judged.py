"""What is counted as a violation, and that a failing job can be made smaller."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from .adapter import judge, more
from .job.generate import generate
from .job.program import from_dict, text, to_dict
from .job.truth import Played, play
from .judged import Tally, violations
from .shrink import shrink
from .told.answers import tell


@dataclass
class Suspected:
    rank: int | None
    reason: str = "behind"
    address: str = "/run/worker0.sock"
    location: str | None = None
    evidence: tuple[str, ...] = ()


@dataclass
class Said:
    status: int
    suspects: list[Suspected] = field(default_factory=list)
    sentence: str = ""


def first(hung: bool) -> Played:
    """A job that hangs for one rank's fault, with others that only wait; or a healthy one."""
    for seed in range(1000):
        played = play(generate(seed), tell)
        truth = played.truth
        if not hung and not played.job.plants:
            return played
        if hung and truth.settled and truth.victims and truth.allowed == truth.guilty:
            return played
    raise AssertionError("there is no such job")


def kinds(played: Played, said: Said) -> list[str]:
    return [violation.kind for violation in violations(played, said)]


def test_a_hung_job_is_never_healthy() -> None:
    assert kinds(first(hung=True), Said(0)) == ["hung, and called healthy"]
    assert kinds(first(hung=True), Said(2)) == []


def test_only_the_guilty_may_be_accused() -> None:
    played = first(hung=True)
    victim, guilty = min(played.truth.victims), min(played.truth.guilty)
    found = kinds(played, Said(1, [Suspected(victim)]))
    assert found in (["a victim accused"], ["a victim without a server accused"])
    reasons = [kinds(played, Said(1, [Suspected(guilty, r)])) for r in ("mismatch", "dataloader")]
    assert ["right rank, wrong reason"] in reasons
    assert kinds(played, Said(1)) == ["status 1 without a suspect"]
    assert "a suspect without status 1" in kinds(played, Said(2, [Suspected(guilty)]))


def test_who_has_another_fault_may_be_the_other_side_of_a_disagreement() -> None:
    """Rank 3 brings another shape to a group of two. Rank 2 is the other one, and hangs later on in
    a write, before anybody waits for it there."""
    played = play(generate(72004106), tell, more=more)
    assert played.truth.reasons == {3: "deviates", 2: "behind"}
    assert kinds(played, Said(1, [Suspected(2, "mismatch"), Suspected(3, "mismatch")])) == []
    assert kinds(played, Said(1, [Suspected(2, "dataloader")])) == ["right rank, wrong reason"]


def test_who_stands_where_the_others_stand_is_not_accused() -> None:
    """One of our workers among stock ones, all at one line: only ours tells that it computes."""
    played = play(generate(90067769), tell, more=more)
    assert [each for each in judge(played).suspects if each.rank not in played.truth.guilty] == []


def test_who_has_another_fault_may_have_taken_operations_in_another_order() -> None:
    """Rank 1 leaves an operation out, so its stream and rank 2's wait for each other. Rank 2 then
    stands in a lock, which its stream knows nothing of."""
    played = play(generate(90179921), tell, more=more)
    assert played.truth.reasons == {1: "deviates", 2: "joined"}
    assert played.truth.opposed == {2}
    assert [*violations(played, judge(played))] == []


@pytest.mark.parametrize(
    "seed",
    [
        # A rank without a server is late: nobody has seen it stand still.
        pytest.param(90003362, id="unseen"),
        # Four ranks wait for the first of three operations, and their rings hold two.
        pytest.param(90131051, id="awaited operation lost"),
        # A stock worker's ring has lost all that it has issued in the default group.
        pytest.param(90013556, id="group lost"),
        # The rings have lost most members of a group, so a few seem to be all.
        pytest.param(90098544, id="members lost"),
        # In a receive of which nobody tells the peer, beside a rank whose peer is known.
        pytest.param(290009130, id="unknown peer"),
        # Two of three ranks poll a key. One of these two can't be seen.
        pytest.param(90059429, id="most, with the unseen"),
    ],
)
def test_a_chain_that_nobody_can_follow_accuses_nobody(seed: int) -> None:
    played = play(generate(seed), tell, more=more)
    assert [*violations(played, judge(played))] == []
    assert judge(played).status == 2


@pytest.mark.parametrize(
    "seed",
    [
        # Each of four looks meets one rank in its loader and the other one in item().
        pytest.param(330039472, id="met by chance"),
        # One sleeps with a file's lock. Another one sleeps before it asks for that lock.
        pytest.param(330046082, id="asleep on its way"),
        pytest.param(340006892, id="asleep on its way in a pipeline"),
        pytest.param(340011667, id="asleep on its way, by stacks alone"),
        # A stock worker in C code waits for the lock of a rank without a server.
        pytest.param(330038372, id="waits for the unseen"),
        # In item() behind an operation that its ring has lost.
        pytest.param(330056058, id="its own operation under way"),
        # After two steps, ranks that count in threes and in ones.
        pytest.param(400010915, id="counts in threes"),
        # The main thread of a stock worker joins one of two threads. The other one polls a key.
        pytest.param(300214829, id="joins one of several"),
        # A receive from a rank that waits in a receive itself, seen since the second look only.
        pytest.param(300280304, id="its peer waits"),
        # Ranks in work.wait(), which leaves no frame. One of them is a stock worker.
        pytest.param(300285898, id="a ring behind one that may wait"),
        pytest.param(411004088, id="a ring of two groups behind one that may wait"),
        # A stock worker polls its operation. Its ring has lost the default group.
        pytest.param(300332098, id="polls its own operation"),
        # A stock worker in C code waits for the lock of a rank that sleeps.
        pytest.param(420000328, id="waits for the sleeper"),
        pytest.param(420002800, id="waits for the sleeper in a grid"),
        # Spins in item() for a receive, of which its ring of four no longer holds the peer.
        pytest.param(781017464, id="spins for an unseen peer"),
        # Healthy, in its first step: the age of its only heartbeat is no wait.
        pytest.param(900019142, id="in its first step"),
        # One against one in a group of three, whose third member gives no answer.
        pytest.param(1000028321, id="who would tell gives no answer"),
        # One against one in a ring of two groups, beside ranks that have no recorder.
        pytest.param(1000218034, id="who would tell records nothing"),
        pytest.param(2000012810, id="who would tell does not know its rank"),
        # Polls a key, beside a rank that sleeps with a file's lock.
        pytest.param(1000222467, id="polls a key of the sleeper's"),
        # Alone, with the GIL held since its last step.
        pytest.param(300117768, id="the GIL since its last step"),
    ],
)
def test_what_was_wrong_in_long_runs(seed: int) -> None:
    played = play(generate(seed), tell, more=more)
    assert [*violations(played, judge(played))] == []


def test_nobody_is_accused_in_a_healthy_job() -> None:
    played = first(hung=False)
    assert kinds(played, Said(0)) == kinds(played, Said(2)) == []
    assert kinds(played, Said(1, [Suspected(None)])) == ["healthy, and accused"]


def test_the_judge_can_be_asked_and_its_answers_counted() -> None:
    tally = Tally()
    for seed in range(300):
        played = play(generate(seed), tell)
        tally.add(played, judge(played))
    assert tally.jobs == 300
    assert sum(sum(each.values()) for each in tally.shares.values()) == 300
    assert sum(sum(each.values()) for each in tally.cases.values()) == 300
    assert any("violations in 300 jobs" in line for line in tally.tables())


def test_no_hung_job_is_called_healthy_and_no_victim_accused() -> None:
    """The longer form is ``python -m tests.simulator --judge``."""
    tally = Tally()
    for seed in range(400):
        played = play(generate(seed), tell, more=more)
        tally.add(played, judge(played))
    wrong = {kind for kind, _ in tally.counts}
    assert not wrong & {
        "hung, and called healthy",
        "a victim accused",
        "one that goes on accused",
        "status 1 without a suspect",
        "a suspect without status 1",
    }, [*tally.tables()]


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_programs_go_through_json(seed: int) -> None:
    job = generate(seed)
    assert text(from_dict(to_dict(job))) == text(job)


def test_a_failing_job_gets_smaller_and_fails_still() -> None:
    def fails(played: Played) -> set[str]:
        """As a judge would fail that calls all jobs healthy."""
        return set(kinds(played, Said(0)))

    job = next(
        job for job in map(generate, range(1000)) if job.world > 4 and fails(play(job, tell))
    )
    small = shrink(job, fails, tries=300)
    assert fails(play(small, tell))
    assert len(text(small)) < len(text(job))
    assert small.world <= job.world
    assert shrink(small, lambda played: set()) is small
