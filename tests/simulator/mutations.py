"""Planted faults of the judge, each of one rule: what the simulator has to find.

A mutation is found by a job on which the mutated judge says worse than the judge does, by the truth
of the job: something that the truth clears or forbids, or no longer what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from workerserver.cluster.judge import flight, job, suspicions
from workerserver.cluster.judge.facts import Crowd, GoesOn
from workerserver.cluster.judge.grounds import admission, crowd, going_on, lateness, status
from workerserver.cluster.read import flight_records
from workerserver.cluster.read.roles import main_thread

from .adapter import judge, judge_anew, more
from .job.generate import generate
from .job.truth import Played, play
from .judged import Tally, violations
from .told.answers import tell

__all__ = ["MUTATIONS", "Finding", "find"]

Change = tuple[Any, str, Any]


def _without(why: str) -> tuple[Change, ...]:
    """Nobody is spared for the reason *why*."""
    true = admission.hindrance

    def hindrance(*given: Any) -> Any:
        found = true(*given)
        return None if found == why else found

    return ((suspicions, "hindrance", hindrance),)


def _without_rule(name: str) -> tuple[Change, ...]:
    rules = tuple(rule for rule in suspicions.RULES if rule.weigh.__name__ != name)
    assert len(rules) < len(suspicions.RULES)
    return ((suspicions, "RULES", rules),)


def _all_go_on(seen: Any) -> tuple[GoesOn, ...]:
    return (GoesOn("stack", tuple(seen.ranks)),)


def _largest_party(*given: Any) -> Any:
    found = _disagreement(*given)
    return flight.Mismatch(found.group, found.seq, found.kind, found.parties, found.parties[0][0])


_disagreement = flight._disagreement
_surely_waits = crowd.surely_waits

#: By what is wrong with the judge.
MUTATIONS: dict[str, tuple[Change, ...]] = {
    "a rank that counts on may be accused": _without("moves"),
    "a rank whose stack changes may be accused": _without("changes"),
    "a rank that pauses may be accused": _without("late"),
    "a rank that waits may be accused": _without("waits"),
    "a rank that computes or writes may be accused": _without("computes"),
    "a rank whose child works may be accused": _without("child"),
    "recorded operations are not compared": _without_rule("from_mismatches"),
    "nobody asks who waits for whom": _without_rule("from_waits"),
    "stacks alone accuse nobody": _without_rule("from_stacks"),
    "a step that is too old accuses nobody": _without_rule("from_steps"),
    "every rank goes on": ((status, "signs", _all_go_on),),
    "a step may take for ever": ((going_on, "PATIENCE", 1e6),),
    "no wait is too long": ((job.Job, "hangs", lambda self, wait: False),),
    "every wait is too long": ((job.Job, "hangs", lambda self, wait: True),),
    "all that is pending runs": ((flight, "heads", lambda records: {}),),
    "of two orders none is wrong": ((suspicions, "contrary", lambda waits, unseen: {}),),
    "the larger party is wrong": ((flight, "_disagreement", _largest_party),),
    "nobody keeps the GIL": ((job.Job, "gil", lambda self, rank: None),),
    "a rank with an operation under way waits for nobody": (
        (suspicions, "surely_waits", lambda seen, rank: False),
    ),
    "the parts of a batch never end": ((flight_records, "_closed", list),),
    "a pause lasts for minutes": ((lateness, "LATE_STEPS", 4000.0),),
    "a pause lasts for no time": (
        (lateness, "LATE_STEPS", 1.0), (lateness, "LATE_LEAST_SECONDS", 0.1),
    ),
    "nobody stands apart": ((suspicions, "crowd_of", lambda seen: Crowd(())),),
    "the main thread acts": ((job, "acting", lambda threads, roots=(): main_thread(threads)),),
    "nobody is elsewhere": (
        (suspicions, "is_elsewhere", lambda seen, rank: False),
        (crowd, "is_elsewhere", lambda seen, rank: False),
        (admission, "is_elsewhere", lambda seen, rank: False),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """*jobs*: how many it took. *worse*: what the judge said, and what the mutated one says."""

    mutation: str
    seed: int
    jobs: int
    worse: tuple[str, str]


def find(names: Sequence[str], first: int, most: int) -> Iterator[Finding]:
    """Judge at most *most* jobs from the seed *first* on, and tell which mutations they find."""
    left = list(names)
    for number in range(most):
        if not left:
            return
        played = play(generate(first + number), tell, more=more)
        good = _outcome(played, judge)
        for name in tuple(left):
            with ExitStack() as changes:
                for where, what, instead in MUTATIONS[name]:
                    changes.enter_context(patch.object(where, what, instead))
                bad = _outcome(played, judge_anew)
            if _is_worse(played, good, bad):
                left.remove(name)
                yield Finding(name, first + number, number + 1, (good, bad))


def _outcome(played: Played, judge: Callable[[Played], Any]) -> str:
    try:
        verdict = judge(played)
    except (AssertionError, IndexError, KeyError, StopIteration, ValueError):
        return "breaks"
    return Tally.outcome(played, verdict, list(violations(played, verdict)))


def _is_worse(played: Played, good: str, bad: str) -> bool:
    if bad in ("wrong", "breaks"):
        return good not in ("wrong", "breaks")
    if played.truth.deadlocked:
        return good == "right" and bad != "right"
    return good == "0" and bad != "0"
