"""Feeds simulated answers to the judge, as a round of real ones would: the only module here that
knows ``workerserver.cluster``.

Objects of equal content are shared, so a look costs little; ``test_answers`` checks that the real
parsers make the same of the real bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Failure, Frame, Health, Own, RankState, Thread, Worker
from workerserver.cluster.read.waits_for import (
    read_children,
    read_holds,
    read_waits,
    with_names,
)

from .job.program import Job, RankPlan
from .job.truth import Played
from .judged import VerdictLike
from .told.answers import Answers, Told
from .told.recorder import EPOCH

__all__ = ["Round", "judge", "judge_anew", "more", "rounds"]


@dataclass(slots=True)
class Round:
    states: list[RankState]
    started: float


@dataclass(slots=True)
class _Last:
    """The job that was judged last, and its verdict after so many looks."""

    job: Job | None = None
    rounds: list[Round] = field(default_factory=list)
    verdict: Verdict | None = None


_last = _Last()


def _judged(job: Job, looks: Sequence[tuple[float, Any]]) -> Verdict:
    if _last.job is not job or len(_last.rounds) > len(looks):
        _last.job, _last.rounds = job, []
    elif _last.verdict is not None and len(_last.rounds) == len(looks):
        return _last.verdict
    _last.rounds += rounds(job, looks[len(_last.rounds) :])
    _last.verdict = diagnose(_last.rounds, job.world)
    return _last.verdict


def judge(played: Played) -> VerdictLike:
    return _judged(played.job, played.looks)


def judge_anew(played: Played) -> VerdictLike:
    """Without a memory of what was judged last: for a judge that was changed."""
    return diagnose(rounds(played.job, played.looks), played.job.world)


def more(job: Job, looks: Sequence[tuple[float, Any]]) -> bool:
    """As ``diagnose`` looks again by itself."""
    return _judged(job, looks).again_s is not None


def rounds(job: Job, looks: Sequence[tuple[float, Any]]) -> list[Round]:
    found = []
    for when, told in looks:
        states = [_state(each, job.ranks[each.rank]) for each in told]
        _fetch_traces(told, states)
        found.append(Round(states, EPOCH + when))
    return found


@lru_cache(maxsize=1024)
def _worker(number: int, named: bool, here: bool) -> Worker:
    if named:
        return Worker(f"/run/rank{number}.sock", here, number)
    return Worker(f"/run/worker{number}.sock", here)


@lru_cache(maxsize=65536)
def _frames(frames: tuple[tuple[str, int, str, str], ...]) -> tuple[Frame, ...]:
    return tuple(Frame(file, line, function) for file, line, function, _ in frames)


def _thread(told: Told, told_by: Answers) -> Thread:
    frames = _frames(told.stack.frames)
    ident = 140_000_000_000_000 + told.thread.number * 8_392_704
    if told_by.stock:
        main = told.stack.frames[-1][2] == "<module>"
        return Thread(frames, ident=ident, main=main)
    pid = 4000 + told_by.rank
    name = "MainThread" if told.main else f"Thread-{told.thread.number} ({told.thread.strand.name})"
    return Thread(
        frames,
        name=name,
        ident=ident,
        native_id=pid if told.main else pid + 10_000 + told.thread.number,
        state=told.state,
        wchan=told.wchan,
        main=told.main,
        holds_gil=told.holds_gil,
        switches=told.switches,
        waits=read_waits(told.waits),
        holds=read_holds(told.holds),
    )


def _state(told: Answers, plan: RankPlan) -> RankState:
    # Who has a clock of its own is on another host.
    worker = _worker(told.rank, plan.named, not plan.clock)
    state = RankState(worker, told.rank if plan.named else None)
    for question, reason in told.failures.items():
        state.failures[question] = Failure(reason, "simulated")  # type: ignore[arg-type]
    if told.silent:
        return state
    state.responded = True
    state.kind = "torch" if told.stock else "workerserver"
    if told.healthz is not None:
        state.health = Health(**told.healthz)
    if told.digest is not None:
        state.digest, state.main_digest = told.digest
    state.mode = told.mode
    if plan.facts and not told.stock:
        state.own = Own(told.mode, 4000 + told.rank, 1, read_children(told.children))
    if told.threads is not None:
        state.threads = tuple(_thread(each, told) for each in told.threads)
        if state.own is not None and state.own.children:
            state.threads = with_names(state.threads, state.own.children)
        if told.stock:
            taker = Thread((), name="pt_workerserver", ident=0x7FD48DFFB6C0, holds_gil=True)
            state.threads = (taker, *state.threads)
            state.digest = str(hash(tuple(each.stack.number for each in told.threads)))
            state.main_digest = next(
                (str(each.stack.number) for each in told.threads if each.main), None
            )
    state.flight_summary = told.summary
    if told.summary is None:  # its trace stands for it
        state.flight = told.trace("gloo")
        if not state.flight.get("entries"):
            state.flight = told.trace("nccl")
    return state


# --- full traces, for the ranks that stand out


def _fetch_traces(told: Sequence[Answers], states: Sequence[RankState]) -> None:
    """Of each group in whose state ranks differ, one rank of each state; else one that waits."""
    positions: dict[Any, dict[Any, int]] = {}
    pending: list[int] = []
    for index, each in enumerate(told):
        if each.summary is None:
            continue
        for group in each.summary["groups"]:
            stand = tuple(
                _signature(group[word]) for word in ("last_issued", "last_retired", "first_pending")
            )
            key = (group["recorder"], group["name"], group["desc"], group["ranks"])
            positions.setdefault(key, {}).setdefault(stand, index)
            if group["first_pending"] is not None:
                pending.append(index)
    wanted = {
        index for stands in positions.values() if len(stands) > 1 for index in stands.values()
    }
    for index in wanted or pending[:1]:
        summary = told[index].summary
        assert summary is not None
        recorders = {group["recorder"] for group in summary["groups"]}
        states[index].flight = told[index].trace("nccl" if "nccl" in recorders else "gloo")


def _signature(operation: dict[str, Any] | None) -> Any:
    if operation is None:
        return None
    return (
        operation["seq"],
        operation["p2p_seq"],
        operation["op"],
        tuple(map(tuple, operation["input_sizes"])),
        tuple(operation["input_dtypes"]),
        tuple(map(tuple, operation["output_sizes"])),
    )


# --- the slow way, through the real parsers


def parsed(health: str | None, stacks: str, text: bool) -> tuple[Health | None, tuple[Thread, ...]]:
    """The bodies as the operator's side reads them."""
    from workerserver.cluster.ask import bodies
    from workerserver.cluster.read.stacks import parse_json, parse_text

    threads = parse_text(stacks) if text else parse_json(stacks)
    return bodies.health(health.encode()) if health is not None else None, tuple(threads)
